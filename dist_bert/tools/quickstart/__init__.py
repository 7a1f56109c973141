"""The whole path on real text within a time limit."""
