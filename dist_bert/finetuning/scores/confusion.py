"""Draws the confusion matrix of a classification."""

from pathlib import Path

import numpy as np

from dist_bert.common.pictures import MAX_ROWS, Panel, lacking_characters, write_tables
from dist_bert.finetuning.scores.result import Scores
from dist_bert.finetuning.scores.text import printable


def write_confusion(path: str | Path, title: str, scores: Scores) -> list[str]:
    """Draws true classes (rows) against predicted ones (columns), as a PNG file.

    Colours are shares of a row, numbers are counts. If there are more classes than a picture can
    show, it has those with the most errors.

    Args:
        path: of the PNG file.
        title: shown above the picture.
        scores: of a classification with one label.

    Returns:
        Lines about omissions of the picture: classes that are left out, and names that no installed
        font has, which are replaced by their numbers.
    """
    assert scores.confusion is not None
    counts, notes = scores.confusion, []
    names = [printable(c.name) for c in scores.per_class]
    shown = np.arange(len(names))
    if len(names) > MAX_ROWS:
        num_mistakes = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        shown = np.sort(np.argsort(-num_mistakes, kind="stable")[:MAX_ROWS])
        notes.append(
            f"{path}: shows the {MAX_ROWS} classes with the most errors, of {len(names):,}"
        )
    lacking = set(lacking_characters("".join(names)))
    unknown = [index for index in shown if lacking & set(names[index])]
    if unknown:
        told = ", ".join(f"{index + 1} = {names[index]}" for index in unknown)
        notes.append(
            f"{path}: no installed font has all characters of {len(unknown)} names, shown as"
            f" numbers: {told}; install a font, for Chinese e.g. apt-get install fonts-noto-cjk"
        )
    labels = [str(i + 1) if i in unknown else names[i] for i in shown]
    totals = counts.sum(axis=1)
    square = counts[np.ix_(shown, shown)]
    panel = Panel(
        title="",
        values=square / np.maximum(totals[shown], 1)[:, None],
        column_labels=labels,
        row_axis="true",
        column_axis="predicted",
        texts=[[f"{count:,}" if count else "" for count in row] for row in square],
    )
    rows = [f"{label}  ({total:,})" for label, total in zip(labels, totals[shown], strict=True)]
    write_tables(
        path, title, rows, [panel], low=0.0, high=1.0, bar_label="share of the row's examples"
    )
    return notes
