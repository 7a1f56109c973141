"""A trained encoder in use: fill in masks, embed text, look at layers, score held-out samples.

Not for: training, or the tasks of fine-tuning.
Others mostly use `trained_run.TrainedRun` and `text_batches`.
"""
