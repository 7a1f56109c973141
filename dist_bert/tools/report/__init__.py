"""Runs read back into one HTML page. Without torch."""
