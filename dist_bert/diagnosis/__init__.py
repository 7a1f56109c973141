"""What a machine has and what would not work on it."""
