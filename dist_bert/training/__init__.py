"""The loop around DeepSpeed's engine, and a run around the loop: settings, progress, curves.

Not for: what is trained; it knows no task (`dist_bert.pretraining`, `dist_bert.finetuning`).
Others mostly use `session.train_run`, `engine.build_engine` and `config.TrainingConfig`.
"""
