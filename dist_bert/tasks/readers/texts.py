"""One or two texts with labels: tables, JSON lines and parallel files."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dist_bert.errors import UserError
from dist_bert.tasks.examples import TextExample
from dist_bert.tasks.readers.labels import LabelRule
from dist_bert.tasks.readers.read_config import ReadConfig
from dist_bert.tasks.readers.source import (
    first_lines,
    is_json_lines,
    lines_of,
    read_text,
    suffix_of,
    whole_characters,
)
from dist_bert.tasks.readers.tables import (
    LABEL,
    TEXT,
    TEXT_B,
    Row,
    Table,
    json_lines,
    parts_of,
    table,
)
from dist_bert.tasks.readers.tally import RowError, Tally

_ENOUGH_ROWS = 20  # to tell whether what stands in a column is labels
_SEPARATORS = {"tsv": "\t", "csv": ","}


def read_texts(
    task: str,
    path: str,
    config: ReadConfig,
    names: tuple[str, ...] | None,
    is_labelled: bool,
    tally: Tally,
) -> tuple[list[TextExample], str]:
    """Reads the examples of a classification.

    Args:
        task: pair_classification or sentence_classification.
        path: of a file, or of parallel files, joined by commas.
        config: how to read it.
        names: of the label list, if there is one.
        is_labelled: whether labels are wanted.
        tally: counts what is bad.

    Returns:
        The examples, and what the file was read as.
    """
    parts = parts_of(task == "pair_classification", is_labelled)
    can_be_parallel = config.format in ("auto", "parallel") and not os.path.exists(path)
    paths = path.split(",") if can_be_parallel else [path]
    if len(paths) > 1 or config.format == "parallel":
        found = _parallel(paths, parts)
    else:
        text = read_text(path)
        layout = config.format
        if layout == "auto":
            layout = _layout_of(text, path, len(parts) > 1)
        if layout == "jsonl":
            found = json_lines(text, path, parts, config)
        else:
            found = table(text, path, _SEPARATORS[layout], parts, config)
    examples = []
    rule = LabelRule(names, config.label_separator)
    for line, row in found.rows:
        tally.num_rows += 1
        place = f"{paths[0]}, line {line}"
        try:
            example = _example(row, place, rule, config.drop_several_labels)
        except RowError as bad:
            tally.count_bad(place, bad)
            continue
        if config.drop_several_labels and len(example.labels or ()) > 1:
            tally.notes["left out for its several labels"] += 1
            continue
        if example.labels == ():
            tally.note("has none of the labels", place)
        examples.append(example)
    if is_labelled and names is None:
        _check_labels(examples, path, config, found.has_header)
    return examples, found.layout


def _layout_of(text: str, path: str, needs_columns: bool) -> str:
    """tsv, csv or jsonl, by most of the first lines.

    Raises:
        UserError: they are none of these.
    """
    if is_json_lines(text, path):
        return "jsonl"
    if text.lstrip().startswith("[{"):
        raise UserError(
            f"{path}: is a JSON list; JSON lines are wanted, one object a line (jq -c '.[]' FILE"
            " makes them)"
        )
    lines = first_lines(text)
    for layout, separator in _SEPARATORS.items():
        # a comma alone tells nothing of lines that may be a text each
        is_told = layout == "tsv" or needs_columns or suffix_of(path) == ".csv"
        if is_told and 2 * sum(separator in line for line in lines) > len(lines):
            return layout
    if needs_columns:
        raise UserError(
            f"{path}: most of its lines have neither a tab nor a comma, so they have one column;"
            " give --format, or parallel files as texts,labels"
        )
    return "tsv"


def _parallel(paths: Sequence[str], parts: Sequence[str]) -> Table:
    """A line of each file is an example.

    Raises:
        UserError: there are too many or too few files, or their lines differ in number.
    """
    has_ignored_labels = LABEL not in parts and len(paths) == len(parts) + 1
    if len(paths) != len(parts) and not has_ignored_labels:
        told = ",".join({TEXT: "TEXTS", TEXT_B: "SECOND_TEXTS", LABEL: "LABELS"}[p] for p in parts)
        raise UserError(
            f"{','.join(paths)}: {len(paths)} parallel files are given, {len(parts)} are wanted:"
            f" {told}"
        )
    columns = [lines_of(read_text(path)) for path in paths]
    if len(set(map(len, columns))) > 1:
        told = ", ".join(
            f"{path} has {len(lines):,}" for path, lines in zip(paths, columns, strict=True)
        )
        raise UserError(f"parallel files must have equal numbers of lines: {told}")
    rows: list[tuple[int, Row]] = [
        (number, dict(zip(parts, fields, strict=False)))
        for number, fields in enumerate(zip(*columns, strict=True), 1)
    ]
    return Table(rows, f"{len(paths)} parallel files", True)


def _example(row: Row, place: str, rule: LabelRule, is_single: bool) -> TextExample:
    if isinstance(row, RowError):
        raise row
    labels = rule.labels_of(row[LABEL]) if LABEL in row else None
    if labels == () and (is_single or not rule.separator):
        raise RowError("empty label")
    if len(labels or ()) > 1 and not (is_single or rule.separator):  # a list of JSON
        told = (
            f"has labels {', '.join(labels or ())}; give --label_separator or --drop_several_labels"
        )
        raise RowError("several labels", told)
    text_b = _text(row[TEXT_B]) if TEXT_B in row else None
    return TextExample(_text(row[TEXT]), text_b, labels, place)


def _text(value: Any) -> str:
    if not isinstance(value, str | None):
        raise RowError("text is no string", f"text {value!r} is no string")
    text = whole_characters(value or "").strip()
    if not text:
        raise RowError("empty text")
    return text


def _check_labels(
    examples: Sequence[TextExample], path: str, config: ReadConfig, has_header: bool
) -> None:
    """Refuses what looks like a header, texts or several labels, and was taken for a label."""
    counts = Counter(label for example in examples for label in example.labels or ())
    if len(examples) < _ENOUGH_ROWS:
        return
    joined = [n for n in counts if "," in n and all(p.strip() in counts for p in n.split(","))]
    if joined and not config.label_separator:
        raise UserError(
            f"{path}: label {joined[0]!r} is made of other labels; give --label_separator , or list"
            " all labels in a file (--labels) if it is one"
        )
    if has_header or config.header == "false":
        return
    texts = {(example.text_a, example.text_b) for example in examples}
    if not config.text_column and 10 * len(texts) < len(examples):
        raise UserError(
            f"{path}: what was taken for texts repeats itself ({len(texts):,} different in"
            f" {len(examples):,} rows); give --text_column"
        )
    if not config.label_column and 2 * len(counts) > len(examples):
        raise UserError(
            f"{path}: what was taken for labels hardly repeats itself ({len(counts):,} different in"
            f" {len(examples):,} rows); give --label_column and --text_column"
        )
    rare = [label for label, number in counts.items() if number == 1]
    if len(rare) == 1 and examples[0].labels == (rare[0],):
        raise UserError(
            f"{examples[0].name}: its label {rare[0]!r} stands in no other row; give"
            " --header true if this row names the columns, else --header false"
        )
