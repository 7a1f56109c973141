"""Streams a corpus as documents with their sentences: reads, filters and splits.

part of a file --readers--> documents --quality--> those that are kept --sentences--> sentences
"""

import re
from collections.abc import Iterable, Iterator

from data_prep import readers
from data_prep.clauses import cut_texts
from data_prep.inputs import InputPart
from data_prep.prepare_config import TextConfig
from data_prep.quality import kept
from data_prep.readers.source import Document, RecordTally, Source
from data_prep.sentences import split_lines, split_sentences

_SENTENCE_A_LINE = ("lines", "sentences")  # layouts
# Zero-width, without meaning unless next to a letter: soft hyphen, joiners, direction marks,
# byte-order mark. Between letters and after one they stay: Persian, Hindi, Sinhala need them.
_ZERO_WIDTH = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_ALONE = re.compile(rf"(?<!\S)[{_ZERO_WIDTH}]+(?!\S)")


def read_sentences(
    part: InputPart, config: TextConfig, tally: RecordTally
) -> Iterator[tuple[str, list[str]]]:
    """Yields the documents of one file or part that are to be kept, each with its sentences.

    Args:
        part: of a file.
        config: how it is read, and what to keep of it.
        tally: counts what is left out and what is bad.

    Raises:
        UserError: the file cannot be read, is cut off, or more of it is bad than the tally allows.
    """
    source = Source(part, tally, config.text_field, config.language_field)
    is_auto = config.format == readers.AUTO
    layout = readers.detect_layout(part.path) if is_auto else config.format
    split = split_lines if layout in _SENTENCE_A_LINE else split_sentences
    documents = _visible(readers.read_documents(source, layout), tally)
    for document in kept(documents, config, tally.drops):
        yield document.text, cut_texts(split(document.text))


def _visible(documents: Iterable[Document], tally: RecordTally) -> Iterator[Document]:
    """The documents that show anything, without NULs and zero-width characters that stand alone."""
    for document in documents:
        text = document.text
        if num_nuls := text.count("\0"):
            tally.removed["nul"] += num_nuls
            text = text.replace("\0", "")
        # Searched one by one: several times as fast as a regular expression.
        if not text.isascii() and any(character in text for character in _ZERO_WIDTH):
            shorter = _ALONE.sub("", text)
            if len(shorter) < len(text):
                tally.removed["zero_width"] += len(text) - len(shorter)
                text = shorter
        if text and not text.isspace():
            yield document if text is document.text else document._replace(text=text)
        else:
            tally.drops["empty"] += 1
