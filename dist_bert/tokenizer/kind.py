"""Which kind of tokenizer a file holds; no numpy, so that `--help` stays quick.

Not for: reading it (`dist_bert.tokenizer.tokenizer`).
"""

import json
from typing import Literal

Kind = Literal["SentencePiece", "WordPiece", "byte-level BPE"]


def kind_of(content: bytes) -> Kind:
    """The kind of a tokenizer's file, which may still be damaged."""
    if content.lstrip()[:1] != b"{":
        return "SentencePiece"
    try:
        is_bpe = json.loads(content)["model"]["type"] == "BPE"
    except (ValueError, LookupError, TypeError):  # old files lack the type, damaged ones all
        is_bpe = False
    return "byte-level BPE" if is_bpe else "WordPiece"
