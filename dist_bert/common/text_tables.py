"""Prints the figures of benchmarks as text tables."""

import unicodedata
from collections.abc import Mapping, Sequence


def table(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """A table of figures as text; a row need not have all columns.

    Args:
        title: shown above the names of the rows.
        rows: name -> column -> figure; underscores are shown as spaces.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[_words(title), *map(_words, columns)]]
    for name, row in rows.items():
        cells.append([_words(name), *(number(row[c]) if c in row else "" for c in columns)])
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as lines of text: first column left-aligned, the others right-aligned.

    For a terminal, where a Chinese character takes two columns.
    """
    widths = [max(map(display_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - display_width(cell))
            padded.append(padding + cell if index else cell + padding)
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def display_width(text: str) -> int:
    """Number of columns of a text on a terminal."""
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me", "Cf")  # accents, joiners
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def number(value: float) -> str:
    """A figure with at least three digits: 1,234,567, 123, 12.3, 1.23, 0.123."""
    size = abs(value)
    digits = 0 if size >= 100 or isinstance(value, int) else 1 if size >= 10 else 2
    return f"{value:,.{digits if size >= 1 or isinstance(value, int) else 3}f}"


def _words(name: str) -> str:
    return name.replace("_", " ")
