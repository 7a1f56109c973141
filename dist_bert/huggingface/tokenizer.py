"""Converts SentencePiece models to the `tokenizers` library, and renumbers its WordPiece ones.

A converted SentencePiece model yields the same ids: where components of the library behave
differently, others compensate, as documented there. A published WordPiece vocabulary is renumbered.
`compare` measures the equality on given texts. Not for: training, which only uses
`dist_bert.tokenizer.tokenizer`.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sentencepiece import SentencePieceNormalizer
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as FastTokenizer

from dist_bert.common.errors import UserError
from dist_bert.tokenizer.config import SPECIAL_PIECES
from dist_bert.tokenizer.sentence_pieces import SPACE
from dist_bert.tokenizer.special_pieces import NORMAL, UNIGRAM, USER_DEFINED, missing_for_export
from dist_bert.tokenizer.tokenizer import CLS_ID, MASK_ID, SEP_ID, UNK_ID, Tokenizer
from dist_bert.tokenizer.word_pieces import CONTINUES, check_kind

_SCORE_PER_BYTE = 0.1  # of a user-defined symbol, see _score
_MARKS = r"[\p{M}\x{200C}\x{200D}\x{FF9E}\x{FF9F}]"  # continues the previous character
_REMOVED = "\x01"  # SentencePiece's tables remove it
_NONCHARACTER, _PRIVATE_PLANE = "\uffff", 0xF0000  # in no text
_TIE_TOLERANCE = 1e-6  # a few roundings of a float32 sum
_WINDOW = 4_096  # texts compared at a time
# Everything that a text may contain: each of these can make tokenizers differ.
ODD_TEXTS = (
    "",
    " ",
    "  two  spaces,\ttabs\t\tand\nlines\r\nof\x0bany\x0ckind \u3000 \xa0 ",
    "昨天，老师在桥梁旁边看见了古老的灯笼！中文and English混写。",
    "繁體字、日本語のカタカナ、ﾊﾝｶｸ ﾊﾟｰﾃｨｰ ｶﾞｷﾞｸﾞ、한국어 한국어",
    "Ｆｕｌｌ ｗｉｄｔｈ，１２３！～〜~",
    "👍 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ❤️ 👍🏽",
    "\x00\x01control\x07 characters\x1b[0m\x7f \x85 \u200b\u200d\ufeff\u00ad\u2028\ufffd",
    "naïve, nai\u0308ve, ế, e\u0302\u0301, E\u0323\u0301, Ж\u0301, ｅ\u0301, İstanbul, Straße, ΣΑΣ",
    "ﬁne ½ ² ™ ① ㎏ ﷺ … — “quotes” ‘single’ «those»",
    "नमस्ते दुनिया, שָׁלוֹם, السَّلَامُ عَلَيْكُمْ, ภาษาไทย, Việt Nam",
    "The [MASK] lamp, the [MASK]s and the un[MASK]ed [MASK]",
    "[MASK]",
    "[MASK] [MASK][MASK]",
    "\u0305\u0301 at the start, and behind [MASK]\u0301",
    "\uff9e",
    "［MASK］ ［CLS］ [mask] [MASK <0x41> <0xE4> ▁ ▁▂▃ <unk> <s> </s>",
    "http://example.org/a_b?c=d&e=%20f#g user@example.org 3.14159e-10 1,000,000 C++ $x^2$ #!?",
    "supercalifragilisticexpialidocious" * 5,
)


class Difference(NamedTuple):
    """A text whose ids differ."""

    text: str
    ids: list[int]  # of the tokenizer that trained
    fast_ids: list[int]
    is_tie: bool  # two segmentations of a word, equally likely up to float32 rounding


class Comparison(NamedTuple):
    """Comparison of two tokenizers on many texts."""

    num_compared: int
    num_special: int  # skipped: they spell a special piece other than [MASK]
    differences: list[Difference]

    @property
    def num_ties(self) -> int:
        """Number of differences where neither tokenizer is wrong."""
        return sum(difference.is_tie for difference in self.differences)


def read_model(path: Path) -> Any:
    """A model file as a message of SentencePiece's protocol.

    Raises:
        UserError: with a setting of the model, the library would make other ids.
    """
    proto = sentencepiece_model.ModelProto()
    proto.ParseFromString(path.read_bytes())
    _check(proto, path)
    return proto


def fast_tokenizer(proto: Any) -> FastTokenizer:
    """Converts the result of `read_model`; adds `[CLS] A [SEP] B [SEP]` to texts and pairs."""
    is_unigram = proto.trainer_spec.model_type == UNIGRAM
    fast = FastTokenizer(_unigram(proto) if is_unigram else _bpe(proto))
    fast.normalizer = _normalizer(proto.normalizer_spec)
    # Pieces have spaces only at their start, so words can be split first; the library caches them.
    words = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=True)
    fast.pre_tokenizer = pre_tokenizers.Sequence([words, _spelt()]) if is_unigram else words
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _add_special_pieces(fast)
    return fast


def renumbered(
    published: FastTokenizer, num_rows: int, name: str
) -> tuple[FastTokenizer, list[int]]:
    """A WordPiece tokenizer with the special pieces first, the others in their order.

    Args:
        published: as loaded.
        num_rows: R of the word embeddings, some of which may have no piece.
        name: of its folder, for messages.

    Returns:
        The tokenizer, and the published id for each of our R ids; those without a piece come last.

    Raises:
        UserError: it is not of BERT's kind, or has pieces or added tokens besides the vocabulary.
    """
    check_kind(published, name)
    ids = published.get_vocab(with_added_tokens=False)
    if missing := [piece for piece in SPECIAL_PIECES if piece not in ids]:
        raise UserError(
            f"{name}: its vocabulary lacks {', '.join(missing)}, which this system requires"
        )
    added = [token.content for token in published.get_added_tokens_decoder().values()]
    if others := [token for token in added if token not in SPECIAL_PIECES]:
        raise UserError(
            f"{name}: has added tokens ({', '.join(others[:5])}), without which texts get other"
            " ids: only the vocabulary itself can be imported"
        )
    if (last := max(ids.values())) >= num_rows:
        raise UserError(
            f"{name}: its vocabulary has ids up to {last}, the word embeddings {num_rows} rows:"
            " they belong to different models"
        )
    special = [ids[piece] for piece in SPECIAL_PIECES]
    owned = sorted(set(ids.values()) - {*special})
    order = [*special, *owned, *sorted(set(range(num_rows)) - {*special, *owned})]
    new_ids = {old: new for new, old in enumerate(order)}
    model = published.model
    fast = FastTokenizer(
        models.WordPiece(
            {piece: new_ids[index] for piece, index in ids.items()},
            unk_token=_piece(UNK_ID),
            max_input_chars_per_word=model.max_input_chars_per_word,
            continuing_subword_prefix=CONTINUES,
        )
    )
    fast.normalizer, fast.pre_tokenizer = published.normalizer, published.pre_tokenizer
    fast.decoder = decoders.WordPiece(CONTINUES)
    _add_special_pieces(fast)
    return fast, order


def compare(
    tokenizer: Tokenizer,
    proto: Any | None,
    encode: Callable[[list[str]], list[list[int]]],
    texts: Iterable[str],
) -> Comparison:
    """Finds the texts whose ids differ.

    In every tokenizer of that library, a special piece spelled in a text is that piece; with ours
    it is plain text, except [MASK] in `encode_with_mask`. Texts with others are skipped.

    Args:
        tokenizer: ours.
        proto: its model from `read_model`; None = it is an imported vocabulary.
        encode: the other one's ids of texts, without those added around them.
        texts: any number; one window at a time is in memory.
    """
    special = re.compile("|".join(re.escape(p) for p in SPECIAL_PIECES if p != _piece(MASK_ID)))
    num_compared = num_special = 0
    differences = []
    iterator = iter(texts)
    while window := list(itertools.islice(iterator, _WINDOW)):
        plain = [text for text in window if not special.search(text)]
        num_special += len(window) - len(plain)
        num_compared += len(plain)
        for text, fast_ids in zip(plain, encode(plain), strict=True):
            ids = tokenizer.encode_with_mask(text)
            if ids != fast_ids:
                is_tie = _is_tie(proto, ids, fast_ids)
                differences.append(Difference(text, ids, fast_ids, is_tie))
    return Comparison(num_compared, num_special, differences)


def _add_special_pieces(fast: FastTokenizer) -> None:
    """Makes them pieces that a text can spell, and adds [CLS] and [SEP] to texts and pairs."""
    cls, sep = SPECIAL_PIECES[CLS_ID], SPECIAL_PIECES[SEP_ID]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, CLS_ID), (sep, SEP_ID)],
    )
    fast.add_special_tokens([AddedToken(piece, normalized=False) for piece in SPECIAL_PIECES])


def _piece(index: int) -> str:
    return SPECIAL_PIECES[index]


def _is_tie(proto: Any | None, ids: Sequence[int], fast_ids: Sequence[int]) -> bool:
    """Whether two segmentations of a text have equal sums of log probabilities.

    SentencePiece sums in float32 and the library in float64, so the last digit decides.
    """
    if proto is None or proto.trainer_spec.model_type != UNIGRAM:
        return False
    ours, theirs = ([proto.pieces[index] for index in side] for side in (ids, fast_ids))
    if "".join(piece.piece for piece in ours) != "".join(piece.piece for piece in theirs):
        return False
    score, fast_score = (math.fsum(map(_score, side)) for side in (ours, theirs))
    return math.isclose(score, fast_score, rel_tol=_TIE_TOLERANCE)


def _check(proto: Any, path: Path) -> None:
    """Rejects models with untested properties."""
    if missing := missing_for_export(proto):
        raise UserError(
            f"{path}: cannot be exported without {', '.join(missing)}; launch/train_tokenizer.py"
            " makes tokenizers that can"
        )


def _score(piece: Any) -> float:
    """The logarithm of a piece's probability, as SentencePiece computes it.

    A user-defined symbol has a bonus, so that it wins against its possible segmentations: measured
    with SentencePiece 0.2.3, for symbols of 1 to 5 bytes.
    """
    if piece.type == USER_DEFINED:
        return _SCORE_PER_BYTE * (len(piece.piece.encode()) - 1)
    return float(piece.score)


def _unigram(proto: Any) -> models.Unigram:
    scores = [(piece.piece, _score(piece)) for piece in proto.pieces]
    return models.Unigram(scores, UNK_ID, proto.trainer_spec.byte_fallback)


def _bpe(proto: Any) -> models.BPE:
    """SentencePiece merges any two adjacent pieces that form a piece, best score first."""
    ordered = sorted(proto.pieces, key=lambda piece: -piece.score)
    normal = {piece.piece: None for piece in ordered if piece.type == NORMAL}  # in this order
    merges = [
        (piece[:cut], piece[cut:])
        for piece in normal
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    return models.BPE(
        {piece.piece: index for index, piece in enumerate(proto.pieces)},
        merges,
        unk_token=_piece(UNK_ID),
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _normalizer(spec: Any) -> normalizers.Normalizer:
    """SentencePiece's table, and its rules for spaces.

    The library looks up a character together with its accents, uses the shortest matching entry and
    drops the rest; SentencePiece uses the longest. So composable characters are composed first, and
    the others are looked up one by one, separated by a character that is removed later. A table
    that composes nothing is a short one, from a file: its rules are applied unchanged.
    """
    spaces = [
        normalizers.Replace(Regex(" {2,}"), " "),
        # Not the space at the start: after a [MASK], it shows that a new word begins.
        normalizers.Replace(Regex(r" \z"), ""),
    ]
    if not spec.precompiled_charsmap:
        return normalizers.Sequence(spaces)
    rules = SentencePieceNormalizer(normalizer_spec=spec)
    if not rules.normalize("e\u0301").endswith("\u00e9"):
        return normalizers.Sequence([*_replacements(rules.decompile()), *spaces])
    is_removed = rules.normalize(f"a{_REMOVED}a").endswith("aa")
    divider = _REMOVED if is_removed else _NONCHARACTER
    return normalizers.Sequence(
        [
            normalizers.NFC(),
            # Not at the start: the library cannot remove it from there, and panics.
            normalizers.Replace(Regex(rf"(?!\A)(?={_MARKS})"), divider),
            normalizers.Precompiled(spec.precompiled_charsmap),
            *([] if is_removed else [normalizers.Replace(divider, "")]),
            normalizers.NFC(),
            *spaces,
        ]
    )


def _replacements(rules: list[tuple[str, str]]) -> list[normalizers.Normalizer]:
    """Rules one by one, the longest first; none applies to the output of another."""
    rules = sorted(rules, key=lambda rule: -len(rule[0]))
    made = [chr(_PRIVATE_PLANE + number) for number in range(len(rules))]
    return [
        *(normalizers.Replace(source, own) for (source, _), own in zip(rules, made, strict=True)),
        *(normalizers.Replace(own, target) for (_, target), own in zip(rules, made, strict=True)),
    ]


def _spelt() -> pre_tokenizers.PreTokenizer:
    """Splits texts such as "<0x41>" in two: the library would take them for the byte's piece."""
    names = "|".join(piece.strip("[]") for piece in SPECIAL_PIECES)
    start = Regex(rf"[<\[](?=(?:0x[0-9A-F]{{2}}|{names})[>\]])")
    return pre_tokenizers.Split(start, "merged_with_previous")
