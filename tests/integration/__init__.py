"""Tests that start the scripts of `launch/` as processes."""
