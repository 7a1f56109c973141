"""Detects the layout of a file from its content; unclear content is "text".

Reading text with a wrong layout would silently tear it apart. Reading another layout as text yields
one document of whole sentences, and `--preview` shows it.
"""

import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

from data_prep.inputs import whole_file
from data_prep.readers import parquet
from data_prep.readers.source import RecordTally, Source
from data_prep.sentences import split_sentences

_PEEK_BYTES, _PEEK_ROWS = 1 << 17, 512  # of a file, enough to detect its layout
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_UTF16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be", b"<\0": "utf-16-le"}
_UTF16[b"\0<"] = "utf-16-be"

# A key with its colon distinguishes JSON from a brace in text. It may belong to the first object of
# a list or be on a separate line: then the reader reports the problem.
_JSON = re.compile(r'(?:\[\s*)?\{\s*"(?:[^"\\\n]|\\.)*"\s*:')
_XML_ROOT = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:(?:<!--.*?-->|<!DOCTYPE[^>[]*(?:\[.*?\]\s*)?>)\s*)*<mediawiki[\s>]",
    re.DOTALL,
)
_JSON_SHARE = 0.5  # of the lines
_NO_JSON = object()
_DOC = re.compile(r"<doc[\s>]", re.IGNORECASE)
_BLANK = " \t\n\r\f\v\ufeff\0"  # with the byte-order mark and padding at the start of a file
_TITLE = re.compile(r"\s*^ = [^\n]*(?<! =) = *\r?$", re.MULTILINE)

# One sentence per line, as google-research/bert requires. Other programs split sentences
# differently, and headings have no full stop: so not all lines must end like a sentence, but far
# more than in any prose, verse or list by chance.
_SENTENCE_SHARE = 0.85
_MIN_BLOCKS, _MIN_BLOCK_LINES, _MIN_LINES = 3, 2.0, 12
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]」』）》*_]*$")
# Dialogue and plays also have one utterance per line, but these are not a document's sentences.
_SPEECH = re.compile(r"[\"'“”„«‘「『–—-]|[^\s:：.!?][^:：.!?]{0,30}[:：]\s?\S")
_SPEECH_SHARE = 0.5

# BookCorpus: lower-cased sentences with spaces around punctuation, so `split_sentences` finds no
# end in any row. A mark inside a row may follow an abbreviation.
_INNER_END = re.compile(
    r"(?:\w{4}|\s)[.!?]+[\"'”’)\]]*\s+[^\W\d_]|[。！？][”’」』）》]*[^\s”’」』）》]"
)
_ROW_SHARE = 0.8
_MEDIAN_ROW, _MIN_ROWS = 300, 12  # characters, rows


def detect_layout(path: str) -> str:
    """The layout of a file: "python_docs" by its name, else by its first bytes, else "text".

    Raises:
        UserError: the file cannot be read.
    """
    if Path(path).suffix == ".py":
        return "python_docs"
    if parquet.is_parquet(path):
        return _layout_of_rows(path)
    head = _head(path)
    if head[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC):
        return "tar"
    return _layout_of_text(_decoded(head), is_whole=len(head) < _PEEK_BYTES)


def is_sentences(path: str) -> bool:
    """Whether a text file is one sentence per line with hardly any borders between documents.

    By content it is a single document, like a book; only its owner knows whether it is.

    Raises:
        UserError: the file cannot be read.
    """
    head = _head(path)
    lines = _decoded(head).splitlines()
    lines = lines if len(head) < _PEEK_BYTES else lines[:-1]
    sentences = [line.strip() for line in lines if line.strip()]
    return len(sentences) >= _MIN_LINES and _are_sentences(sentences)


def _head(path: str) -> bytes:
    with Source(whole_file(path), RecordTally(path, 0.0)).open() as file:
        return file.read(_PEEK_BYTES)


def _layout_of_text(text: str, is_whole: bool) -> str:
    beginning = text.lstrip(_BLANK)
    if beginning.startswith("WARC/1."):
        return "wet"
    if _DOC.match(beginning):
        return "wikiextractor"
    if _XML_ROOT.match(beginning):
        return "mediawiki"
    if _JSON.match(beginning) or _is_json_lines(text.split("\n"), is_whole):
        return "jsonl"
    if _TITLE.match(text):
        return "wikitext"
    lines = text.splitlines()
    return "lines" if _is_sentence_a_line(lines if is_whole else lines[:-1]) else "text"


def _is_json_lines(lines: list[str], is_whole: bool) -> bool:
    """Whether most lines are JSON, including an object; the first line may be anything."""
    lines = [stripped for line in lines if (stripped := line.strip(_BLANK))]
    if not any(line.startswith("{") for line in lines):
        return False
    cut_off = [] if is_whole else lines[-1:]
    values = [_json_value(line) for line in (lines if is_whole else lines[:-1])]
    num_json = sum(value is not _NO_JSON for value in values)
    num_objects = sum(isinstance(value, dict) for value in values)
    begins = sum(bool(_JSON.match(line)) for line in cut_off)
    return num_objects + begins > 0 and num_json + begins > _JSON_SHARE * len(lines)


def _json_value(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return _NO_JSON


def _is_sentence_a_line(lines: list[str]) -> bool:
    """Whether lines are sentences, and blocks between blank lines are documents."""
    sentences = [line.strip() for line in lines if line.strip()]
    blocks = sum(has_text for has_text, _ in itertools.groupby(lines, lambda s: bool(s.strip())))
    if blocks < _MIN_BLOCKS or len(sentences) < max(_MIN_BLOCK_LINES * blocks, _MIN_LINES):
        return False
    return _are_sentences(sentences)


def _are_sentences(lines: list[str]) -> bool:
    """Whether most of the lines, none of them blank, are one whole sentence each."""
    enough = _SENTENCE_SHARE * len(lines)
    return (
        sum(bool(_SENTENCE_END.search(s)) for s in lines) >= enough
        and sum(bool(_SPEECH.match(s)) for s in lines) <= _SPEECH_SHARE * len(lines)
        and sum(len(split_sentences(s)) == 1 for s in lines) >= enough
    )


def _layout_of_rows(path: str) -> str:
    """Layout of a parquet file: rows with fields besides a text are documents."""
    column = parquet.only_text_column(path)
    if column is None:
        return "parquet"
    source = Source(whole_file(path), RecordTally(path, 1.0), column)
    peeked = list(itertools.islice(parquet.text_rows(source), _PEEK_ROWS))
    texts = [row.strip() for row in peeked if row.strip()]
    if _TITLE.match("\n".join(row.rstrip("\n") for row in peeked)):
        return "wikitext"
    if len(texts) < _MIN_ROWS or statistics.median(map(len, texts)) > _MEDIAN_ROW:
        return "parquet"
    num_sentences = sum("\n" not in text and not _INNER_END.search(text) for text in texts)
    return "sentences" if num_sentences >= _ROW_SHARE * len(texts) else "parquet"


def _decoded(head: bytes) -> str:
    encoding = _UTF16.get(head[:2], "utf-8")
    return head.decode(encoding, "replace").removeprefix("\ufeff")
