"""One or two texts with labels: tables, JSON lines and parallel files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_bert.errors import UserError
from dist_bert.tasks.examples import TextExample
from dist_bert.tasks.readers.labels import LabelRule
from dist_bert.tasks.readers.read_config import ReadConfig
from dist_bert.tasks.readers.source import (
    json_object,
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

_NUM_LOOKED_AT = 100  # lines that tell a layout
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
    paths = [path] if Path(path).exists() else path.split(",")
    if len(paths) > 1 or config.format == "parallel":
        found = _parallel(paths, parts)
    else:
        text = read_text(path)
        layout = config.format
        if layout == "auto":
            layout = _layout_of(text, path, is_labelled)
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
    if is_labelled and names is None and config.header == "auto" and not found.has_header:
        _check_guesses(examples, path, bool(config.label_column))
    return examples, found.layout


def _layout_of(text: str, path: str, is_labelled: bool) -> str:
    """tsv, csv or jsonl, by most of the first lines.

    Raises:
        UserError: they are none of these.
    """
    lines = [line for line in lines_of(text)[:_NUM_LOOKED_AT] if line.strip()]
    if suffix_of(path) == ".jsonl" or json_object(lines[0]) is not None:
        return "jsonl"
    if text.lstrip().startswith("[{"):
        raise UserError(
            f"{path}: is a JSON list; JSON lines are wanted, one object a line (jq -c '.[]' FILE"
            " makes them)"
        )
    for layout, separator in _SEPARATORS.items():
        # a comma alone tells nothing of lines of text that have no labels
        is_told = layout == "tsv" or is_labelled or suffix_of(path) == ".csv"
        if is_told and 2 * sum(separator in line for line in lines) > len(lines):
            return layout
    if is_labelled:
        raise UserError(
            f"{path}: most of its lines have neither a tab nor a comma, so there is no label; give"
            " --format, or parallel files as texts,labels"
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
    if labels == () and is_single:
        raise RowError("empty label")
    text_b = _text(row[TEXT_B]) if TEXT_B in row else None
    return TextExample(_text(row[TEXT]), text_b, labels, place)


def _text(value: Any) -> str:
    if not isinstance(value, str | None):
        raise RowError("text is no string", f"text {value!r} is no string")
    text = whole_characters(value or "").strip()
    if not text:
        raise RowError("empty text")
    return text


def _check_guesses(examples: Sequence[TextExample], path: str, is_label_column_known: bool) -> None:
    """Refuses what looks like a header taken for an example, or like texts taken for labels."""
    counts = Counter(label for example in examples for label in example.labels or ())
    if len(examples) < _ENOUGH_ROWS:
        return
    if not is_label_column_known and 2 * len(counts) > len(examples):
        raise UserError(
            f"{path}: what was taken for labels has {len(counts):,} different values in"
            f" {len(examples):,} rows; give --label_column and --text_column"
        )
    first, *others = examples[0].labels or ("",)
    if not others and [label for label, n in counts.items() if n == 1] == [first]:
        raise UserError(
            f"{examples[0].name}: its label {first!r} stands in no other row; give --header true if"
            " this row names the columns, else --header false"
        )
