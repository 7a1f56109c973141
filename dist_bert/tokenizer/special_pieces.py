"""Adds BERT's special pieces to a SentencePiece model from another project.

Other projects have other special pieces and ids: `<unk> <s> </s>` at 0 to 2 by default, T5 `<pad>
</s> <unk>`, ALBERT `<pad> <unk> [CLS] [SEP] [MASK]`. Those with the same meaning are renamed and
moved to the front, missing ones are added. Text pieces keep their scores and their order, and the
normalisation rules are unchanged, so every text is cut into the same pieces; only their ids change.

Not for: weights trained with the old ids (`dist_bert.huggingface.import_model` moves their rows).

Source of the format: https://github.com/google/sentencepiece, src/sentencepiece_model.proto.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sentencepiece import SentencePieceNormalizer
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from dist_bert.common.errors import UserError
from dist_bert.tokenizer.config import SPECIAL_PIECES

# Kinds of pieces and of models in SentencePiece's protocol.
NORMAL, _UNKNOWN, _CONTROL, USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
UNIGRAM, _BPE = 1, 2
# Control pieces with the same meaning, best first. XLNet has <cls> and <s>.
_OTHER_NAMES = {
    "[PAD]": ("<pad>",),
    "[CLS]": ("<cls>", "<s>"),
    "[SEP]": ("<sep>", "</s>"),
    "[MASK]": ("<mask>",),
}
_UNKNOWN_NAME = "[UNK]"
_SPACE = "\u2581"  # SentencePiece's mark for the space before a word
_MOST_NAMED = 5


class Renumbered(NamedTuple):
    """A model with BERT's special pieces at the ids 0 to 4."""

    content: bytes  # of the model's file
    changes: tuple[str, ...]  # lines that describe the change of every special piece


def with_special_pieces(model: bytes, path: Path) -> Renumbered:
    """Renames, moves and adds special pieces; the same model yields the same bytes.

    A control piece without a meaning here is removed, as it occurs in no text; so is a second piece
    with the name of a special one. Byte pieces follow the special ones, so that all pieces that are
    not text come first.

    Args:
        model: a file that SentencePiece loads.
        path: of the file, for messages.

    Raises:
        UserError: the model does not mark the beginnings of words, or has unused pieces that it
            needs.
    """
    proto = sentencepiece_model.ModelProto()
    proto.ParseFromString(model)
    _check(proto, path)
    sources = {name: _source(proto, name) for name in SPECIAL_PIECES}
    types = [piece.type for piece in proto.pieces]
    others = [i for i in range(len(types)) if i not in sources.values()]
    left_out = [
        i
        for i in others
        if types[i] in (_CONTROL, _UNUSED) or proto.pieces[i].piece in SPECIAL_PIECES
    ]
    kept = sorted({*others} - {*left_out}, key=lambda i: (types[i] != _BYTE, i))
    special = [
        proto.SentencePiece(
            piece=name, score=0.0, type=_UNKNOWN if name == _UNKNOWN_NAME else _CONTROL
        )
        for name in SPECIAL_PIECES
    ]
    pieces = [*special, *(proto.pieces[i] for i in kept)]
    renumbered = sentencepiece_model.ModelProto()
    renumbered.CopyFrom(proto)
    del renumbered.pieces[:]
    renumbered.pieces.extend(pieces)
    _describe(renumbered.trainer_spec, len(pieces))
    missing = ", ".join(missing_for_export(renumbered))
    changes = (
        f"{path}: is from another project; its special pieces get BERT's ids",
        *(_change(proto, name, sources[name]) for name in SPECIAL_PIECES),
        *([f"  removed: {_named(proto, left_out)}: not in texts"] if left_out else []),
        f"  the other {len(kept):,} pieces follow; text pieces keep their order",
        *([f"  launch/export_model.py will reject it: it lacks {missing}"] if missing else []),
    )
    return Renumbered(renumbered.SerializeToString(deterministic=True), changes)


