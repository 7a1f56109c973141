"""Our training step and our reader beside the alternatives; not part of training."""
