"""Offline half: MPI ranks turn a corpus into WebDataset shards of ready-made samples."""
