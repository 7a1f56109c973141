"""Encodes text with an imported WordPiece vocabulary, using the `tokenizers` library.

The file is a `tokenizer.json` whose pieces have been renumbered
(`dist_bert.huggingface.tokenizer`). Its settings of special tokens in texts, padding and truncation
are ignored: here no text can produce a special id, and batches are made elsewhere. Not for: words
or special ids (`dist_bert.tokenizer.tokenizer`).

Source: Devlin et al. 2019, "BERT" (https://arxiv.org/abs/1810.04805), section 3; its code,
google-research/bert, tokenization.py.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer

from dist_bert.common.errors import UserError
from dist_bert.tokenizer.config import SPECIAL_PIECES

CONTINUES = "##"  # before a piece that continues a word
_UNKNOWN_ID = SPECIAL_PIECES.index("[UNK]")
_UNUSED = re.compile(r"\[unused\d+\]")  # placeholders in published vocabularies


def read_tokenizer_json(model: bytes, path: Path) -> FastTokenizer:
    """The tokenizer of a file's bytes; `path` names it in errors.

    Raises:
        UserError: it is not a tokenizer.json.
    """
    # Read at every call of the library; the default is all cores, but other ranks use these.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        return FastTokenizer.from_str(model.decode())
    except Exception as error:  # the library raises no specific class
        raise UserError(f"--tokenizer {path}: is not a tokenizer.json ({error})") from None


class WordPieces:
    """A WordPiece vocabulary with its rules of normalising and of cutting words.

    Attributes:
        names: the V pieces.
        num_reserved: leading pieces that are not text: special and unused ones.
    """

    published_ids = None  # of each piece elsewhere: the same

    def __init__(self, model: bytes, path: Path) -> None:
        """Loads a tokenizer.json.

        Args:
            model: the file's bytes.
            path: of the file, for messages.

        Raises:
            UserError: it is not a tokenizer.json, or not of BERT's kind.
        """
        whole = read_tokenizer_json(model, path)
        check_kind(whole, f"--tokenizer {path}")
        self._fast = FastTokenizer(whole.model)
        self._fast.normalizer, self._fast.pre_tokenizer = whole.normalizer, whole.pre_tokenizer
        self._ids = self._fast.get_vocab()
        self.names = sorted(self._ids, key=self._ids.__getitem__)
        if list(self._ids[name] for name in self.names) != list(range(len(self.names))):
            raise UserError(f"--tokenizer {path}: its ids must be 0, 1, 2, ...; import the model")
        is_text = (
            index
            for index, name in enumerate(self.names)
            if index >= len(SPECIAL_PIECES) and not _UNUSED.fullmatch(name)
        )
        self.num_reserved = next(is_text, len(self.names))
        self._goes_on: dict[str, bool] = {}  # character -> whether it can continue a word

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of N texts, on one core."""
        return [made.ids for made in self._fast.encode_batch_fast(texts, add_special_tokens=False)]

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def encode_inside_word(self, text: str) -> list[int]:
        """Ids of a text that follows a letter."""
        first = next(iter(self._words(text)), "")
        encoded = self._fast.encode(text, add_special_tokens=False)
        if text[:1].isspace() or not self._can_go_on(first[:1]):
            return list(encoded.ids)
        others = [i for i, word in zip(encoded.ids, encoded.word_ids, strict=True) if word]
        return self._continuation(first) + others

    def before_mask(self, text: str) -> str:
        """The part of the text before a [MASK] that has ids: all of it."""
        return text

    def encode_behind_mask(self, text: str) -> list[int]:
        """Ids of the text after a [MASK]: a separate word, as in transformers."""
        return self.encode(text)

    def encode_words(self, words: Sequence[str], spaces_before: Sequence[bool]) -> list[list[int]]:
        """Ids of each word; none if normalisation removes it."""
        encoded, last = [], ""  # the last character before a word, normalised
        for word, is_spaced in zip(words, spaces_before, strict=True):
            is_inside = not is_spaced and self._can_go_on(last)
            encoded.append(self.encode_inside_word(word) if is_inside else self.encode(word))
            normalised = self._words(word)
            if normalised or is_spaced:
                last = normalised[-1][-1] if normalised else ""
        return encoded

    def encode_with_offsets(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Ids of one text and the range of each in it, (T, 2), as in `Tokenizer`.

        A word with a letter that is in no piece is unknown as a whole: one range.
        """
        encoded = self._fast.encode(text, add_special_tokens=False)
        offsets = np.array(encoded.offsets, np.int64).reshape(-1, 2)
        ends, following = offsets[:, 1], np.append(offsets[1:, 0], len(text))
        for place in np.flatnonzero(ends < following):  # removed accents belong to it
            while ends[place] < following[place] and _is_accent(text[ends[place]]):
                ends[place] += 1
        return list(encoded.ids), offsets

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; the original spaces are unknown, so one is put before each word."""
        texts = (self.text_of(int(i)) for i in ids if i == _UNKNOWN_ID or i >= len(SPECIAL_PIECES))
        return "".join(texts).strip()

    def text_of(self, index: int) -> str:
        """The text of a piece, including the space before it.

        There is a space if the piece would otherwise be read as part of the word before it.
        """
        name = self.names[index]
        if name.startswith(CONTINUES) and name != CONTINUES:
            return name.removeprefix(CONTINUES)
        return f" {name}" if index == _UNKNOWN_ID or self._can_go_on(name[:1]) else name

    def starts_word(self, index: int) -> bool:
        """Whether a piece begins a word; an ideograph or a punctuation mark is a word by itself."""
        return not self.names[index].startswith(CONTINUES)

    def written(self, text: str) -> list[bytes]:
        """The normalised text of each piece of a text, with the space before it if there is one."""
        ids, offsets = self.encode_with_offsets(text)
        written, last = [], 0
        for index, (begin, end) in zip(ids, offsets.tolist(), strict=True):
            name = self.names[index].removeprefix(CONTINUES)
            space = " " if any(map(str.isspace, text[last:begin])) and last else ""
            written.append((space + (text[begin:end] if index == _UNKNOWN_ID else name)).encode())
            last = end
        return written

    def _words(self, text: str) -> list[str]:
        """The normalised words and marks of a text."""
        normalised = self._fast.normalizer.normalize_str(text) if self._fast.normalizer else text
        return [word for word, _ in self._fast.pre_tokenizer.pre_tokenize_str(normalised)]

    def _can_go_on(self, character: str) -> bool:
        """Whether a character can continue a word: it is not a punctuation mark or ideograph."""
        if character not in self._goes_on:
            self._goes_on[character] = bool(character) and len(self._words(f"a{character}")) == 1
        return self._goes_on[character]

    def _continuation(self, word: str) -> list[int]:
        """Ids of the rest of a word: always the longest piece that fits."""
        ids, begin = [], 0
        while begin < len(word):
            ends = range(len(word), begin, -1)
            fitting = (e for e in ends if CONTINUES + word[begin:e] in self._ids)
            end = next(fitting, None)
            if end is None:
                return [_UNKNOWN_ID]
            ids.append(self._ids[CONTINUES + word[begin:end]])
            begin = end
        return ids


def _is_accent(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def check_kind(fast: FastTokenizer, name: str) -> None:
    """Rejects tokenizers that do not split words as BERT's do.

    Raises:
        UserError: it does not; names its kind, and begins with `name`.
    """
    model, cutter = fast.model, fast.pre_tokenizer
    if not isinstance(model, WordPiece) or model.continuing_subword_prefix != CONTINUES:
        kind = type(model).__name__
        raise UserError(f"{name}: is of kind {kind}, must be WordPiece with {CONTINUES}")
    # It splits at all punctuation, so "[MASK]" is never a word of a text.
    if not isinstance(cutter, BertPreTokenizer):
        raise UserError(
            f"{name}: splits words with {type(cutter).__name__}, must be BertPreTokenizer"
        )
    if model.unk_token != SPECIAL_PIECES[_UNKNOWN_ID]:
        raise UserError(f"{name}: its unknown piece is {model.unk_token!r}, must be '[UNK]'")
