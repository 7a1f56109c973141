"""Reads one or two texts with labels: tables, JSON lines and parallel files."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.finetuning.examples import PAIR_TASKS, REGRESSION_TASKS, TextExample
from dist_bert.finetuning.readers.columns import LABEL, TEXT, TEXT_B, Wanted
from dist_bert.finetuning.readers.labels import LabelRule, are_scores, note_alike, number_of
from dist_bert.finetuning.readers.read_config import ReadConfig
from dist_bert.finetuning.readers.source import (
    is_json,
    lines_of,
    read_text,
    shown,
    whole_characters,
)
from dist_bert.finetuning.readers.tables import Row, Table, json_rows, separator_of, table
from dist_bert.finetuning.readers.tally import RowError, Tally

_ENOUGH_ROWS = 20  # to detect whether a column has labels


def read_texts(
    task: str,
    path: str,
    config: ReadConfig,
    names: tuple[str, ...] | None,
    is_labelled: bool,
    tally: Tally,
) -> tuple[list[TextExample], str]:
    """Reads the examples of a text classification or regression task.

    Args:
        task: with one or two texts.
        path: of a file, or of parallel files, joined by commas.
        config: how to read it.
        names: of the label list, if there is one.
        is_labelled: whether to read labels.
        tally: counts bad rows.

    Returns:
        The examples, and the layout that was read.
    """
    is_score = task in REGRESSION_TASKS
    wanted = Wanted(task in PAIR_TASKS, is_labelled, is_score)
    can_be_parallel = config.format in ("auto", "parallel") and not os.path.exists(path)
    paths = path.split(",") if can_be_parallel else [path]
    if len(paths) > 1 or config.format == "parallel":
        found = _parallel(paths, wanted)
    else:
        found = _rows(path, wanted, config, tally)
    values = [row[LABEL] for _, row in found.rows if isinstance(row, dict) and LABEL in row]
    rule = LabelRule.of(values, names, config.label_separator, is_score)
    examples = []
    for place, row in found.rows:
        tally.num_rows += 1
        try:
            example = _example(row, place, rule, config, is_score)
        except RowError as bad:
            tally.count_bad(place, bad)
            continue
        if isinstance(row, dict) and LABEL in row and rule.is_missing(row[LABEL]):
            tally.note(f"no label ({', '.join(sorted(rule.missing))}), left out", place)
        elif config.drop_several_labels and len(example.labels or ()) > 1:
            tally.notes["left out for its several labels"] += 1
        else:
            examples.append(example)
            if example.labels == ():
                tally.note("has none of the labels", place)
    if is_labelled and not is_score:
        _note_labels(examples, path, rule, values, tally)
        if names is None:
            _check_labels(examples, path, config, found.is_named)
    return examples, found.layout


def _rows(path: str, wanted: Wanted, config: ReadConfig, tally: Tally) -> Table:
    """The rows of one file.

    Raises:
        UserError: it has no layout of texts.
    """
    text = read_text(path)
    if config.format == "jsonl" or (config.format == "auto" and is_json(text, path)):
        return json_rows(text, path, wanted, config)
    separator = separator_of(text, path, wanted, config)
    if separator is None and config.format == "auto" and len(wanted.parts) > 1:
        raise UserError(
            f"{path}: most of its lines have neither a tab nor a comma, semicolon or bar, so they"
            " have one column; give --format, --separator, or parallel files as texts,labels"
        )
    default = "," if config.format == "csv" else "\t"
    return table(text, path, separator or default, wanted, config, tally)


def _parallel(paths: Sequence[str], wanted: Wanted) -> Table:
    """Reads files where line i of each forms an example.

    Raises:
        UserError: there are too many or too few files, or their lines differ in number.
    """
    parts = wanted.parts
    has_ignored_labels = LABEL not in parts and len(paths) == len(parts) + 1
    if len(paths) != len(parts) and not has_ignored_labels:
        told = ",".join({TEXT: "TEXTS", TEXT_B: "SECOND_TEXTS", LABEL: "LABELS"}[p] for p in parts)
        raise UserError(
            f"{','.join(paths)}: {len(paths)} parallel files are given, {len(parts)} are expected:"
            f" {told}"
        )
    columns = [lines_of(read_text(path)) for path in paths]
    if len(set(map(len, columns))) > 1:
        told = ", ".join(
            f"{path} has {len(lines):,}" for path, lines in zip(paths, columns, strict=True)
        )
        raise UserError(f"parallel files must have equal numbers of lines: {told}")
    rows: list[tuple[str, Row]] = [
        (f"{paths[0]}, line {number}", dict(zip(parts, fields, strict=False)))
        for number, fields in enumerate(zip(*columns, strict=True), 1)
    ]
    return Table(rows, f"{len(paths)} parallel files", True)


def _example(
    row: Row, place: str, rule: LabelRule, config: ReadConfig, is_score: bool
) -> TextExample:
    if isinstance(row, RowError):
        raise row
    labels, target = None, None
    if LABEL in row and not rule.is_missing(row[LABEL]):
        if is_score:
            target = number_of(row[LABEL])
        else:
            labels = _labels(row[LABEL], rule, config.drop_several_labels)
    text_b = _text(row[TEXT_B]) if TEXT_B in row else None
    return TextExample(_text(row[TEXT]), text_b, labels, place, target)


def _labels(value: Any, rule: LabelRule, is_single: bool) -> tuple[str, ...]:
    labels = rule.labels_of(value)
    if labels == () and (is_single or not rule.separator):
        raise RowError("empty label")
    if len(labels) > 1 and not (is_single or rule.separator):  # a list of JSON
        names = ", ".join(map(shown, labels))
        told = f"has labels {names}; give --label_separator or --drop_several_labels"
        raise RowError("several labels", told)
    return labels


def _text(value: Any) -> str:
    if not isinstance(value, str | None):
        raise RowError("text is no string", f"text {value!r} is not a string")
    text = whole_characters(value or "").strip()
    if not text:
        raise RowError("empty text")
    return text


def _note_labels(
    examples: Sequence[TextExample],
    path: str,
    rule: LabelRule,
    values: Sequence[Any],
    tally: Tally,
) -> None:
    """Notes labels that were converted, or may have another meaning."""
    names = [name for example in examples for name in example.labels or ()]
    note_alike(names, path, tally)
    if rule.names is None and {"0", "1", "-1"} == set(names):
        tally.note(
            "-1 is taken for a class",
            path,
            "label -1, next to 0 and 1, is taken for a class; if it means no label, list the two"
            " classes in a file (--labels)",
        )
    if rule.names is None and rule.are_whole:
        num_floats = sum(map(rule.is_float, values))
        if num_floats:
            tally.notes["label written as 1.0 is the class 1"] += num_floats


def _check_labels(
    examples: Sequence[TextExample], path: str, config: ReadConfig, is_named: bool
) -> None:
    """Rejects labels that look like a header, texts, scores or several labels."""
    counts = Counter(label for example in examples for label in example.labels or ())
    if are_scores(counts):
        shown = next(label for label in counts if are_scores([label]))
        raise UserError(
            f"{path}: its labels are numbers such as {shown}; to predict them give --task"
            " sentence_regression or pair_regression, or list them in a file (--labels) if they are"
            " classes"
        )
    if len(examples) < _ENOUGH_ROWS:
        return
    joined = [n for n in counts if "," in n and all(p.strip() in counts for p in n.split(","))]
    if joined and not config.label_separator:
        raise UserError(
            f"{path}: label {joined[0]!r} joins other labels; give --label_separator , or list"
            " all labels in a file (--labels) if it is one"
        )
    if is_named or config.header == "false":
        return
    texts = {(example.text_a, example.text_b) for example in examples}
    if not config.text_column and 10 * len(texts) < len(examples):
        raise UserError(
            f"{path}: the column read as texts has many repetitions ({len(texts):,} different in"
            f" {len(examples):,} rows); give --text_column"
        )
    if not config.label_column and 2 * len(counts) > len(examples):
        raise UserError(
            f"{path}: the column read as labels has few repetitions ({len(counts):,} different in"
            f" {len(examples):,} rows); give --label_column and --text_column"
        )
    rare = [label for label, number in counts.items() if number == 1]
    if len(rare) == 1 and examples[0].labels == (rare[0],):
        raise UserError(
            f"{examples[0].name}: its label {rare[0]!r} is in no other row; give"
            " --header true if this row names the columns, otherwise --header false"
        )
