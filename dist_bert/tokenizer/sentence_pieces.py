"""Encodes text with a SentencePiece model, and trains such a model.

Training is deterministic: equal sentences in equal order give equal bytes. Not for: special ids or
words (`dist_bert.tokenizer.tokenizer`, the only user of this module).

Letters: N texts of a batch, T ids of a text, V pieces, C code points of a normalised text.

Source: Kudo 2018, "Subword regularization" (unigram); Sennrich et al. 2016 (BPE);
https://github.com/google/sentencepiece.
"""

import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.tokenizer.config import SPECIAL_PIECES, TokenizerConfig
from dist_bert.tokenizer.normalization import JOINERS, chosen, trainer_settings

SPACE = "\u2581"  # SentencePiece's mark for the space before a word
# Unigram training sums its statistics per thread: another number would yield other pieces.
_TRAINING_THREADS = 8
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_STRANGER = "\ue000"  # private use: occurs in no text, so in no piece


class SentencePieces:
    """A trained SentencePiece model.

    Attributes:
        names: the V pieces in SentencePiece's notation.
        num_reserved: leading pieces that are not text: control, unknown and byte pieces.
    """

    published_ids = None  # of each piece elsewhere: the same

    def __init__(self, model: bytes, path: Path) -> None:
        """Loads a model.

        Args:
            model: the file's bytes.
            path: of the file, for messages.

        Raises:
            UserError: it is not a SentencePiece model.
        """
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            is_loaded = bool(model) and self._processor.load_from_serialized_proto(model)
        except RuntimeError:
            is_loaded = False
        if not is_loaded:
            raise UserError(
                f"--tokenizer {path}: is not a SentencePiece model, nor the tokenizer.json of an"
                " imported one; make one with `python launch/train_tokenizer.py --output_dir DIR`"
            )
        count = int(self._processor.vocab_size())
        self.names = [str(self._processor.id_to_piece(i)) for i in range(count)]
        self.num_reserved = next((i for i in range(count) if not self._is_reserved(i)), count)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of N texts, on one core."""
        # num_threads: the default is all cores, but other ranks use these.
        lists: list[list[int]] = self._processor.encode(texts, num_threads=1)
        return lists

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return list(self._processor.encode(text))

    def encode_inside_word(self, text: str) -> list[int]:
        """Ids of a text without a space before it: encodes it after a character of no piece."""
        before = self._processor.encode(_STRANGER, out_type=str)
        pieces = self._processor.encode(_STRANGER + text, out_type=str)
        # Adjacent unknown characters are one piece: the text's first ones may join the stranger.
        is_merged = pieces[len(before) - 1] != before[-1]
        return self.encode(_STRANGER + text)[len(before) - is_merged :]

    def before_mask(self, text: str) -> str:
        """The part of the text before a [MASK] that has ids: all of it."""
        return text

    def encode_behind_mask(self, text: str) -> list[int]:
        """Ids of the text after a [MASK]: with a space before it only if there is one."""
        return self.encode(text) if text[:1].isspace() else self.encode_inside_word(text)

    def encode_words(self, words: Sequence[str], spaces_before: Sequence[bool]) -> list[list[int]]:
        """Ids of each word; none if normalisation removes it."""
        return [
            self.encode(word) if is_spaced or place == 0 else self.encode_inside_word(word)
            for place, (word, is_spaced) in enumerate(zip(words, spaces_before, strict=True))
        ]

    def encode_with_offsets(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Ids of one text and the range of each in it, (T, 2), as in `Tokenizer`."""
        ids, written = self.encode(text), self.written(text)
        if not ids:
            return [], np.zeros((0, 2), np.int64)
        normalised, places = self._processor.normalize(text, with_offsets=True)
        starts, ends = _source_stretches(normalised, np.array(places, np.int64))
        joint = np.frombuffer(b"".join(written), np.uint8)
        assert joint.tobytes() == normalised.replace(SPACE, " ").encode(), "pieces spell all of it"
        character = np.cumsum(joint & 0xC0 != 0x80) - 1  # of each byte: 10xxxxxx continues one
        last_bytes = np.cumsum([len(piece) for piece in written]) - 1
        first = character[np.append(0, last_bytes[:-1] + 1)]
        last = character[last_bytes]
        begin = np.minimum.accumulate(starts[::-1])[::-1][first]
        end = np.maximum.accumulate(ends)[last]
        following, before = self._visible_neighbours(text)
        begin, end = following[begin], before[end]
        is_empty = begin >= end
        end = np.maximum.accumulate(np.where(is_empty, 0, end))
        return ids, np.stack([np.where(is_empty, end, begin), end], axis=1)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids."""
        return str(self._processor.decode([int(i) for i in ids]))

    def text_of(self, index: int) -> str:
        """The text of a piece, including the space before it."""
        return self.names[index].replace(SPACE, " ")

    def starts_word(self, index: int) -> bool:
        """Whether a piece begins a word.

        It does if it starts with a space, an ideograph or kana (each its own word), a punctuation
        mark or a symbol. Byte pieces begin a word unless they continue a character.
        """
        piece = self.names[index]
        if self._processor.is_byte(index):
            return not 0x80 <= int(piece[3:5], 16) < 0xC0  # of "<0xE4>"; 10xxxxxx continues
        if self._is_reserved(index) or piece.startswith(SPACE):
            return True
        return is_ideograph(piece[0]) or not (piece[0].isalnum() or is_accent(piece[0]))

    def written(self, text: str) -> list[bytes]:
        """The normalised text of each piece of a text; concatenated, the whole normalised text."""
        pieces = self._processor.encode(text, out_type=str)
        return [
            bytes([int(piece[3:5], 16)])
            if self._processor.is_byte(index)
            else piece.replace(SPACE, " ").encode()
            for index, piece in zip(self.encode(text), pieces, strict=True)
        ]

    def _visible_neighbours(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each place in a text: start of the next visible character, end of the last one."""
        distinct = list(set(text))
        normalised = self._processor.normalize(distinct)
        blank = {c for c, left in zip(distinct, normalised, strict=True) if c.isspace() or not left}
        places = np.arange(len(text) + 1)
        is_visible = np.array([character not in blank for character in text], np.bool_)
        begins = np.append(np.where(is_visible, places[:-1], len(text)), len(text))
        ends = np.append(0, np.where(is_visible, places[1:], 0))
        return np.minimum.accumulate(begins[::-1])[::-1], np.maximum.accumulate(ends)

    def _is_reserved(self, index: int) -> bool:
        processor = self._processor
        return (
            processor.is_control(index) or processor.is_unknown(index) or processor.is_byte(index)
        )


