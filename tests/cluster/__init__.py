"""Many nodes: batch scripts on a real SLURM, launchers over ssh, faults of hosts and links."""
