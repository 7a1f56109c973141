r"""Reads documents from files: one streaming generator per layout, compressed or not.

    part of a file --Source: unpacked, decoded--> its layout's function --> documents

A new layout is a function from a `Source` to documents, a row in `_READERS`, a name in
`prepare_config.FORMATS` and a rule in `detect`. Not for: filtering documents and splitting them
into sentences (`data_prep.corpus`).
"""

from collections.abc import Callable, Iterator

from data_prep.readers import (
    docstrings,
    lines,
    mediawiki,
    parquet,
    records,
    tar,
    wet,
    wikiextractor,
)
from data_prep.readers.detect import detect_layout
from data_prep.readers.source import Document, Source

__all__ = ["AUTO", "detect_layout", "read_documents"]

AUTO = "auto"


def read_documents(source: Source, layout: str) -> Iterator[Document]:
    """Yields the documents of one file or part, in their order.

    Args:
        source: of the bytes; its tally counts what is skipped.
        layout: one of `prepare_config.FORMATS`.

    Raises:
        UserError: the file cannot be read, is cut off, or more of it is bad than its tally allows.
    """
    yield from _READERS[detect_layout(source.path) if layout == AUTO else layout](source)
    source.tally.check()


_READERS: dict[str, Callable[[Source], Iterator[Document]]] = {
    "text": lines.whole_file,
    "blank_line": lines.blank_line,
    "lines": lines.blank_line,  # same ends of documents; `corpus` knows that a line is a sentence
    "sentences": lines.sentences,
    "wikitext": lines.wikitext,
    "jsonl": records.json_lines,
    "parquet": parquet.rows,
    "wikiextractor": wikiextractor.wikiextractor,
    "mediawiki": mediawiki.mediawiki,
    "wet": wet.wet,
    "tar": tar.tar,
    "python_docs": docstrings.python_docs,
}
