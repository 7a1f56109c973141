"""Reads documents from records with named fields, and from JSON lines."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.readers.source import Document, Source, normal_line_ends, whole_characters

TEXT_FIELDS = ("text", "content")  # in order of preference, if no field is configured
# Likewise; the last one is of OSCAR 23.01.
LANGUAGE_FIELDS = ("language", "lang", "metadata.identification.label")

_WANTED = "expected JSON lines, one object per line"
_MISSING = object()
_JOINT = re.compile("[\ufeff\0]+")  # between concatenated files


def json_lines(source: Source) -> Iterator[Document]:
    """Yields the document of each line, a JSON object."""
    behind = f" after byte {source.part.start:,}" if source.part.start else ""
    for number, line in enumerate(source.lines(), 1):
        if not line.strip():
            continue
        place = f"line {number}{behind}:"
        try:
            records = _values_of(line, source)
        except (ValueError, RecursionError) as error:
            source.tally.count_bad("not_json", f"{place} {_not_json(line, error)}")
            continue
        for record in records:
            if isinstance(record, list):
                source.tally.count_bad(
                    "not_json",
                    f"{place} is a list; {_WANTED} (jq -c '.[]' FILE converts a list)",
                )
            else:
                fields = record if isinstance(record, dict) else {}
                yield from documents_of(fields, source, place)


def documents_of(fields: Mapping[str, Any], source: Source, place: str) -> Iterator[Document]:
    """Yields the document of a record; if it has no text, counts that.

    Args:
        fields: as for `document_of`.
        source: likewise.
        place: of the record, for messages.
    """
    document = document_of(fields, source)
    if document is not None:
        yield document
    elif any(_value(fields, name) is None for name in text_fields(source)):
        source.tally.drops["null"] += 1  # a null text is not an error of the file
    else:
        source.tally.count_bad("no_text", f"{place} {no_text(fields, source)}")


def _values_of(line: str, source: Source) -> list[Any]:
    """The JSON value of a line; several where files were concatenated without a line end."""
    try:
        return [json.loads(line)]
    except ValueError:
        pieces = [piece for piece in _JOINT.split(line) if piece.strip()]
        if len(pieces) < 2:
            raise
        values = [json.loads(piece) for piece in pieces]
    source.tally.count_mended("byte_order_mark", line.count("\ufeff"))
    source.tally.count_mended("padding", "\0" in line)
    return values


def document_of(fields: Mapping[str, Any], source: Source) -> Document | None:
    """The document of a record; None if it has no text. An empty text is a document.

    Args:
        fields: of the record; if no key is `a.b`, that means the field b of the object a.
        source: names the fields; the defaults are `TEXT_FIELDS` and `LANGUAGE_FIELDS`.
    """
    values = (_value(fields, name) for name in text_fields(source))
    text = next((value for value in values if value is not _MISSING), None)
    if not isinstance(text, str):
        return None
    values = (_value(fields, name) for name in language_fields(source))
    language = next((value for value in values if isinstance(value, str)), "")
    return Document(whole_characters(normal_line_ends(text)), language)


def no_text(fields: Mapping[str, Any], source: Source) -> str:
    """The problem of a record for which `document_of` is None, and the remedy."""
    return (
        f"has no text under {' or '.join(text_fields(source))}; name its field with --text_field"
        f" ({', '.join(fields) or 'it has none'})"
    )


def text_fields(source: Source) -> tuple[str, ...]:
    """Names of the fields that may hold the text."""
    return (source.text_field,) if source.text_field else TEXT_FIELDS


def language_fields(source: Source) -> tuple[str, ...]:
    """Names of the fields that may hold the language."""
    return (source.language_field,) if source.language_field else LANGUAGE_FIELDS


def _value(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a field; `_MISSING` if there is none."""
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _not_json(line: str, error: Exception) -> str:
    goes_on = isinstance(error, json.JSONDecodeError) and error.pos >= len(line.rstrip())
    if goes_on and line.lstrip().startswith(("{", "[")):
        return f"holds only the beginning of a JSON value; {_WANTED} (jq -c . FILE converts it)"
    return f"is not JSON ({error}); give --format for another layout"
