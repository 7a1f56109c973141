"""Cuts sentences that are too long: at a clause mark, else at a space, else at a character.

Cuts text, so that no line is too long for SentencePiece's trainer or for the memory; and tokens, by
the borders that each piece has before and after it, so that every segment of a pair can hold a
sentence. No character and no token is lost.

Letters: M ranges of tokens, W places where one may be cut, V pieces.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_prep.punctuation import RARE_TERMINAL_PUNCTUATION, TERMINAL_PUNCTUATION
from dist_bert.tokenizer.tokenizer import Tokenizer

# At most 4,000 bytes of UTF-8: SentencePiece's trainer skips lines over 4,192.
MOST_CHARACTERS = 1_000

_LEAST_SHARE = 4  # a piece has at least a quarter of the allowed length
_SPACE_MARKS = "!,.:;?"  # a space follows them, or they belong to a number
_NO_SPACE_MARKS = TERMINAL_PUNCTUATION.replace(_SPACE_MARKS, "").replace("\u1361-", "\u1362-")
_CLOSERS = "\"'”’»)\\]}」』）】》〉"
_CLAUSE = re.compile(
    rf"[{_SPACE_MARKS}—–]+[{_CLOSERS}]*(?=\s)|[{_NO_SPACE_MARKS}{RARE_TERMINAL_PUNCTUATION}]+[{_CLOSERS}]*"
)
_SPACELESS = "\u200b\u0f0b\u1361"  # between words: zero-width space, Tibetan tsheg, Ethiopic space
_SPACE = re.compile(rf"[\s{_SPACELESS}]+")
_JOINERS = "\u200c\u200d"

# Quality of the border between two pieces: 3 after a clause, 2 between words, 1 inside a word, 0
# inside a character. Rows: end of the first piece; columns: start of the second.
_NOTHING, _MARK, _SPACELESS_BORDER, _NO_SPACE_MARK = range(4)
_IN_CHARACTER, _IN_WORD, _NEW_WORD = range(3)
_QUALITY = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 2], [0, 3, 3]], np.uint8)


def cut_texts(sentences: list[str]) -> list[str]:
    """Cuts sentences longer than `MOST_CHARACTERS` into pieces of at least a quarter of it."""
    if max(map(len, sentences), default=0) <= MOST_CHARACTERS:
        return sentences
    return [piece for sentence in sentences for piece in _pieces(sentence)]


def _pieces(sentence: str) -> Iterator[str]:
    begin, least = 0, MOST_CHARACTERS // _LEAST_SHARE
    while (left := len(sentence) - begin) > MOST_CHARACTERS:
        end = _last_border(sentence, begin + least, begin + min(MOST_CHARACTERS, left - least))
        if piece := sentence[begin:end].strip():
            yield piece
        begin = end
    if piece := sentence[begin:].strip():
        yield piece


def _last_border(text: str, first: int, last: int) -> int:
    """The last place of the best kind between two places."""
    for border in (_CLAUSE, _SPACE):
        end = 0
        for found in border.finditer(text, first, last):
            end = found.end()
        if end:
            return end
    end = last
    while end > first and _continues_character(text[end]):
        end -= 1
    return end


def _continues_character(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character).startswith("M")


@dataclasses.dataclass(frozen=True, eq=False)
class PieceBorders:
    """The borders that the pieces of a vocabulary have before and after them."""

    ends: NDArray[np.uint8]  # (V,) a row of `_QUALITY`
    starts: NDArray[np.uint8]  # (V,) a column of it

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "PieceBorders":
        """The borders of a tokenizer's pieces."""
        texts = [tokenizer.text_of(i) for i in range(tokenizer.vocab_size)]
        reserved = tokenizer.num_reserved_pieces
        ends = [_NOTHING] * reserved + [_end(text.rstrip()[-1:]) for text in texts[reserved:]]
        starts = [
            _start(text, bool(is_start), index < reserved)
            for index, (text, is_start) in enumerate(zip(texts, tokenizer.word_starts, strict=True))
        ]
        return cls(np.array(ends, np.uint8), np.array(starts, np.uint8))

    def quality(
        self, before: NDArray[np.integer], behind: NDArray[np.integer]
    ) -> NDArray[np.uint8]:
        """Quality of the borders between pairs of pieces, 0 to 3."""
        return _QUALITY[self.ends[before], self.starts[behind]]


def _end(character: str) -> int:
    if character in _SPACELESS:
        return _SPACELESS_BORDER if character else _NOTHING
    if not _CLAUSE.match(f"{character} "):
        return _NOTHING
    return _MARK if character in f"{_SPACE_MARKS}—–" else _NO_SPACE_MARK


def _start(text: str, starts_word: bool, is_reserved: bool) -> int:
    """The column of a piece's start; of the reserved pieces, only bytes occur in texts."""
    if is_reserved:
        return _IN_WORD if starts_word else _IN_CHARACTER
    if text[:1] == "\ufffd" and not starts_word:  # a part of a character
        return _IN_CHARACTER
    if text[:1] and _continues_character(text[0]):
        return _IN_CHARACTER
    is_new = starts_word and (text[:1].isspace() or text[:1].isalnum())  # not: a mark
    return _NEW_WORD if is_new else _IN_WORD


def best_cuts(
    tokens: NDArray[np.integer],
    start: NDArray[np.int64],
    least: NDArray[np.int64],
    most: NDArray[np.int64],
    borders: PieceBorders,
) -> NDArray[np.int64]:
    """Where to cut M ranges of tokens: at the last border of the best quality.

    Args:
        tokens: that contain the ranges.
        start: where each begins, (M,).
        least: fewest tokens of the first part, (M,), at least 1.
        most: most tokens of it, (M,), at least `least` and below the length of the range.
        borders: of the pieces.

    Returns:
        Tokens of the first part of each, (M,).
    """
    if not start.size:
        return np.zeros(0, np.int64)
    width = int((most - least).max()) + 1
    sizes = least[:, None] + np.arange(width)  # (M, W)
    places = start[:, None] + np.minimum(sizes, most[:, None])
    quality = borders.quality(tokens[places - 1], tokens[places])
    score = np.where(sizes <= most[:, None], quality * np.int64(width) + np.arange(width), -1)
    return least + score.argmax(1)


def cuts_of_long(
    tokens: NDArray[np.integer],
    offsets: NDArray[np.int64],
    most_tokens: int,
    borders: PieceBorders,
) -> NDArray[np.int64]:
    """Where to cut sentences, so that none has more than `most_tokens`.

    Args:
        tokens: of all sentences.
        offsets: of the sentences into `tokens`.
        most_tokens: of a piece, at least 1; a piece of a cut sentence has at least a quarter of it.
        borders: of the pieces.

    Returns:
        Indices into `tokens`, unordered.
    """
    least = max(most_tokens // _LEAST_SHARE, 1)
    lengths = np.diff(offsets)
    is_long = lengths > most_tokens
    start, left = offsets[:-1][is_long], lengths[is_long]
    cuts = [np.zeros(0, np.int64)]
    while start.size:
        size = best_cuts(
            tokens,
            start,
            np.full(start.size, least),
            np.minimum(most_tokens, left - least),
            borders,
        )
        start, left = start + size, left - size
        cuts.append(start)
        start, left = start[left > most_tokens], left[left > most_tokens]
    return np.concatenate(cuts)
