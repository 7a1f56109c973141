"""A corpus as a stream of documents with their sentences: reading, quality and splitting in one.

part of a file --readers--> documents --quality--> those that are kept --sentences--> sentences
"""

from collections.abc import Iterator

from data_prep import readers
from data_prep.inputs import InputPart
from data_prep.prepare_config import TextConfig
from data_prep.quality import kept
from data_prep.readers.source import Source, Tally
from data_prep.sentences import split_lines, split_sentences

_SENTENCE_A_LINE = ("lines", "sentences")  # layouts


def read_sentences(
    part: InputPart, config: TextConfig, tally: Tally
) -> Iterator[tuple[str, list[str]]]:
    """Yields the documents of one file or part that are to be kept, each with its sentences.

    Args:
        part: of a file.
        config: how it is read, and what is kept of it.
        tally: counts what is left out and what is bad.

    Raises:
        UserError: the file cannot be read, is cut off, or more of it is bad than the tally allows.
    """
    source = Source(part, tally, config.text_field, config.language_field)
    is_auto = config.format == readers.AUTO
    layout = readers.detect_layout(part.path) if is_auto else config.format
    split = split_lines if layout in _SENTENCE_A_LINE else split_sentences
    for document in kept(readers.read_documents(source, layout), config, tally.drops):
        yield document.text, split(document.text)
