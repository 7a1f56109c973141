"""Shows how a corpus is read: its first documents and their sentences as text."""

import collections
import dataclasses
import itertools
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from data_prep.corpus import read_sentences
from data_prep.inputs import InputPart, resolve_inputs
from data_prep.prepare_config import TextConfig
from data_prep.readers import AUTO, detect_layout
from data_prep.readers.source import RecordTally
from data_prep.work_units import sentence_lists

_MOST_FILES = 64  # examined: each is opened to detect its layout
_SENTENCES_SHOWN = 3
_WIDTH = 96  # columns of a terminal
_LONG_CHARACTERS = 400  # more than half of 128 tokens hold, in any script
_MANY, _MOST = 0.5, 0.65  # shares of text and of documents above which to warn


@dataclasses.dataclass(frozen=True)
class _Shown:
    path: str
    layout: str
    text: str
    sentences: list[str]


def show_preview(
    patterns: Sequence[str], config: TextConfig, max_bad_share: float, count: int
) -> None:
    """Prints the preview of all files that match.

    Args:
        patterns: as for `resolve_inputs`.
        config: how to read them.
        max_bad_share: of a file's records.
        count: of documents to show.

    Raises:
        UserError: a file cannot be read, or too much of it is bad.
    """
    inputs, layout = resolve_inputs(patterns, config.format)
    config = dataclasses.replace(config, format=layout)
    for line in preview(inputs, config, max_bad_share, count):
        print(line, flush=True)


def preview(
    inputs: Sequence[InputPart], config: TextConfig, max_bad_share: float, count: int
) -> Iterator[str]:
    """Lines that show the first documents, alternating between the layouts of the first files.

    Args:
        inputs: whole files.
        config: how to read them.
        max_bad_share: of a file's records.
        count: of documents to show; those without text, such as redirects, are skipped.

    Raises:
        UserError: a file cannot be read, or too much of it is bad.
    """
    files_by_layout: dict[str, list[InputPart]] = collections.defaultdict(list)
    for file in inputs[:_MOST_FILES]:
        layout = detect_layout(file.path) if config.format == AUTO else config.format
        files_by_layout[layout].append(file)
    tallies: dict[str, RecordTally] = {}  # by path
    streams = [
        _documents(files, dataclasses.replace(config, format=layout), max_bad_share, tallies)
        for layout, files in files_by_layout.items()
    ]
    counts: list[list[int]] = []  # characters of the sentences of each document
    for shown in itertools.islice(_in_turn(streams), count):
        yield f"{shown.path} ({shown.layout})"
        counts.append([len(sentence) for sentence in shown.sentences])
        yield f"  {len(shown.text):,} characters, {_lengths(counts[-1])}"
        for sentence in shown.sentences[:_SENTENCES_SHOWN]:
            yield f"  | {_cut(sentence)}"
        if (num_more := len(shown.sentences) - _SENTENCES_SHOWN) > 0:
            yield f"  | ... and {num_more:,} more"
        yield ""
    yield from _sentence_lines(counts)
    layouts = ", ".join(f"{len(files):,} {layout}" for layout, files in files_by_layout.items())
    looked_at = min(len(inputs), _MOST_FILES)
    yield f"layouts of {looked_at:,} of {len(inputs):,} files: {layouts}"
    for path in sentence_lists(inputs, config.format):
        yield f"{path}: looks like one sentence per line without documents: --format sentences?"
    yield from _counts(tallies)


def _documents(
    files: Sequence[InputPart],
    config: TextConfig,
    max_bad_share: float,
    tallies: dict[str, RecordTally],
) -> Iterator[_Shown]:
    """Documents with text from files of one layout; adds a tally for each file."""
    for file in files:
        tally = tallies[file.path] = RecordTally(file.path, max_bad_share)
        for text, sentences in read_sentences(file, config, tally):
            if sentences:
                yield _Shown(file.path, config.format, text, sentences)
            else:
                tally.drops["empty"] += 1


def _lengths(lengths: Sequence[int]) -> str:
    median, longest = int(statistics.median(lengths)), max(lengths)
    noun = "sentence" if len(lengths) == 1 else "sentences"
    return f"{len(lengths):,} {noun} (median {median:,}, longest {longest:,} characters)"


def _sentence_lines(counts: Sequence[Sequence[int]]) -> Iterator[str]:
    """Lengths of the sentences shown, and warnings if they are unsuitable for pairs."""
    lengths = list(itertools.chain.from_iterable(counts))
    if not lengths:
        return
    long_share = sum(n for n in lengths if n > _LONG_CHARACTERS) / sum(lengths)
    single_share = sum(len(document) == 1 for document in counts) / len(counts)
    yield (
        f"of these: {_lengths(lengths)}, {long_share:.0%} of the text in sentences of more than"
        f" {_LONG_CHARACTERS}"
    )
    if long_share > _MANY:
        yield (
            "warning: few sentence ends are found, so sentences are cut at clause marks and spaces."
            " Does the text have one sentence per line? Then give --format lines"
        )
    if single_share > _MOST:
        yield (
            f"warning: {single_share:.0%} of the documents are a single sentence, which has no next"
            " one: their pairs are random, or the sentence is cut in two. If lines are not"
            " documents here, give another --format; otherwise consider --pair_objective none"
        )


def _in_turn(streams: Sequence[Iterator[_Shown]]) -> Iterator[_Shown]:
    """One item of each stream in turn, until all have ended."""
    pending = collections.deque(streams)
    while pending:
        stream = pending.popleft()
        for item in itertools.islice(stream, 1):
            yield item
            pending.append(stream)


def _counts(tallies: Mapping[str, RecordTally]) -> Iterator[str]:
    """What was left out and what is bad in as much of the files as was read."""
    drops, removed, bad, mended = (Counter[str]() for _ in range(4))
    for tally in tallies.values():
        drops.update(tally.drops)
        removed.update(tally.removed)
        bad.update(tally.bad)
        mended.update(tally.mended)
    yield f"left out so far: {_listed(drops)}"
    if removed:
        yield f"characters removed so far: {_listed(removed)}"
    first = next((f" ({path}: {t.first_bad})" for path, t in tallies.items() if t.first_bad), "")
    yield f"bad records so far: {_listed(bad)}{first}"
    if mended.total():
        yield f"mended so far: {_listed(mended)}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items())) or "none"


def _cut(sentence: str) -> str:
    """The start of a sentence that fits on a line; control characters become spaces."""
    columns = 0
    for index, character in enumerate(sentence):
        columns += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if columns > _WIDTH:
            return _printable(sentence[:index].rstrip()) + " ..."
    return _printable(sentence)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
