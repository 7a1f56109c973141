"""The tokenizer that both halves share: text pieces and BERT's special pieces.

Text can never produce a special id. The pieces are SentencePiece's, trained here, or WordPiece's or
byte-level BPE's of an imported model; which, the file itself tells. Not for: reading corpora
(`data_prep.readers`) or choosing the training sentences (`data_prep.make_tokenizer`).

Letters: N texts of a batch, T ids of all of them, V pieces.
"""

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.data.masking import MaskingVocabulary
from dist_bert.tokenizer.config import SPECIAL_PIECES, TokenizerConfig
from dist_bert.tokenizer.kind import Kind, kind_of
from dist_bert.tokenizer.normalization import chosen
from dist_bert.tokenizer.sentence_pieces import SentencePieces, is_accent, is_ideograph, train

if TYPE_CHECKING:
    from dist_bert.tokenizer.byte_pieces import BytePieces
    from dist_bert.tokenizer.word_pieces import WordPieces

    Pieces = SentencePieces | WordPieces | BytePieces

PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(5)

_ENCODE_TEXTS = 16_384  # a call costs 2 ms; its lists take 8 times the memory of an array
_MASK_TEXT = SPECIAL_PIECES[MASK_ID]


class WordPlace(NamedTuple):
    """Place of a word among the ids of a text."""

    begin: int
    end: int  # its ids are those from begin to end - 1
    parts: tuple[str, str, str]  # the normalised text before, in and after these ids


