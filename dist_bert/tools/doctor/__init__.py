"""Looks at a machine and tries what a run needs."""
