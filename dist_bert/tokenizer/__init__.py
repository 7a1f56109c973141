"""Converts text to ids and back: one interface to SentencePiece and WordPiece models.

Not for: splitting text into sentences (`data_prep`).
Others mostly use `tokenizer.Tokenizer` and the special ids in its module.
"""
