"""Reads parquet files, a few MiB of rows at a time. Not for: meaning of fields (`records`)."""

import contextlib
from collections.abc import Iterator
from typing import Any

from data_prep.readers.records import documents_of, language_fields, text_fields
from data_prep.readers.source import (
    MAX_RECORD_BYTES,
    Document,
    Source,
    magic_bytes,
    missing_package,
    too_long,
)
from dist_bert.common.errors import UserError

_MAGIC = b"PAR1"
_BUFFER_BYTES = 1 << 20  # of a column in the file; by default, all of a row group's
_BATCH_BYTES = 4 << 20  # of unpacked text in memory, about
_MAX_BATCH_BYTES = 64 << 20  # likewise, if rows repeat values longer than the average row
_MAX_BATCH_ROWS = 4_096
_PAGE_HEADER_BYTES = 16  # enough for its second number
_TEXT_TYPES = frozenset(kind + name for name in ("string", "binary") for kind in ("", "large_")) | {
    "string_view",
    "binary_view",
}


def is_parquet(path: str) -> bool:
    """Whether a file is one, by its first bytes.

    Raises:
        UserError: it cannot be read.
    """
    return magic_bytes(path).startswith(_MAGIC)


def row_group_starts(path: str) -> list[int]:
    """First bytes of the row groups, ascending: where the file can be cut into parts.

    Raises:
        UserError: the file cannot be read, or pyarrow is not installed.
    """
    with _opened(path) as file:
        return sorted(_starts(file.metadata))


def rows(source: Source) -> Iterator[Document]:
    """Yields each row as a document. Of a part, reads the row groups that begin in it.

    Raises:
        UserError: the file cannot be read, has no column of text, has a row that is longer than a
            record may be, or pyarrow is not installed.
    """
    stop = source.part.start + source.part.bytes
    with _opened(source.path) as file:
        text = _text_column(source, file.schema_arrow)
        language = _first_column(language_fields(source), file.schema_arrow)
        names = [text] if language is None else [text, language]
        number = 0  # of the row in the file
        for group, start in enumerate(_starts(file.metadata)):
            metadata = file.metadata.row_group(group)
            if not source.part.start <= start < stop:
                number += metadata.num_rows
                continue
            batches = file.iter_batches(
                batch_size=_batch_rows(source, metadata, text, number),
                row_groups=[group],
                columns=names,
                use_threads=False,  # the other cores have ranks of their own
            )
            for batch in batches:
                for values in zip(*(_values(batch, name) for name in names), strict=True):
                    number += 1
                    fields = dict(zip(names, values, strict=True))
                    yield from _documents(fields, source, number)


def text_rows(source: Source) -> Iterator[str]:
    """The texts of the rows.

    Raises:
        UserError: as for `rows`.
    """
    for document in rows(source):
        yield document.text


def only_text_column(path: str) -> str | None:
    """Name of a file's only column, if that holds text; otherwise None.

    Raises:
        UserError: the file cannot be read, or pyarrow is not installed.
    """
    with _opened(path) as file:
        schema = file.schema_arrow
        return schema.names[0] if len(schema.names) == 1 and _is_text(schema.types[0]) else None


def _documents(fields: dict[str, Any], source: Source, number: int) -> Iterator[Document]:
    """The document of a row, or none if it is bad."""
    source.tally.num_records += 1
    for name, value in fields.items():
        if isinstance(value, str | bytes) and len(value) > MAX_RECORD_BYTES:
            raise too_long(source.path, f"row {number}")
        if isinstance(value, bytes):
            source.tally.count_bad("not_utf8", f"row {number}: {name} is not UTF-8")
            fields[name] = value.decode(errors="replace")
    yield from documents_of(fields, source, f"row {number}:")


def _batch_rows(source: Source, metadata: Any, name: str, number: int) -> int:
    """Number of rows of a row group to read at a time.

    Raises:
        UserError: its rows are too long.
    """
    columns = (metadata.column(i) for i in range(metadata.num_columns))
    column = next(column for column in columns if column.path_in_schema == name)
    row_bytes = column.total_uncompressed_size // max(metadata.num_rows, 1)
    if row_bytes > MAX_RECORD_BYTES:
        raise too_long(source.path, f"one of the rows from {number + 1} on")
    largest = _dictionary_bytes(source.path, column)  # a few bytes per row refer to such a text
    rows = min(_BATCH_BYTES // max(row_bytes, 1), _MAX_BATCH_BYTES // max(largest, 1))
    return min(max(rows, 1), _MAX_BATCH_ROWS)


def _dictionary_bytes(path: str, column: Any) -> int:
    """Unpacked size of the page with the texts that rows repeat, 0 for none.

    The second field of thrift's compact PageHeader (parquet-format, parquet.thrift).
    """
    offset = column.dictionary_page_offset
    if not offset or offset < 0:
        return 0
    with open(path, "rb") as file:
        file.seek(offset)
        header = file.read(_PAGE_HEADER_BYTES)
    number, shift = 0, 0
    for byte in header[3:]:  # after the type, which takes a byte, and this field's header
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return number >> 1  # zigzag


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise missing_package(path, "a parquet file", "pyarrow") from None
    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        problem = str(error).split("\n", 1)[0].rstrip(". ")
        raise UserError(
            f"{path}: is damaged, cut off or not a parquet file ({problem}); fetch it again"
        ) from None


def _starts(metadata: Any) -> list[int]:
    """First byte of each row group, in their order."""
    starts = []
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(0)
        offsets = (column.dictionary_page_offset, column.data_page_offset)
        starts.append(min(offset for offset in offsets if offset))  # None or 0: no such page
    return starts


def _text_column(source: Source, schema: Any) -> str:
    names = text_fields(source)
    column = _first_column(names, schema)
    if column is None:
        raise UserError(
            f"{source.path}: has no column {' or '.join(names)}; name the one with the text with"
            f" --text_field ({', '.join(schema.names)})"
        )
    if schema.names.count(column) > 1:
        raise UserError(
            f"{source.path}: has {schema.names.count(column)} columns named {column}; rename all"
            " but one"
        )
    column_type = _column_type(schema, column)
    if not _is_text(column_type):
        raise UserError(
            f"{source.path}: column {column} is of type {column_type}, not string; name the one"
            f" with the text with --text_field ({', '.join(schema.names)})"
        )
    return column


def _is_text(column_type: Any) -> bool:
    """Whether a column holds strings, or bytes that may be UTF-8."""
    value_type = getattr(column_type, "value_type", column_type)  # of a dictionary
    return str(value_type) in _TEXT_TYPES


def _first_column(names: tuple[str, ...], schema: Any) -> str | None:
    return next((name for name in names if _column_type(schema, name) is not None), None)


def _column_type(schema: Any, name: str) -> Any:
    """Arrow's type of a column or of a field inside one, None if there is none."""
    if name in schema.names:
        return schema.types[schema.names.index(name)]
    first, *parts = name.split(".")
    found: Any = schema.types[schema.names.index(first)] if first in schema.names else None
    for part in parts:
        is_there = hasattr(found, "get_field_index") and found.get_field_index(part) >= 0
        found = found.field(part).type if is_there else None
    return found


def _values(batch: Any, name: str) -> list[Any]:
    """The values of a column or of a field inside one; bytes for text that is not UTF-8."""
    from pyarrow import compute, large_binary

    first, *parts = [name] if name in batch.schema.names else name.split(".")
    column = batch.column(batch.schema.names.index(first))
    if parts:
        column = compute.struct_field(column, parts)
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(large_binary()).to_pylist()
    return [_decoded(value) if isinstance(value, bytes) else value for value in values]


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
