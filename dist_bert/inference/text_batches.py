"""Texts to use a model on: lines of a file, and batches of similar length, in bounded memory.

Results come in the order of the texts, a window of them at a time, so a file may be of any length.
Not for: training, whose batches come from shards (`dist_bert.data.pretraining_batches`).

Letters: B texts of a batch, T tokens of all of them.
"""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from dist_bert.common.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Ids = list[int]  # of one text, with [CLS] and [SEP]

_WINDOW = 1_024  # texts that are sorted by length together
_BATCH_TOKENS = 4_096  # of a batch, unless one text alone has more


class Text(NamedTuple):
    """A text and how messages call it: where it stands, or the text itself."""

    text: str
    name: str

    @classmethod
    def given(cls, text: str) -> "Text":
        """A text from the command line.

        Raises:
            UserError: it is not UTF-8.
        """
        name = f"text {text if len(text) <= 60 else text[:60] + '...'!r}"
        return cls(require_utf8(text, name), name)


def require_utf8(argument: str, name: str) -> str:
    """An argument of the command line, where it is text.

    Raises:
        UserError: its bytes are not UTF-8; Python keeps those as halves of surrogate pairs.
    """
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: is not UTF-8; convert it") from None
    return argument


def given_texts(texts: list[str], path: str | None) -> Iterator[Text]:
    """The texts of a command line: typed there, or the lines of its --input.

    Raises:
        UserError: it has both or neither, or a text that is not UTF-8.
    """
    if bool(texts) == (path is not None):
        raise UserError("give either texts or --input FILE with one text a line")
    return read_texts(path) if path is not None else iter(list(map(Text.given, texts)))


def read_texts(path: str) -> Iterator[Text]:
    """The lines of a file, or of standard input for "-", one text a line.

    Raises:
        UserError: the file cannot be read, or a line is empty or not UTF-8; names the line.
    """
    label = "standard input" if path == "-" else path
    with contextlib.ExitStack() as stack:
        try:
            file = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise UserError(f"--input {path}: cannot be read ({error.strerror})") from None
        number = 0
        for number, line in enumerate(file, start=1):
            name = f"{label}, line {number:,}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{name}: is not UTF-8 ({error.reason}); convert it") from None
            if not text.strip():
                raise UserError(f"{name}: is empty; a text is wanted on every line")
            yield Text(text, name)
        if number == 0:
            raise UserError(f"{label}: is empty; a text is wanted on every line")


def check_length(ids: Ids, limit: int, name: str) -> Ids:
    """The ids of a text that the model can take.

    Raises:
        UserError: there are more than `limit`, the model's positions.
    """
    if len(ids) > limit:
        raise UserError(
            f"{name}: has {len(ids):,} tokens, the model takes at most {limit:,}; shorten it"
        )
    return ids


def map_in_batches(
    compute: Callable[[list[Item]], Iterable[Result]],
    items: Iterable[Item],
    num_tokens: Callable[[Item], int],
) -> Iterator[Result]:
    """What `compute` makes of every item, in their order; it gets batches of similar length."""
    iterator = iter(items)
    while window := list(itertools.islice(iterator, _WINDOW)):
        results: dict[int, Result] = {}
        for batch in _batches([num_tokens(item) for item in window]):
            made = compute([window[index] for index in batch])
            results.update(zip(batch, made, strict=True))
        yield from (results[index] for index in range(len(window)))


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Indices of sequences by falling length, cut where a batch would have too many tokens."""
    batch: list[int] = []
    num_tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and num_tokens + lengths[index] > _BATCH_TOKENS:
            yield batch
            batch, num_tokens = [], 0
        batch.append(index)
        num_tokens += lengths[index]
    if batch:
        yield batch
