"""The tokenizer that both halves share: SentencePiece with BERT's special pieces.

Text can never produce a special id: [PAD], [CLS], [SEP] and [MASK] are control pieces. Training is
deterministic: equal sentences in equal order give equal bytes. Not for: reading corpora
(`data_prep.readers`) or choosing the training sentences (`data_prep.sampling`).

Letters: N texts of a batch, T ids of all of them, V pieces, C code points of a normalised text.

Source: Kudo 2018, "Subword regularization" (unigram); Sennrich et al. 2016 (BPE);
https://github.com/google/sentencepiece.
"""

import functools
import hashlib
import io
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from dist_bert import files
from dist_bert.errors import UserError
from dist_bert.masking import MaskingVocabulary
from dist_bert.tokenizer_config import SPECIAL_PIECES, TokenizerConfig

PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(5)

SPACE = "\u2581"  # SentencePiece's mark for the space before a word
# Unigram training sums its statistics per thread: another number would give other pieces.
_TRAINING_THREADS = 8
_ENCODE_TEXTS = 16_384  # a call costs 2 ms; its lists take 8 times the memory of an array
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_STRANGER = "\ue000"  # private use: in no text, so in no piece
_REMEDY = "make one with `python launch/train_tokenizer.py --output_dir DIR`"
_MASK_TEXT = SPECIAL_PIECES[MASK_ID]


class WordPlace(NamedTuple):
    """Where a word stands among the ids of a text."""

    begin: int
    end: int  # its ids are those from begin to end - 1
    parts: tuple[str, str, str]  # the normalised text before, in and after these ids


