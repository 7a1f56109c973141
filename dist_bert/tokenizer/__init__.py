"""Converts text to ids and back: SentencePiece, WordPiece and byte-level BPE.

Not for: splitting text into sentences (`data_prep`).
Others mostly use `tokenizer.Tokenizer` and the special ids in its module.
"""
