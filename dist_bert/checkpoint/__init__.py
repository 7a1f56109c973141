"""The state of a run on disk: whole or absent, and readable by any layout of ranks.

Not for: deciding when to save (`dist_bert.training`).
Others mostly use `checkpoint.load`, `weights.load_initial_weights` and the names in `run_dir`.
"""
