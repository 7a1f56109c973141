"""Reads rows of TSV, CSV and JSON as fields by part.

`columns` assigns columns to parts. Not for: the meaning of labels (`labels`).
"""

import csv
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.finetuning.readers.columns import (
    Wanted,
    columns_by_name,
    find_columns,
    has_usual_names,
    told,
)
from dist_bert.finetuning.readers.read_config import SEPARATORS, ReadConfig
from dist_bert.finetuning.readers.source import (
    first_lines,
    json_records,
    lines_of,
    shown,
    suffix_of,
)
from dist_bert.finetuning.readers.tally import RowError, Tally, wrong_columns

Row = dict[str, Any] | RowError  # part -> field
_Cells = list[str] | RowError

_LONGEST_FIELD = 1 << 30  # characters; the csv module's default is 131,072
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?(?=\n)', re.IGNORECASE)  # the first one, for Excel
_QUOTED_PART = re.compile(r'"(?:[^"]|"")*"')
_ESCAPED_QUOTE = re.compile(r'(?<!\\)((?:\\\\)*)\\"')
_ENOUGH_INNER_ROWS = 3  # lines in a field that look like rows: a quote is missing


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows with their places, and the layout that was read.

    `is_named`: each part's field is from a setting or a usual name, none by position.
    """

    rows: list[tuple[str, Row]]
    layout: str
    is_named: bool


def separator_of(text: str, path: str, wanted: Wanted, config: ReadConfig) -> str | None:
    """The column separator of a table; None if lines seem to have one column.

    Raises:
        UserError: it is ambiguous.
    """
    if config.separator != "auto":
        return SEPARATORS[config.separator]
    if found := _SEPARATOR_LINE.match(text):
        return found[1]
    lines = first_lines(text)
    is_comma = suffix_of(path) == ".csv" or config.format == "csv"
    if config.format != "csv" and 2 * sum("\t" in line for line in lines) > len(lines):
        return "\t"
    if not (len(wanted.parts) > 1 or is_comma):
        return None  # a lone comma is not evidence: each line may be a text
    lines = _QUOTED_PART.sub("", "\n".join(lines)).split("\n")
    candidates = [
        separator
        for separator in (",", ";", "|")
        if 2 * sum(separator in line for line in lines) > len(lines)
    ]
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    named = [c for c in candidates if has_usual_names(lines[0].split(c), wanted)]
    if len(named) == 1:
        return named[0]
    # Commas in texts vary in number between lines.
    regular = [c for c in candidates if len({line.count(c) for line in lines}) == 1]
    if len(regular) == 1:
        return regular[0]
    names = ", ".join(name for name, s in SEPARATORS.items() if s in candidates)
    raise UserError(
        f"{path}: its columns may be separated by any of {names}; give one as --separator"
    )


def table(
    text: str, path: str, separator: str, wanted: Wanted, config: ReadConfig, tally: Tally
) -> Table:
    """Rows of fields with a separator between them.

    Raises:
        UserError: a column is missing, or a quote is not closed.
    """
    is_quoted = config.quoting == "true" or (config.quoting == "auto" and separator != "\t")
    if line_of_excel := _SEPARATOR_LINE.match(text):
        text = text[line_of_excel.end() :]  # leaves a blank line, so line numbers stay correct
    kind = {"\t": "TSV", ",": "CSV"}.get(separator, f"CSV with {separator!r}")
    if is_quoted:
        lines, how = _unquoted(text, separator, path)
        kind += how
    else:
        lines = list(_plain(text, separator))
    lines = _without_frame(lines)
    rows = [cells for _, cells in lines if not isinstance(cells, RowError)]
    sizes = Counter(map(len, rows))
    num_columns = sizes.most_common(1)[0][0] if sizes else 0
    columns = find_columns(rows, num_columns, wanted, config, path)
    if columns.has_header:
        num_columns = len(columns.names)
        is_first = next(i for i, (_, cells) in enumerate(lines) if cells is rows[0])
        del lines[is_first]
        layout = f"{kind} with header {','.join(map(shown, columns.names))}"
    else:
        layout = f"{kind} without header, {num_columns} columns"
    found: list[tuple[str, Row]] = []
    for line, cells in lines:
        place = f"{path}, line {line}"
        if isinstance(cells, RowError):
            found.append((place, cells))
        elif len(cells) != num_columns:
            found.append((place, wrong_columns(len(cells), num_columns)))
        else:
            _note_swallowed_rows(cells, separator, place, tally)
            found.append((place, {p: cells[index] for p, index in columns.index_of.items()}))
    return Table(found, f"{layout}; {columns.told()}", columns.is_named)


def json_rows(text: str, path: str, wanted: Wanted, config: ReadConfig) -> Table:
    """JSON objects: one per line, or a list of them.

    Raises:
        UserError: no object has a field for a part.
    """
    records = json_records(text, path)
    names = list(dict.fromkeys(name for _, record in records for name in record or ()))
    if not names:
        raise UserError(f"{path}: no line is a JSON object; give --format for another layout")
    index_of, is_named = columns_by_name(names, wanted, config, path)
    fields = {part: names[index] for part, index in index_of.items()}
    rows: list[tuple[str, Row]] = []
    for place, record in records:
        if record is None:
            rows.append((place, RowError("no JSON object")))
        else:  # null means no value; a missing field is empty
            rows.append((place, {part: record.get(name, "") for part, name in fields.items()}))
    is_list = bool(records) and records[0][0].endswith("]")
    kind = "JSON list" if is_list else "JSON lines"
    return Table(rows, f"{kind}; {told(fields, list(fields.values()))}", is_named)


def _without_frame(lines: list[tuple[int, _Cells]]) -> list[tuple[int, _Cells]]:
    """Without blank lines at both ends."""

    def is_blank(cells: _Cells) -> bool:
        return isinstance(cells, list) and not any(map(str.strip, cells)) and len(cells) < 2

    begin, end = 0, len(lines)
    while begin < end and is_blank(lines[begin][1]):
        begin += 1
    while begin < end and is_blank(lines[end - 1][1]):
        end -= 1
    return lines[begin:end]


def _plain(text: str, separator: str) -> Iterator[tuple[int, _Cells]]:
    for number, line in enumerate(lines_of(text), 1):
        yield number, line.split(separator)


def _unquoted(text: str, separator: str, path: str) -> tuple[list[tuple[int, _Cells]], str]:
    r"""Rows of CSV with quotes escaped by doubling (RFC 4180), or else by backslashes.

    Returns:
        The rows, and a description of unusual escapes.
    """
    readings = [(text, "")]
    if '\\"' in text:  # uses the one with fewer bad rows; a text may end in a backslash
        escaped = _ESCAPED_QUOTE.sub(r'\1""', text)
        readings.append((escaped, " whose quotes are escaped by backslashes"))
    problem: UserError | None = None
    best: tuple[int, list[tuple[int, _Cells]], str] | None = None
    for reading, how in readings:
        try:
            rows = _quoted(reading, separator, path)
        except UserError as error:
            problem = problem or error
            continue
        sizes = Counter(len(cells) for _, cells in rows if not isinstance(cells, RowError))
        num_bad = len(rows) - max(sizes.values(), default=0)
        if best is None or num_bad < best[0]:
            best = num_bad, rows, how
    if best is None:
        assert problem is not None
        raise problem
    return best[1:]


def _quoted(text: str, separator: str, path: str) -> list[tuple[int, _Cells]]:
    """Rows of CSV with the numbers of their first lines.

    Raises:
        UserError: a quote is never closed.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    # A carriage return is white space inside a text, but an error for the csv module.
    lines = [f"{line}\n" for line in lines_of(text.rstrip("\n").replace("\r", " "))]
    rows: list[tuple[int, _Cells]] = []
    begin = 0  # line from 0 at which the reader began
    while begin < len(lines):
        rest = map(lines.__getitem__, range(begin, len(lines)))  # a slice would pass all before it
        reader = csv.reader(rest, delimiter=separator, strict=True)
        first_line = begin + 1
        try:
            for cells in reader:
                rows.append((first_line, cells))
                first_line = begin + reader.line_num + 1
            break
        except csv.Error as error:
            last_line = begin + reader.line_num
            if "unexpected end of data" in str(error):
                raise UserError(
                    f"{path}, line {first_line}: a quote that is opened here is never closed; close"
                    " it, or give --quoting false if quotes are literal"
                ) from None
            detail = f"lines {first_line} to {last_line} are not a row of CSV ({error})"
            rows.append((first_line, RowError("quotes do not match", detail)))
            begin = first_line  # the next line: a missing quote costs only one row
    return rows


def _note_swallowed_rows(cells: Sequence[str], separator: str, place: str, tally: Tally) -> None:
    """Notes a field with lines that look like rows of the file, which a missing quote causes."""
    for cell in cells:
        inner = cell.split("\n")[1:-1]  # the first and the last line may be of this row
        if len(inner) >= _ENOUGH_INNER_ROWS and all(
            line.count(separator) == len(cells) - 1 for line in inner
        ):
            tally.note(
                "a quoted field holds lines that look like rows",
                place,
                f"a quoted field holds {len(inner):,} lines that look like rows; is a quote"
                " missing? If quotes are literal, give --quoting false",
            )
