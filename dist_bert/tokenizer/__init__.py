"""Text to ids and back: SentencePiece and WordPiece models behind one interface.

Not for: splitting text into sentences (`data_prep`).
Others mostly use `tokenizer.Tokenizer` and the special ids beside it.
"""