def train(sentences: Iterable[str], config: TokenizerConfig) -> bytes:
    """Trains a model on all of `sentences`, in their order; returns the bytes of its file.

    Raises:
        UserError: there are no sentences, or `vocab_size` does not fit them; suggests a size. Or
            the file of normalization rules cannot be read.
    """
    pad, unk, cls, sep, mask = SPECIAL_PIECES
    sentences = list(sentences)
    model = io.BytesIO()  # not a file prefix: SentencePiece would store the path in the model
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.model_type,
            **trainer_settings(chosen(sentences, config), config.lower_case),
            byte_fallback=config.byte_fallback,
            character_coverage=config.character_coverage,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=pad,
            unk_piece=unk,
            bos_piece=cls,
            eos_piece=sep,
            control_symbols=[mask],
            shuffle_input_sentence=False,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_training_problem(str(error), config)) from None
    return model.getvalue()


def is_ideograph(character: str) -> bool:
    """Whether a character belongs to a script without spaces: an ideograph or kana."""
    return bool(_CJK.match(character))


def is_accent(character: str) -> bool:
    """Whether a character belongs to the letter before it: an accent, vowel sign or joiner."""
    return character in JOINERS or unicodedata.category(character).startswith("M")


def _source_stretches(
    normalised: str, places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The range of a text that each code point of the normalised text was made from.

    Args:
        normalised: with SentencePiece's marks for spaces, the first of which corresponds to none.
        places: where the source of each begins, and where that of the last one ends, (C + 1,).

    Returns:
        begins and ends, (C,); those of spaces are the text's end and its beginning, so that they
        do not affect a minimum of begins or a maximum of ends.
    """
    starts, groups = np.unique(places[:-1], return_inverse=True)
    is_text = np.array([character != SPACE for character in normalised], np.bool_)
    is_visible = np.bincount(groups, is_text)[groups] > 0  # or part of a visible character
    is_visible[0] = is_text[0]
    ends = np.append(starts[1:], places[-1])[groups]
    return np.where(is_visible, places[:-1], places[-1]), np.where(is_visible, ends, 0)


def _training_problem(message: str, config: TokenizerConfig) -> str:
    """Converts SentencePiece's error to a message that names the flag, the rule and the remedy."""
    flag = f"--vocab_size {config.vocab_size}"
    if found := re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        most = found[1]
        return (
            f"{flag}: this text yields at most {most} pieces; give --vocab_size {most} or more text"
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"{flag}: the characters of this text alone need {found[1]} pieces; give more, or a"
            " lower --character_coverage"
        )
    if "empty()" in message or "all_chars_count" in message:
        return "--input: has no sentence to train a tokenizer on"
    return f"{flag}: SentencePiece cannot train this tokenizer ({' '.join(message.split())})"
