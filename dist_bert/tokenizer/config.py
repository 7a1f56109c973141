"""How pieces are written, and settings for training a tokenizer.

Separate, so that `--help` does not load SentencePiece.
"""

import dataclasses

from dist_bert.common.settings import raise_all, setting

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # their ids are 0 to 4


def bare_piece(piece: str) -> str:
    """A piece without the sign of a space before it, unless it is nothing else."""
    return piece.lstrip("▁") or piece


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Training of a tokenizer."""

    vocab_size: int = setting(30_522, "number of pieces, including special ones")
    model_type: str = setting("unigram", "algorithm that finds the pieces", ("unigram", "bpe"))
    lower_case: bool = setting(False, "fold case (an uncased model) on top of Unicode NFKC")
    normalization: str = setting(
        "auto",
        "of text: nfkc = Unicode NFKC, keeps the zero-width non-joiner of Persian, Telugu, ...;"
        " nmt_nfkc = SentencePiece's, turns it into a space; identity = none; FILE = rules in"
        " SentencePiece's format (code points in hexadecimal, a tab, their replacements); auto ="
        " nfkc if the text has non-joiners inside words, else nmt_nfkc",
    )
    byte_fallback: bool = setting(
        False, "spell unknown characters as bytes; takes 256 of the pieces"
    )
    character_coverage: float = setting(
        0.9995, "share of the text's characters with a piece, above 0 to 1; others are unknown"
    )
    max_sentences: int = setting(500_000, "training sentences, selected by hash; 0 = all")

    def __post_init__(self) -> None:
        problems = []
        reserved = len(SPECIAL_PIECES) + 256 * self.byte_fallback
        if self.vocab_size <= reserved:
            problems.append(f"vocab_size = {self.vocab_size}: must be above {reserved}")
        if not 0.0 < self.character_coverage <= 1.0:
            problems.append(
                f"character_coverage = {self.character_coverage}: must be above 0 and at most 1"
            )
        if self.max_sentences < 0:
            problems.append(f"max_sentences = {self.max_sentences}: must be at least 0")
        if self.lower_case and self.normalization not in ("auto", "nfkc", "nmt_nfkc"):
            problems.append(
                f"lower_case = True: normalization = {self.normalization} does not fold case; omit"
                " one of them"
            )
        raise_all("tokenizer", problems)
