"""The pretraining job: its settings, its samples and its model, put into the training loop.

Not for: the loop itself (`dist_bert.training`).
Scripts use `pretrain.pretrain` and `check.check`.
"""