class Tokenizer:
    """Text to ids and back.

    Attributes:
        path: of the file.
        content: the bytes to store: the file's, or the renumbered model's.
        changes: lines that describe the renumbering; none if it was not needed.
        fingerprint: SHA-256 of `content`.
        vocab_size: V.
        num_reserved_pieces: leading ids that are not text pieces: special, byte, unused ones.
        kind: of its pieces; all but SentencePiece are a tokenizer.json of an imported model.
    """

    def __init__(self, path: str | Path, may_renumber: bool = False) -> None:
        """Loads a file of any kind.

        Args:
            path: of the file.
            may_renumber: renumbers the special pieces of a SentencePiece model from another
                project. Only for new data: weights and shards depend on their original ids.

        Raises:
            UserError: it is missing, is not a tokenizer, or its first pieces are not BERT's special
                ones and may not, or cannot, be renumbered.
        """
        self.path = Path(path)
        self.content = _read(self.path)
        self.changes: tuple[str, ...] = ()
        self.kind = kind_of(self.content)
        is_ours = self.kind == "SentencePiece"
        self._pieces: Pieces = (
            SentencePieces(self.content, self.path)
            if is_ours
            else _imported_pieces(self.content, self.path, self.kind)
        )
        if may_renumber and is_ours and not _has_special_pieces(self._pieces):
            from dist_bert.tokenizer.special_pieces import (
                with_special_pieces,  # and protobuf: rarely needed
            )

            self.content, self.changes = with_special_pieces(self.content, self.path)
            self._pieces = SentencePieces(self.content, self.path)
        self.fingerprint = hashlib.sha256(self.content).hexdigest()
        self.vocab_size = len(self._pieces.names)
        self.num_reserved_pieces = self._pieces.num_reserved
        if not _has_special_pieces(self._pieces):
            remedy = (
                "import the model with `python launch/import_model.py`, which puts them there"
                if not is_ours
                else "launch/prepare_shards.py puts them there for a new model (use the"
                " tokenizer.model of its shards), or make one with `python"
                " launch/train_tokenizer.py --output_dir DIR`"
            )
            first = " ".join(self._pieces.names[: len(SPECIAL_PIECES)])
            raise UserError(
                f"--tokenizer {path}: its first pieces are {first}, must be the control pieces"
                f" {' '.join(SPECIAL_PIECES)}; {remedy}"
            )

    def encode_batch(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of many texts, without special ids, on one core.

        Returns:
            ids (T,) of all texts, and offsets (N + 1,): text i is ids[offsets[i]:offsets[i + 1]].
        """
        lengths, ids = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)]
        for begin in range(0, len(texts), _ENCODE_TEXTS):
            lists = self._pieces.encode_batch(texts[begin : begin + _ENCODE_TEXTS])
            lengths.append(np.fromiter(map(len, lists), np.int64, len(lists)))
            flat = itertools.chain.from_iterable(lists)
            ids.append(np.fromiter(flat, np.int32, int(lengths[-1].sum())))
        return np.concatenate(ids), np.cumsum(np.concatenate(lengths))

    def encode_documents(
        self, documents: Iterable[Sequence[str]]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of the sentences of many documents, as `encode_batch` of all sentences.

        The space between two sentences is in neither. Byte-level BPE, whose pieces know only the
        spaces that are there, gets it back, except before ideographs, which are written without.
        """
        if self.kind != "byte-level BPE":
            return self.encode_batch([text for sentences in documents for text in sentences])
        return self.encode_batch(
            [
                f" {text}" if place and not is_ideograph(text[:1]) else text
                for sentences in documents
                for place, text in enumerate(sentences)
            ]
        )

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without special ids."""
        return self._pieces.encode(text)

    def encode_inside_word(self, text: str) -> list[int]:
        """Ids of a text that follows a letter, without a space."""
        return self._pieces.encode_inside_word(text)

    def encode_words(self, words: Sequence[str], spaces_before: Sequence[bool]) -> list[list[int]]:
        """Ids of each word of a sentence, at least one of each.

        Joined, they are the ids of the sentence as a text, unless one of its pieces would contain
        parts of two words. A word that normalisation removes is unknown.

        Args:
            words: without spaces in them.
            spaces_before: whether a space precedes each word; for the first one it is implied, as
                in every text.
        """
        encoded = self._pieces.encode_words(words, spaces_before)
        return [ids or [UNK_ID] for ids in encoded]

    def encode_with_offsets(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Ids of one text, and the range of the text that each represents.

        A range excludes surrounding white space and characters that normalisation removes; that of
        a piece of white space is empty. If several pieces spell one character, as bytes or as parts
        of a ligature, each of them has the whole character.

        Returns:
            ids as from `encode`, (T,), and code points [begin, end) of the original text, (T, 2),
            both ascending.
        """
        return self._pieces.encode_with_offsets(text)

    def encode_with_mask(self, text: str) -> list[int]:
        """Ids of a text whose literal "[MASK]" become mask ids, which no other method produces."""
        *parts, last = text.split(_MASK_TEXT)
        first, *others = [*map(self._pieces.before_mask, parts), last]
        ids = self.encode(first)
        for part in others:
            ids.append(MASK_ID)
            ids += self._pieces.encode_behind_mask(part)
        return ids

    def find_word(self, text: str, word: str) -> WordPlace | None:
        """The ids of `encode(text)` that contain the first occurrence of a word.

        Text and word are compared after normalisation: with an uncased tokenizer, "Bank" equals
        "bank". It must be a whole word, but a piece may also contain a neighbour if words are not
        separated by spaces.

        Returns:
            None if the word is not in the text.
        """
        written = self._pieces.written(text)
        joint = b"".join(written).decode()
        wanted = b"".join(self._pieces.written(word)).decode().strip(" ")
        if not wanted:
            return None
        matches = (found.span() for found in re.finditer(re.escape(wanted), joint))
        span = next((span for span in matches if _is_whole_word(joint, *span)), None)
        if span is None:
            return None
        begin, end = (len(joint[:place].encode()) for place in span)
        ends = np.cumsum([len(piece) for piece in written])
        first, last = np.searchsorted(ends, begin, "right"), np.searchsorted(ends, end)
        before, inside, after = (
            b"".join(written[part]).decode(errors="replace")  # pieces may divide a character
            for part in (slice(first), slice(first, last + 1), slice(last + 1, None))
        )
        return WordPlace(int(first), int(last) + 1, (before, inside, after))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; omits special ids except the unknown one."""
        return self._pieces.decode(ids)

    def piece(self, index: int) -> str:
        """The piece of an id: "▁" is a space before it, "##" none, <0xE6> a byte."""
        return self._pieces.names[index]

    def text_of(self, index: int) -> str:
        """The text of an id's piece, including the space before it."""
        return self._pieces.text_of(index)

    @property
    def special_ids(self) -> dict[str, int]:
        """Special piece -> id, for the manifest."""
        return {piece: index for index, piece in enumerate(SPECIAL_PIECES)}

    @functools.cached_property
    def word_starts(self) -> NDArray[np.bool_]:
        """Which pieces begin a word, (V,): the table that whole-word masking needs."""
        return np.array([self._pieces.starts_word(i) for i in range(self.vocab_size)], np.bool_)

    @property
    def published_ids(self) -> NDArray[np.int64] | None:
        """The id of each piece in a folder in Hugging Face layout, (V,); None = the same."""
        return self._pieces.published_ids

    def masking_vocabulary(self, whole_words: bool, mean_span_length: float) -> MaskingVocabulary:
        """The properties of this tokenizer that masking needs.

        Args:
            whole_words: masks all pieces of a word together.
            mean_span_length: masks spans with this mean number of tokens; 0 = no spans.
        """
        return MaskingVocabulary(
            mask_id=MASK_ID,
            num_reserved_pieces=self.num_reserved_pieces,
            vocab_size=self.vocab_size,
            word_starts=self.word_starts if whole_words else None,
            word_ends=self._word_ends if whole_words else None,
            mean_span_length=mean_span_length,
        )

    @functools.cached_property
    def _word_ends(self) -> NDArray[np.bool_] | None:
        """Which pieces end with white space, (V,); None where that begins every word's piece."""
        if self.kind != "byte-level BPE":
            return None
        texts = map(self.text_of, range(self.vocab_size))
        return np.array([text[-1:].isspace() for text in texts], np.bool_)


def choose_normalization(sentences: Sequence[str], config: TokenizerConfig) -> TokenizerConfig:
    """The settings, with "auto" normalization resolved by the text."""
    return dataclasses.replace(config, normalization=chosen(sentences, config))


def train_tokenizer(
    sentences: Iterable[str], output_dir: str | Path, config: TokenizerConfig
) -> Path:
    """Trains a model on all of `sentences`, in their order, and writes it atomically.

    Equal sentences and settings give equal bytes, at any path (`max_sentences` is for the caller,
    who selects the sentences).

    Returns:
        Path of `tokenizer.model` in `output_dir`, which is created if missing.

    Raises:
        UserError: there are no sentences, or `vocab_size` does not fit them; suggests a size.
    """
    model = train(sentences, config)
    path = Path(output_dir) / "tokenizer.model"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, model)
    return path


