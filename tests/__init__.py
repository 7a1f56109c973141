"""Tests: `unit` mirrors the packages, `integration` starts scripts, `support` serves both."""
