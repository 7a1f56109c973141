"""Rows of TSV, CSV and JSON lines, as fields by the part that they play."""

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from dist_bert.errors import UserError
from dist_bert.tasks.readers.read_config import ReadConfig, column_number
from dist_bert.tasks.readers.source import json_object, lines_of
from dist_bert.tasks.readers.tally import RowError, wrong_columns

TEXT, TEXT_B, LABEL = "text_column", "text_b_column", "label_column"  # parts, as settings call them
Row = dict[str, Any] | RowError  # part -> field

# Names that public sets give their columns, in order of preference.
_TEXT_NAMES = (
    *("text", "sentence", "text_a", "sentence1", "content", "review", "question"),
    *("utterance", "query", "tweet", "comment", "comment_text", "title"),
)
_PAIR_NAMES = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("s1", "s2"),
    ("query", "passage"),
)
_LABEL_NAMES = (
    *("label", "gold_label", "labels", "category", "class", "intent", "emotion", "sentiment"),
    *("target", "topic", "is_duplicate", "label_text"),
)
_LONGEST_FIELD = 1 << 30  # characters; the csv module allows 131,072 unless it is told


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows with their places in the file, and what they were read as."""

    rows: list[tuple[int, Row]]  # line from 1
    layout: str
    has_header: bool


def parts_of(is_pair: bool, is_labelled: bool) -> tuple[str, ...]:
    """The parts that an example needs, by the names of their settings."""
    return (TEXT, *([TEXT_B] if is_pair else []), *([LABEL] if is_labelled else []))


def table(text: str, path: str, separator: str, parts: Sequence[str], config: ReadConfig) -> Table:
    """Rows of fields with a separator between them.

    Raises:
        UserError: a column is not there, or a quote is not closed.
    """
    is_quoted = config.quoting == "true" or (config.quoting == "auto" and separator == ",")
    text = text.rstrip("\n")
    lines = list(_quoted(text, separator, path) if is_quoted else _plain(text, separator))
    first = lines[0][1]
    names = [] if isinstance(first, RowError) else [name.strip() for name in first]
    has_header = _has_header(names, parts, config)
    kind = "CSV" if separator == "," else "TSV"
    if has_header:
        lines = lines[1:]
        columns = _named_columns(names, parts, config, path)
        num_columns = len(names)
        layout = f"{kind} with header {','.join(names)}"
    else:
        sizes = Counter(len(cells) for _, cells in lines if not isinstance(cells, RowError))
        num_columns = sizes.most_common(1)[0][0] if sizes else 0
        columns = _numbered_columns(num_columns, parts, config, path)
        layout = f"{kind} without header, {num_columns} columns"
    rows: list[tuple[int, Row]] = []
    for line, cells in lines:
        if isinstance(cells, RowError):
            rows.append((line, cells))
        elif len(cells) != num_columns:
            rows.append((line, wrong_columns(len(cells), num_columns)))
        else:
            rows.append((line, {part: cells[index] for part, index in columns.items()}))
    told = [names[i] if has_header else str(i) for i in columns.values()]
    return Table(rows, f"{layout}; {_told(parts, told)}", has_header)


def json_lines(text: str, path: str, parts: Sequence[str], config: ReadConfig) -> Table:
    """A JSON object a line.

    Raises:
        UserError: the first object has no field for a part.
    """
    records = [
        (number, json_object(line)) for number, line in enumerate(lines_of(text), 1) if line.strip()
    ]
    first = next((record for _, record in records if record is not None), None)
    if first is None:
        raise UserError(f"{path}: no line is a JSON object; give --format for another layout")
    names = list(first)
    columns = {part: names[i] for part, i in _named_columns(names, parts, config, path).items()}
    rows: list[tuple[int, Row]] = []
    for number, record in records:
        if record is None:
            rows.append((number, RowError("no JSON object")))
        else:
            rows.append((number, {part: record.get(name) for part, name in columns.items()}))
    return Table(rows, f"JSON lines; {_told(parts, list(columns.values()))}", True)


def _told(parts: Sequence[str], columns: Sequence[str]) -> str:
    return ", ".join(
        f"{part.removesuffix('_column')}: {name}" for part, name in zip(parts, columns, strict=True)
    )


def _plain(text: str, separator: str) -> Iterator[tuple[int, list[str] | RowError]]:
    for number, line in enumerate(lines_of(text), 1):
        yield number, line.split(separator)


def _quoted(text: str, separator: str, path: str) -> Iterator[tuple[int, list[str] | RowError]]:
    csv.field_size_limit(_LONGEST_FIELD)
    # newline: a carriage return inside of a field is no end of a line
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=separator, strict=True)
    first_line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UserError(
                    f"{path}, line {first_line}: a quote that is opened here is never closed; mend"
                    " it, or give --quoting false where quotes are literal"
                ) from None
            told = f"lines {first_line} to {reader.line_num} are no row of CSV ({error})"
            yield first_line, RowError("quotes do not match", told)
        else:
            yield first_line, cells
        first_line = reader.line_num + 1


def _has_header(names: Sequence[str], parts: Sequence[str], config: ReadConfig) -> bool:
    """Whether the first row names the columns: as told, or because its cells are usual names."""
    if config.header != "auto":
        return config.header == "true"
    chosen = {part: value for part in parts if (value := getattr(config, part))}
    if any(not value.isdecimal() for value in chosen.values()):
        return True
    usual = _usual_columns(names, parts)
    return bool(usual) and usual.keys() | chosen.keys() >= set(parts)


def _usual_columns(names: Sequence[str], parts: Sequence[str]) -> dict[str, int]:
    """Part -> index of its column, for those parts that have one of the usual names."""
    lower = [name.lower() for name in names]
    texts = tuple(part for part in parts if part != LABEL)
    choices = _PAIR_NAMES if TEXT_B in parts else tuple((name,) for name in _TEXT_NAMES)
    labels = tuple((name,) for name in _LABEL_NAMES) if LABEL in parts else ()
    found: dict[str, int] = {}
    for wanted, sets in ((texts, choices), ((LABEL,), labels)):
        chosen = next((names for names in sets if set(names) <= set(lower)), ())
        found.update(zip(wanted, map(lower.index, chosen), strict=False))
    return found


def _named_columns(
    names: Sequence[str], parts: Sequence[str], config: ReadConfig, path: str
) -> dict[str, int]:
    """Part -> index of its column, by settings and usual names."""
    usual = _usual_columns(names, parts)
    columns = {}
    for part in parts:
        value = getattr(config, part)
        if value in names:
            columns[part] = names.index(value)
        elif value.isdecimal():
            columns[part] = column_number(part, value, len(names), path)
        elif value:
            raise UserError(
                f"{path}: has no column {value!r} (--{part}); there are {', '.join(names)}"
            )
        elif part in usual:
            columns[part] = usual[part]
        else:
            raise UserError(
                f"{path}: none of its columns has a usual name for --{part}; name one of"
                f" {', '.join(names)}"
            )
    return columns


def _numbered_columns(
    num_columns: int, parts: Sequence[str], config: ReadConfig, path: str
) -> dict[str, int]:
    """Part -> index of its column, by settings, or the first that is free: of labels, behind."""
    columns: dict[str, int] = {}
    for part in parts:
        if value := getattr(config, part):
            columns[part] = column_number(part, value, num_columns, path)
    for part in parts:
        if part in columns:
            continue
        free = [index for index in range(num_columns) if index not in columns.values()]
        if not free:
            raise UserError(
                f"{path}: has no header of usual names, and of its columns (there are"
                f" {num_columns}) none is left for --{part}; give --format, --header or its number"
            )
        behind = [index for index in free if index > max(columns.values(), default=-1)]
        columns[part] = (behind if part == LABEL and behind else free)[0]
    return {part: columns[part] for part in parts}
