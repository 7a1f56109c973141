"""Encodes text with an imported byte-level BPE vocabulary, using the `tokenizers` library.

The file is ModernBERT's `tokenizer.json`, unchanged. Its ids are renumbered here, in memory: the
special pieces come first, then others that are not text, then the rest in its order. Its settings
of padding and truncation are ignored. Pieces are shown with "▁" for a space, and with <0xE6> for
a byte of a character that they contain in part. Not for: words or special ids
(`dist_bert.tokenizer.tokenizer`).

Letters: N texts of a batch, T ids of a text, V pieces.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2;
Warner et al. 2024, "ModernBERT" (https://arxiv.org/abs/2412.13663), section 2.1.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from dist_bert.common.errors import UserError
from dist_bert.tokenizer.config import SPECIAL_PIECES
from dist_bert.tokenizer.sentence_pieces import SPACE, is_accent, is_ideograph
from dist_bert.tokenizer.word_pieces import read_tokenizer_json

_UNKNOWN_ID = SPECIAL_PIECES.index("[UNK]")
_UNUSED = re.compile(r"\[unused\d+\]")  # placeholders in the published vocabulary
# GPT-2's characters for bytes: printable ones for themselves, the others from U+0100 on.
_PRINTED = (*range(33, 127), *range(161, 173), *range(174, 256))
_BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {
    chr(256 + place): byte for place, byte in enumerate(sorted({*range(256)} - {*_PRINTED}))
}
# What a [MASK] takes with it: Unicode's White_Space. Python's includes U+001C to U+001F.
_WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
# Part of the file -> what it must be, of the values that change ids.
_PARTS: dict[str, dict[str, Any]] = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "post_processor": {"type": "TemplateProcessing"},
    "model": {"type": "BPE"},
}
_UNSET = (  # settings of the model, which ModernBERT does not use
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "byte_fallback",
    "ignore_merges",
)
_TEMPLATES = {
    "single": ["[CLS]", "A", "[SEP]"],
    "pair": ["[CLS]", "A", "[SEP]", "B", "[SEP]"],
}


class BytePieces:
    """A byte-level BPE vocabulary of ModernBERT's kind.

    Attributes:
        names: the V pieces, as they are shown.
        num_reserved: leading pieces that are not text: special and unused ones.
        published_ids: (V,) the id of each piece in the file.
        mask_takes_spaces: whether a [MASK] in a text includes the white space before it.
    """

    def __init__(self, model: bytes, path: Path) -> None:
        """Loads a tokenizer.json.

        Args:
            model: the file's bytes.
            path: of the file, for messages.

        Raises:
            UserError: it is not a tokenizer.json, or not of ModernBERT's kind.
        """
        settings = json.loads(read_tokenizer_json(model, path).to_str())
        added = _check_kind(settings, f"--tokenizer {path}")
        # In a text, the library can ignore special tokens: here, these five alone are special.
        tokens = [{**token, "special": name in SPECIAL_PIECES} for name, token in added.items()]
        self._fast = FastTokenizer.from_str(json.dumps({**settings, "added_tokens": tokens}))
        self._fast.encode_special_tokens = True
        self._fast.no_padding()
        self._fast.no_truncation()
        ids = self._fast.get_vocab(with_added_tokens=True)
        order = _order(ids, added, f"--tokenizer {path}")
        names = {index: name for name, index in ids.items()}
        not_text = [name for name, token in added.items() if _is_not_text(name, token)]
        self.published_ids = np.array(order, np.int64)
        self.num_reserved = len(not_text)
        self.mask_takes_spaces = bool(added["[MASK]"]["lstrip"])
        self._our_ids = np.argsort(self.published_ids).tolist()
        self._bytes = [_bytes_of(names[index], names[index] in added) for index in order]
        self.names = [*SPECIAL_PIECES, *map(_shown, self._bytes[len(SPECIAL_PIECES) :])]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of N texts, on one core."""
        encoded = self._fast.encode_batch_fast(texts, add_special_tokens=False)
        return [[self._our_ids[index] for index in made.ids] for made in encoded]

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        ids = self._fast.encode(text, add_special_tokens=False).ids
        return [self._our_ids[index] for index in ids]

    def encode_inside_word(self, text: str) -> list[int]:
        """Ids of a text that follows a letter: no piece says that a word begins but by a space."""
        return self.encode(text)

    def encode_behind_mask(self, text: str) -> list[int]:
        """Ids of the text after a [MASK]."""
        return self.encode(text)

    def before_mask(self, text: str) -> str:
        """The part of the text before a [MASK] that this does not take with it."""
        return text.rstrip(_WHITE_SPACE) if self.mask_takes_spaces else text

    def encode_words(self, words: Sequence[str], spaces_before: Sequence[bool]) -> list[list[int]]:
        """Ids of each word; its piece has the space before it, except in the first one."""
        return [
            self.encode(f" {word}" if is_spaced and place else word)
            for place, (word, is_spaced) in enumerate(zip(words, spaces_before, strict=True))
        ]

    def encode_with_offsets(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Ids of one text and the range of each in it, (T, 2), as in `Tokenizer`."""
        encoded = self._fast.encode(text, add_special_tokens=False)
        given: list[tuple[int, int]] = encoded.offsets
        ends, following = [end for _, end in given], len(text)
        for place in range(len(given) - 1, -1, -1):  # what NFC composes belongs to it
            is_shared = given[place] == given[min(place + 1, len(given) - 1)]
            ends[place] = max(ends[place], following)
            if is_shared and place + 1 < len(given):
                ends[place] = ends[place + 1]
            following = given[place][0]
        offsets, last = [], 0
        for (begin, _), end in zip(given, ends, strict=True):
            while begin < end and text[end - 1].isspace():
                end -= 1
            while begin < end and text[begin].isspace():
                begin += 1
            last = max(last, end) if begin < end else last
            offsets.append((begin, end) if begin < end else (last, last))
        ids = [self._our_ids[index] for index in encoded.ids]
        return ids, np.array(offsets, np.int64).reshape(-1, 2)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; a character of which bytes are missing is U+FFFD."""
        shown = (int(i) for i in ids if i == _UNKNOWN_ID or i >= len(SPECIAL_PIECES))
        return b"".join(self._bytes[index] for index in shown).decode(errors="replace")

    def text_of(self, index: int) -> str:
        """The text of a piece, including the space before it; U+FFFD for a part of a character."""
        return self._bytes[index].decode(errors="replace")

    def starts_word(self, index: int) -> bool:
        """Whether a piece begins a word, wherever it stands.

        It does if it starts with white space, an ideograph or kana (each its own word), a
        punctuation mark or a symbol. Of a character in part, the first bytes decide.
        """
        first = _first_character(self._bytes[index])
        return bool(first) and (is_ideograph(first) or not (first.isalnum() or is_accent(first)))

    def written(self, text: str) -> list[bytes]:
        """The normalised text of each piece of a text; concatenated, the whole normalised text."""
        return [self._bytes[index] for index in self.encode(text)]


def _check_kind(settings: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """Rejects tokenizers that do not cut text as ModernBERT's does.

    Args:
        settings: the content of a tokenizer.json, as the library writes it.
        name: of the file, for messages.

    Returns:
        The added tokens of the file, by their text.

    Raises:
        UserError: names the part and what it must be, and begins with `name`.
    """
    for part, needed in _PARTS.items():
        found = settings.get(part) or {}
        for key, value in needed.items():
            if found.get(key) != value:
                raise UserError(
                    f"{name}: its {part} has {key} = {found.get(key)!r}, must be {value!r} as in"
                    " ModernBERT's"
                )
    for key in _UNSET:
        if settings["model"].get(key):
            raise UserError(
                f"{name}: its model has {key} = {settings['model'][key]!r}, must be unset as in"
                " ModernBERT's"
            )
    for key, names in _TEMPLATES.items():
        parts = settings["post_processor"][key]
        found = [value["id"] for part in parts for value in part.values()]
        if found != names:
            raise UserError(
                f"{name}: its post_processor makes {' '.join(found)} of a {key}, must be"
                f" {' '.join(names)} as ModernBERT's"
            )
    added = {token["content"]: token for token in settings["added_tokens"]}
    if missing := [piece for piece in SPECIAL_PIECES if piece not in added]:
        raise UserError(
            f"{name}: its added_tokens lack {', '.join(missing)}, which this system requires"
        )
    for key in ("normalized", "rstrip", "single_word"):
        if added["[MASK]"][key]:
            raise UserError(
                f"{name}: in its added_tokens, [MASK] has {key} = True, must be False as in"
                " ModernBERT's"
            )
    return added


def _order(ids: dict[str, int], added: dict[str, dict[str, Any]], name: str) -> list[int]:
    """The published id of each of our ids."""
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{name}: its ids must be 0, 1, 2, ... without gaps or repetitions")
    if missing := [character for character in _BYTE_OF if character not in ids]:
        raise UserError(
            f"{name}: its vocabulary lacks {len(missing)} of the 256 bytes, first"
            f" {missing[0]!r}: text with them would be lost"
        )
    special = [ids[piece] for piece in SPECIAL_PIECES]
    not_text = {ids[piece] for piece, token in added.items() if _is_not_text(piece, token)}
    others = sorted(not_text - {*special})
    return [*special, *others, *sorted({*ids.values()} - not_text)]


def _is_not_text(name: str, token: dict[str, Any]) -> bool:
    """Whether an added token is a special or an unused one."""
    return name in SPECIAL_PIECES or token["special"] or bool(_UNUSED.fullmatch(name))


def _bytes_of(name: str, is_added: bool) -> bytes:
    """The UTF-8 bytes that a piece of the file stands for."""
    if is_added or not all(character in _BYTE_OF for character in name):
        return name.encode()
    return bytes(_BYTE_OF[character] for character in name)


def _shown(raw: bytes) -> str:
    """A piece to read: bytes that are no visible character as <0xE6>."""
    text = raw.decode(errors="surrogateescape").replace(" ", SPACE)
    hidden = "[\x00-\x1f\x7f\udc80-\udcff]"  # surrogates: what is no UTF-8
    return re.sub(hidden, lambda byte: f"<0x{ord(byte[0]) & 0xFF:02X}>", text)


def _first_character(raw: bytes) -> str:
    """The first character, or the lowest one that begins with these bytes; "" inside of one."""
    lowest = (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80")
    for tail in lowest:
        text = (raw + tail).decode(errors="surrogateescape")
        if not "\udc80" <= text[0] <= "\udcff":
            return text[0]
    return ""