def missing_for_export(proto: Any) -> list[str]:
    """Properties that a model lacks for `dist_bert.huggingface.tokenizer` to make the same ids."""
    normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
    is_unigram = trainer.model_type == UNIGRAM
    symbols = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    others = {piece.type for piece in proto.pieces[len(SPECIAL_PIECES) :]} - {USER_DEFINED}
    facts = {
        "model_type unigram or bpe": trainer.model_type in (UNIGRAM, _BPE),
        "add_dummy_prefix": normalizer.add_dummy_prefix,
        "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "escape_whitespaces": normalizer.escape_whitespaces,
        "split_by_whitespace": trainer.split_by_whitespace,
        "whitespace before words": not trainer.treat_whitespace_as_suffix,
        "further pieces only of text and bytes": others <= {NORMAL, _BYTE},
        "model_type unigram, which its user-defined symbols need": is_unigram or not symbols,
        "user-defined symbols that normalisation keeps": _keeps(normalizer, symbols),
    }
    return [name for name, is_so in facts.items() if not is_so]


def _keeps(spec: Any, symbols: Sequence[str]) -> bool:
    """Whether normalisation would leave the symbols, which SentencePiece excludes, unchanged."""
    rules = SentencePieceNormalizer(normalizer_spec=spec)
    return all(
        _SPACE not in symbol and rules.normalize(f"a{symbol}a").endswith(f"a{symbol}a")
        for symbol in symbols
    )


def _check(proto: Any, path: Path) -> None:
    normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
    facts = {
        "add_dummy_prefix": normalizer.add_dummy_prefix,
        "escape_whitespaces": normalizer.escape_whitespaces,
        "whitespace before words (treat_whitespace_as_suffix is set)": (
            not trainer.treat_whitespace_as_suffix
        ),
    }
    if missing := [name for name, is_so in facts.items() if not is_so]:
        raise UserError(
            f"--tokenizer {path}: is a SentencePiece model without {', '.join(missing)} to mark"
            " the beginnings of words; train it with SentencePiece's defaults, or make one with"
            " `python launch/train_tokenizer.py --output_dir DIR`"
        )
    unused = [i for i, piece in enumerate(proto.pieces) if piece.type == _UNUSED]
    if unused and trainer.model_type != UNIGRAM:
        raise UserError(
            f"--tokenizer {path}: has unused pieces ({_named(proto, unused)}), which are supported"
            " in unigram models only; give the model from before they were marked unused"
        )


def _source(proto: Any, name: str) -> int | None:
    """The id of the piece that becomes a special one.

    A piece with BERT's name may be of any kind. One with another name must be a control piece: a
    text piece such as "<s>" of HTML stays text.
    """
    pieces, trainer = list(enumerate(proto.pieces)), proto.trainer_spec
    if name == _UNKNOWN_NAME:
        return next(i for i, piece in pieces if piece.type == _UNKNOWN)
    own = [i for i, piece in pieces if piece.piece == name and piece.type != _UNKNOWN]
    if own:
        return own[0]
    controls = {piece.piece: i for i, piece in pieces if piece.type == _CONTROL}
    told = {"[PAD]": trainer.pad_piece, "[CLS]": trainer.bos_piece, "[SEP]": trainer.eos_piece}
    names = (*_OTHER_NAMES[name], told.get(name))
    return next((controls[other] for other in names if other in controls), None)


def _change(proto: Any, name: str, source: int | None) -> str:
    """The line that describes the origin of a special piece."""
    label = f"  {name:<6} {SPECIAL_PIECES.index(name)}"
    if source is None:
        return f"{label}  added"
    piece = proto.pieces[source]
    was_text = piece.type not in (_UNKNOWN, _CONTROL, _UNUSED)
    spelt = "; text that spells it no longer gets its id" if was_text else ""
    return f"{label}  was {piece.piece} {source}{spelt}"


def _named(proto: Any, places: list[int]) -> str:
    named = ", ".join(f"{proto.pieces[i].piece} {i}" for i in places[:_MOST_NAMED])
    more = len(places) - _MOST_NAMED
    return f"{named} and {more:,} more" if more > 0 else named


def _describe(trainer: Any, num_pieces: int) -> None:
    """Updates the model's own record of its special pieces."""
    pad, unk, cls, sep, mask = SPECIAL_PIECES
    trainer.pad_piece, trainer.unk_piece, trainer.bos_piece, trainer.eos_piece = pad, unk, cls, sep
    trainer.pad_id, trainer.unk_id, trainer.bos_id, trainer.eos_id = range(4)
    symbols = [symbol for symbol in trainer.user_defined_symbols if symbol not in SPECIAL_PIECES]
    del trainer.control_symbols[:], trainer.user_defined_symbols[:]
    trainer.control_symbols.append(mask)
    trainer.user_defined_symbols.extend(symbols)
    trainer.vocab_size = num_pieces
