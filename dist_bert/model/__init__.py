"""The encoder, its pretraining heads and operations, and published parameter names.

Not for: training, or the heads of fine-tuning.
Others mostly use `config.ModelConfig`, `bert.BertForPreTraining` and `micro_batches.to_device`.
"""
