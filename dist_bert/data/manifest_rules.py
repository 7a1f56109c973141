"""Validates a `manifest.json` before use: keys, types, ranges, names.

File names and sums of a manifest become paths, so they must match a pattern. Not for: positions of
blocks (`dist_bert.data.shard_format`) or contents of samples (`dist_bert.data.sample_rules`).
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from dist_bert.data import document_sketch

Rule = tuple[str, Callable[[Any], bool]]  # requirement as text, and its check

MAX_LENGTH = 65_535  # tokens: lengths and positions are stored in 16 bits
_MAX_IDS = 1 << 32  # of pieces
_MAX_BYTES = 1 << 50  # of a shard
_SPLITS = ("train", "validation")
_OBJECTS = ("config", "tokenizer", "totals", "statistics", "splits")
_KEYS = {"format_version", "config_fingerprint", "inputs", *_OBJECTS}
_SHARD_KEYS = {"file", "bytes", "sha256", "num_samples", "blocks"}
_FILE = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _count(least: int, most: int) -> Rule:
    return (
        f"an integer from {least:,} to {most:,}",
        lambda value: type(value) is int and least <= value <= most,
    )


_SUM: Rule = (
    "64 hexadecimal digits",
    lambda value: isinstance(value, str) and _SHA256.fullmatch(value) is not None,
)
_NAME: Rule = (
    "a file name of letters, digits, _, . and -",
    lambda value: isinstance(value, str) and _FILE.fullmatch(value) is not None,
)
_FACTS: dict[str, dict[str, Rule]] = {
    "config": {
        "sequence_length": _count(3, MAX_LENGTH),
        "pair_objective": ("nsp, sop or none", lambda value: value in ("nsp", "sop", "none")),
        "whole_words": ("true or false", lambda value: isinstance(value, bool)),
        "mean_span_length": (
            "0, or a number above 1",
            lambda value: _is_number(value) and (value == 0 or 1 < value <= MAX_LENGTH),
        ),
    },
    "tokenizer": {
        "fingerprint": _SUM,
        "vocab_size": _count(6, _MAX_IDS),
        "num_reserved_pieces": _count(5, _MAX_IDS),
    },
    "totals": {"documents": _count(0, 1 << 63)},
}
_SHARD_FACTS = {
    "file": _NAME,
    "bytes": _count(0, _MAX_BYTES),
    "sha256": _SUM,
    "num_samples": _count(0, _MAX_BYTES),
}


def problem(value: Mapping[str, Any]) -> str:
    """The first problem of a manifest, "" if none.

    Args:
        value: contents of the JSON file, of the right format version.
    """
    for name in sorted(_KEYS - {"config_fingerprint"}):
        if name not in value:
            return f"{name} is missing"
    if unknown := sorted(value.keys() - _KEYS):
        return f"unknown key {_shown(unknown[0])}"
    for name in _OBJECTS:
        if not isinstance(value[name], dict):
            return f"{name} is not an object"
    for name, facts in _FACTS.items():
        if found := _broken(name, value[name], facts):
            return found
    if value["tokenizer"]["num_reserved_pieces"] >= value["tokenizer"]["vocab_size"]:
        return "tokenizer.num_reserved_pieces must be below vocab_size"
    if "document_sketch" in value["totals"]:  # which manifests have had since 2026-11
        try:
            document_sketch.decoded(value["totals"]["document_sketch"])
        except ValueError as error:
            return f"totals.document_sketch: {error}, must be ascending hashes in base64"
    return _statistics_problem(value["statistics"]) or _splits_problem(value["splits"])


def _statistics_problem(statistics: Mapping[str, Any]) -> str:
    for split, counts in statistics.items():
        shares = counts.get("shares", {}) if isinstance(counts, dict) else None
        if not isinstance(shares, dict) or not all(map(_is_number, shares.values())):
            return f"statistics.{_shown(split)}: must be an object whose shares are numbers"
    return ""


def _splits_problem(splits: Mapping[str, Any]) -> str:
    if set(splits) != set(_SPLITS):
        return f"splits must be {' and '.join(_SPLITS)}"
    for split, shards in splits.items():
        if not isinstance(shards, list):
            return f"splits.{split} is not a list"
        for number, shard in enumerate(shards):
            where = f"splits.{split}[{number}]"
            if not isinstance(shard, dict) or set(shard) != _SHARD_KEYS:
                return f"{where}: must have the keys {', '.join(sorted(_SHARD_KEYS))}"
            if found := _broken(where, shard, _SHARD_FACTS):
                return found
    return ""


def _broken(where: str, values: Mapping[str, Any], facts: Mapping[str, Rule]) -> str:
    for name, (text, holds) in facts.items():
        if name not in values:
            return f"{where}.{name} is missing"
        if not holds(values[name]):
            return f"{where}.{name} = {_shown(values[name])}: must be {text}"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, int | float | str) else type(value).__name__
    return ascii(text[:80])[1:-1]  # always one line
