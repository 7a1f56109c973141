"""Formats scores as tables, for terminals and in Markdown. Not for: computing figures."""

import unicodedata
from collections.abc import Sequence

from dist_bert.common.text_tables import aligned
from dist_bert.finetuning.scores.result import Scores

_CLASS_HEAD = ["class", "precision", "recall", "f1", "support"]


def scores_as_text(scores: Scores) -> str:
    """The values, and below them the classes, for a terminal."""
    tables = [aligned(rows) for rows in _tables(scores)]
    return "\n\n".join(tables)


def scores_as_markdown(scores: Scores) -> str:
    """The same as Markdown tables."""
    return "\n\n".join(markdown_table(rows) for rows in _tables(scores))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Args:
        rows: of equal length; the first one names the columns; all columns except the first are
            figures.
    """
    head, *others = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *others))


def _tables(scores: Scores) -> list[list[list[str]]]:
    tables = [[["score", "value"], *([name, form(v)] for name, v in scores.values.items())]]
    if scores.per_class:
        rows = [
            [printable(c.name), *map(form, (c.precision, c.recall, c.f1)), f"{c.support:,}"]
            for c in scores.per_class
        ]
        tables.append([_CLASS_HEAD, *rows])
    return tables


def form(value: float) -> str:
    """A score in the format used everywhere."""
    return f"{value:.4f}"


def printable(text: str) -> str:
    """A name on one line: control and right-to-left formatting characters become spaces."""
    return "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
