"""The encoder and its pretraining heads, its operations, and its parameters' published names.

Not for: training it, or the heads of fine-tuning.
Others mostly use `config.ModelConfig`, `bert.BertForPreTraining` and `micro_batches.to_device`.
"""
