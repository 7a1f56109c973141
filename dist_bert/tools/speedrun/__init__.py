"""How long a recipe takes to a fixed loss on fixed held-out samples, and the records so far."""
