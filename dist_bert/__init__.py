"""Distributed pretraining of BERT-style encoders: the training half (offline: `data_prep`)."""

__version__ = "0.1.0"
