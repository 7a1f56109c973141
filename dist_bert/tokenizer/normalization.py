"""Selects how a tokenizer trained here normalises text: by rules of SentencePiece, or of a file.

SentencePiece's own rules (nmt_nfkc: Unicode NFKC, all white space becomes a space, control
characters are removed) turn the zero-width non-joiner into a space, but Persian, Kurdish, Urdu,
Telugu and others use it inside words. Ours (nfkc) are the same except for that.

Source of the file format: https://github.com/google/sentencepiece/blob/master/doc/normalization.md.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from dist_bert.common.errors import UserError
from dist_bert.tokenizer.config import TokenizerConfig

JOINERS = "\u200c\u200d"  # zero-width non-joiner and joiner
_NON_JOINER = JOINERS[0]
_IN_WORD = re.compile(rf"\S{_NON_JOINER}\S")
_LEAST_SHARE = 0.001  # of the sentences: ignores stray ones in foreign names


def chosen(sentences: Sequence[str], config: TokenizerConfig) -> str:
    """The rules of the settings; resolves "auto" by the text.

    Returns:
        For "auto", "nfkc" if at least one in a thousand sentences has a non-joiner inside a word,
        else "nmt_nfkc"; otherwise the rules of the settings.
    """
    if config.normalization != "auto":
        return config.normalization
    num_joined = sum(_NON_JOINER in s and bool(_IN_WORD.search(s)) for s in sentences)
    return "nfkc" if num_joined > _LEAST_SHARE * len(sentences) else "nmt_nfkc"


def trainer_settings(normalization: str, lower_case: bool) -> dict[str, Any]:
    """Arguments of SentencePiece's trainer for these rules.

    Args:
        normalization: as `chosen` returns it.
        lower_case: folds case on top.

    Raises:
        UserError: the file of rules cannot be read.
    """
    folding = "nmt_nfkc_cf" if lower_case else "nmt_nfkc"
    if normalization == "nmt_nfkc":
        return {"normalization_rule_name": folding}
    if normalization == "identity":
        return {"normalization_rule_name": "identity"}
    sentencepiece.SetMinLogLevel(2)  # it logs every table
    if normalization == "nfkc":
        rules = sentencepiece.SentencePieceNormalizer(rule_name=folding).decompile()
        rules = [(source, target) for source, target in rules if _NON_JOINER not in source]
    else:
        rules = _read_rules(Path(normalization))
    return {"normalizer": sentencepiece.SentencePieceNormalizer(norm_map=rules)}


def _read_rules(path: Path) -> list[tuple[str, str]]:
    """The rules of a file: code points in hexadecimal, a tab, their replacements."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"--normalization {path}: cannot be read ({reason}); give nfkc, nmt_nfkc, identity or a"
            " file of rules"
        ) from None
    rules = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        source, _, target = line.partition("\t")
        try:
            key, value = (_characters(part) for part in (source, target.partition("\t")[0]))
        except (ValueError, OverflowError):
            key = value = ""
        if not key:
            raise UserError(
                f"--normalization {path}: line {number} is not a rule; it must be code points in"
                " hexadecimal, a tab, and their replacements, such as 41<tab>61"
            )
        rules[key] = value
    if not rules:
        raise UserError(f"--normalization {path}: contains no rule; give identity for none")
    return list(rules.items())


def _characters(code_points: str) -> str:
    text = "".join(chr(int(code_point, 16)) for code_point in code_points.split())
    if any("\ud800" <= character <= "\udfff" or character == "\0" for character in text):
        raise ValueError
    return text
