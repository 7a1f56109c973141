"""Offline half: MPI workers turn a corpus into WebDataset shards of ready-made samples."""