def _has_special_pieces(pieces: "Pieces") -> bool:
    count = len(SPECIAL_PIECES)
    return tuple(pieces.names[:count]) == SPECIAL_PIECES and pieces.num_reserved >= count


def _is_whole_word(text: str, begin: int, end: int) -> bool:
    """Whether no letter, digit or accent continues a range of normalised text on either side."""
    for outside, inside in ((begin - 1, begin), (end, end - 1)):
        if (
            not 0 <= outside < len(text)
            or is_ideograph(text[outside])
            or is_ideograph(text[inside])
        ):
            continue  # an ideograph is a separate word
        if (text[outside].isalnum() and text[inside].isalnum()) or is_accent(text[outside]):
            return False
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"--tokenizer {path}: cannot be read ({error.strerror}); make one with `python"
            " launch/train_tokenizer.py --output_dir DIR`"
        ) from None


def _imported_pieces(content: bytes, path: Path, kind: Kind) -> "WordPieces | BytePieces":
    try:  # an optional package, not needed by tokenizers trained here
        from dist_bert.tokenizer.byte_pieces import BytePieces
        from dist_bert.tokenizer.word_pieces import WordPieces
    except ImportError as error:
        raise UserError(
            f"--tokenizer {path}: is a tokenizer.json, which needs the package {error.name}: pip"
            " install -c constraints.txt -e '.[huggingface]'"
        ) from None
    return WordPieces(content, path) if kind == "WordPiece" else BytePieces(content, path)
