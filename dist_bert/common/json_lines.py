"""Reads and writes JSON lines in a run's folder: metrics, predictions, starts.

A damaged line is skipped with a warning; it costs neither the run nor the other lines. Not for: the
meaning of the lines.
"""

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dist_bert.common import files

_LOG = logging.getLogger("dist_bert")
Rows = list[dict[str, Any]]


def rows_of(
    path: Path, needed: Sequence[str] = (), only_numbers: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows of a file, one at a time; none without a file.

    A last line without a line end was cut off by a kill, or is being written.

    Args:
        path: of the file.
        needed: keys that a row has besides `step`, which is a number.
        only_numbers: whether all values of a row must be finite numbers.
    """
    if not path.exists():
        return
    num_damaged = first = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            row = _row(line)
            if row is not None and row.keys() >= {*needed} and _has_numbers(row, only_numbers):
                yield row
            elif line.endswith(b"\n"):
                num_damaged += 1
                first = first or number
    if num_damaged:
        told = f"{num_damaged:,} damaged lines are skipped, the first is line {first:,}"
        _LOG.warning("%s: %s", path, told)


def read_rows(path: Path, needed: Sequence[str] = (), only_numbers: bool = False) -> Rows:
    """All rows of a file; the arguments are those of `rows_of`."""
    return list(rows_of(path, needed, only_numbers))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a whole file of lines."""
    files.write_bytes(path, "".join(map(files.json_line, rows)).encode())


def drop_rows_after(path: Path, step: int, **what: Any) -> None:
    """Removes the rows of later steps, and damaged lines, from a file.

    If they are at its end, the file is truncated: that needs no space on a full disk.

    Args:
        path: of the file, which need not exist.
        step: the last one to keep.
        what: arguments of `rows_of`.
    """
    if not path.exists():
        return
    kept = [row for row in rows_of(path, **what) if row["step"] <= step]
    size = 0
    with open(path, "rb") as file:
        for row in kept:
            line = file.readline()
            if _row(line) != row:
                return write_rows(path, kept)
            size += len(line)
    os.truncate(path, size)


def _row(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None if it is damaged or has no line end."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _has_numbers(row: dict[str, Any], everywhere: bool) -> bool:
    values = row.values() if everywhere else ()
    return all(
        type(value) in (int, float) and math.isfinite(value) for value in (row.get("step"), *values)
    )
