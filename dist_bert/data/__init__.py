"""Reads shards, on disk or at a URL, into one rank's unpadded micro-batches, in exact order.

Not for: making shards (`data_prep`) or moving batches to a device; numpy only, no torch.
Others mostly use `shard_source.ShardSource`, `reader.SampleReader` and
`pretraining_batches.training_batches`.
"""
