"""Optimizers of our own: torch optimizers that know which parameter every element belongs to."""
