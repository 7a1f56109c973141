"""Tests; a package, so that all of them can share `tests.corpus`."""