class Tokenizer:
    """A trained SentencePiece model: text to ids and back.

    Attributes:
        path: of the model file.
        fingerprint: SHA-256 of the file's bytes.
        vocab_size: V.
        num_reserved_pieces: leading ids that are no piece of text: special and byte pieces.
    """

    def __init__(self, path: str | Path) -> None:
        """Loads a model file.

        Raises:
            UserError: it is missing, is no SentencePiece model, or lacks BERT's special pieces.
        """
        self.path = Path(path)
        self._processor, self.fingerprint = _load(self.path)
        self.vocab_size = int(self._processor.vocab_size())
        self._pieces = [self._processor.id_to_piece(i) for i in range(self.vocab_size)]
        reserved = (i for i in range(self.vocab_size) if not self._is_reserved(i))
        self.num_reserved_pieces = next(reserved, self.vocab_size)
        first = self._pieces[: len(SPECIAL_PIECES)]
        if tuple(first) != SPECIAL_PIECES or self.num_reserved_pieces < len(SPECIAL_PIECES):
            raise UserError(
                f"--tokenizer {path}: its first pieces are {' '.join(first)}, must be the control"
                f" pieces {' '.join(SPECIAL_PIECES)}; {_REMEDY}"
            )

    def encode_batch(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of many texts, without special ids, on one core.

        Returns:
            ids (T,) of all texts, and offsets (N + 1,) of which text i has the i-th and the next.
        """
        lengths, ids = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)]
        for begin in range(0, len(texts), _ENCODE_TEXTS):
            # num_threads: the default is all cores, which belong to the other ranks.
            lists = self._processor.encode(texts[begin : begin + _ENCODE_TEXTS], num_threads=1)
            lengths.append(np.fromiter(map(len, lists), np.int64, len(lists)))
            flat = itertools.chain.from_iterable(lists)
            ids.append(np.fromiter(flat, np.int32, int(lengths[-1].sum())))
        return np.concatenate(ids), np.cumsum(np.concatenate(lengths))

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without special ids."""
        return list(self._processor.encode(text))

    def encode_inside_word(self, text: str) -> list[int]:
        """Ids of a text that no space precedes: read behind a character that no piece contains."""
        before = self._processor.encode(_STRANGER, out_type=str)
        pieces = self._processor.encode(_STRANGER + text, out_type=str)
        # Unknown characters in a row are one piece: the text's first ones may be in the stranger's.
        is_merged = pieces[len(before) - 1] != before[-1]
        return self.encode(_STRANGER + text)[len(before) - is_merged :]

    def encode_words(self, words: Sequence[str], spaces_before: Sequence[bool]) -> list[list[int]]:
        """Ids of each word of a sentence, at least one of each.

        Joined they are the ids of the sentence as a text, unless one of its pieces would hold parts
        of two words. A word that normalisation leaves nothing of is unknown.

        Args:
            words: without spaces in them.
            spaces_before: whether a word stands behind a space; the first one counts as if it did,
                as in every text.
        """
        encoded = (
            self.encode(word) if is_spaced or place == 0 else self.encode_inside_word(word)
            for place, (word, is_spaced) in enumerate(zip(words, spaces_before, strict=True))
        )
        return [ids or [UNK_ID] for ids in encoded]

    def encode_with_offsets(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Ids of one text, and the stretch of it that each stands for.

        A stretch has no white space around it, nor characters that normalisation removes; that of a
        piece of white space is empty. Where several pieces spell one character, as bytes or as the
        parts of a ligature, each of them has the whole character.

        Returns:
            ids as of `encode`, (T,), and code points [begin, end) of the text as given, (T, 2),
            both ascending.
        """
        ids, written = self.encode(text), self._written_pieces(text)
        if not ids:
            return [], np.zeros((0, 2), np.int64)
        normalised, places = self._processor.normalize(text, with_offsets=True)
        starts, ends = _source_stretches(normalised, np.array(places, np.int64))
        joint = np.frombuffer(b"".join(written), np.uint8)
        assert joint.tobytes() == normalised.encode(), "pieces spell the normalised text"
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

    def encode_with_mask(self, text: str) -> list[int]:
        """Ids of a text whose literal "[MASK]" become mask ids: no other text can reach them."""
        first, *others = text.split(_MASK_TEXT)
        ids = self.encode(first)
        for part in others:
            ids.append(MASK_ID)
            # SentencePiece puts a space before every text; here there is one only if it was typed.
            ids += self.encode(part) if part[:1].isspace() else self.encode_inside_word(part)
        return ids

    def find_word(self, text: str, word: str) -> WordPlace | None:
        """Which ids of `encode(text)` hold the first occurrence of a word.

        Text and word are compared as this tokenizer normalises them: with an uncased one, "Bank" is
        "bank". It must be a whole word, but a piece may hold a neighbour too where words are not
        separated by spaces.

        Returns:
            None where the text does not have it.
        """
        written = self._written_pieces(text)
        joint = b"".join(written).decode()
        wanted = b"".join(self._written_pieces(word)).decode().strip(SPACE)
        matches = (found.span() for found in re.finditer(re.escape(wanted), joint))
        span = next((span for span in matches if _is_whole_word(joint, *span)), None)
        if span is None or not wanted:
            return None
        begin, end = (len(joint[:place].encode()) for place in span)
        ends = np.cumsum([len(piece) for piece in written])
        first, last = np.searchsorted(ends, begin, "right"), np.searchsorted(ends, end)
        before, inside, after = (
            b"".join(written[part]).decode()
            for part in (slice(first), slice(first, last + 1), slice(last + 1, None))
        )
        return WordPlace(int(first), int(last) + 1, (before, inside, after))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special ids except the unknown one leave no trace."""
        return str(self._processor.decode([int(i) for i in ids]))

    def piece(self, index: int) -> str:
        """The piece of an id as SentencePiece writes it, a leading space as "▁"."""
        return str(self._pieces[index])

    @property
    def special_ids(self) -> dict[str, int]:
        """Special piece -> id, for the manifest."""
        return {piece: index for index, piece in enumerate(SPECIAL_PIECES)}

    @functools.cached_property
    def word_starts(self) -> NDArray[np.bool_]:
        """Which pieces begin a word, (V,): the table that whole-word masking needs.

        A piece begins a word when it begins with a space, an ideograph or kana (each its own word)
        or a punctuation mark or symbol. Byte pieces begin one unless they continue a character.
        """
        return np.array([self._starts_word(i) for i in range(self.vocab_size)], np.bool_)

    def masking_vocabulary(self, whole_words: bool, mean_span_length: float) -> MaskingVocabulary:
        """What masking needs of this tokenizer.

        Args:
            whole_words: masks all pieces of a word together.
            mean_span_length: masks runs of this many tokens on average; 0 = no runs.
        """
        return MaskingVocabulary(
            mask_id=MASK_ID,
            num_reserved_pieces=self.num_reserved_pieces,
            vocab_size=self.vocab_size,
            word_starts=self.word_starts if whole_words else None,
            mean_span_length=mean_span_length,
        )

    def _written_pieces(self, text: str) -> list[bytes]:
        """What each of a text's pieces stands for; together they are the normalised text."""
        pieces = self._processor.encode(text, out_type=str)
        return [
            bytes([int(piece[3:5], 16)]) if self._processor.is_byte(index) else piece.encode()
            for index, piece in zip(self.encode(text), pieces, strict=True)
        ]

    def _visible_neighbours(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each place in a text: where the next visible character begins, the last one ended."""
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

    def _starts_word(self, index: int) -> bool:
        piece = self._pieces[index]
        if self._processor.is_byte(index):
            return not 0x80 <= int(piece[3:5], 16) < 0xC0  # of "<0xE4>"; 10xxxxxx continues
        if self._is_reserved(index) or piece.startswith(SPACE):
            return True
        is_accent = unicodedata.category(piece[0]).startswith("M")  # belongs to the letter before
        return bool(_CJK.match(piece)) or not (piece[0].isalnum() or is_accent)


def train_tokenizer(
    sentences: Iterable[str], output_dir: str | Path, config: TokenizerConfig
) -> Path:
    """Trains a model on all of `sentences`, in their order, and writes it whole.

    Equal sentences and settings give equal bytes, wherever it is written (`max_sentences` is for
    the caller, who chooses the sentences).

    Returns:
        Path of `tokenizer.model` in `output_dir`, which is made if it is missing.

    Raises:
        UserError: there are no sentences, or `vocab_size` does not suit them; says what would.
    """
    model = io.BytesIO()  # not a file prefix: SentencePiece would store the path in the model
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.model_type,
            normalization_rule_name="nmt_nfkc_cf" if config.lower_case else "nmt_nfkc",
            byte_fallback=config.byte_fallback,
            character_coverage=config.character_coverage,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=CLS_ID,
            eos_id=SEP_ID,
            pad_piece=SPECIAL_PIECES[PAD_ID],
            unk_piece=SPECIAL_PIECES[UNK_ID],
            bos_piece=SPECIAL_PIECES[CLS_ID],
            eos_piece=SPECIAL_PIECES[SEP_ID],
            control_symbols=[SPECIAL_PIECES[MASK_ID]],
            shuffle_input_sentence=False,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_training_problem(str(error), config)) from None
    path = Path(output_dir) / "tokenizer.model"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, model.getvalue())
    return path


def is_ideograph(character: str) -> bool:
    """Whether a character is of a script without spaces: an ideograph or kana."""
    return bool(_CJK.match(character))


def _is_whole_word(text: str, begin: int, end: int) -> bool:
    """Whether no letter, digit or accent outside a stretch of normalised text goes on with it."""
    for outside, inside in ((begin - 1, begin), (end, end - 1)):
        if not 0 <= outside < len(text) or _CJK.match(text[outside]) or _CJK.match(text[inside]):
            continue  # an ideograph is a word of its own
        is_accent = unicodedata.category(text[outside]).startswith("M")
        if (text[outside].isalnum() and text[inside].isalnum()) or is_accent:
            return False
    return True


def _source_stretches(
    normalised: str, places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which stretch of a text each code point of the normalised text was made from.

    Args:
        normalised: with SentencePiece's marks for spaces, the first of which stands for nothing.
        places: where what it was made from begins, and where that of the last one ends, (C + 1,).

    Returns:
        begins and ends, (C,); those of spaces are the text's end and its beginning, so that they
        count for nothing in a minimum of begins or a maximum of ends.
    """
    starts, groups = np.unique(places[:-1], return_inverse=True)
    is_text = np.array([character != SPACE for character in normalised], np.bool_)
    is_visible = np.bincount(groups, is_text)[groups] > 0  # or part of a visible character
    is_visible[0] = is_text[0]
    ends = np.append(starts[1:], places[-1])[groups]
    return np.where(is_visible, places[:-1], places[-1]), np.where(is_visible, ends, 0)


def _load(path: Path) -> tuple[sentencepiece.SentencePieceProcessor, str]:
    """A model file, and the SHA-256 of its bytes."""
    try:
        model = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"--tokenizer {path}: cannot be read ({error.strerror}); {_REMEDY}"
        ) from None
    processor = sentencepiece.SentencePieceProcessor()
    try:
        is_loaded = bool(model) and processor.load_from_serialized_proto(model)
    except RuntimeError:
        is_loaded = False
    if not is_loaded:
        raise UserError(f"--tokenizer {path}: is not a SentencePiece model; {_REMEDY}")
    return processor, hashlib.sha256(model).hexdigest()


def _training_problem(message: str, config: TokenizerConfig) -> str:
    """SentencePiece's complaint in words that name the flag, the rule and the remedy."""
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
