"""A run before it is queued: memory, messages, hours. Arithmetic, without torch."""
