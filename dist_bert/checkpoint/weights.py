"""The weights that a `WeightSource` has, by our names. Not for: fitting them to another model.

Letters: R rows of the word embeddings.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dist_bert.checkpoint.format import CheckpointReader
from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.common.errors import UserError
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.published_names import Family, family, from_published
from dist_bert.tokenizer.kind import kind_of
from dist_bert.tokenizer.tokenizer import Tokenizer

_WORDS = "encoder.word_embeddings.weight"
_POSITIONS = "encoder.position_embeddings.weight"
_BY_PIECE = (_WORDS, "mlm_bias")  # parameters with a row for each piece


@dataclasses.dataclass(frozen=True)
class StoredWeights:
    """What a source has, and what not."""

    tensors: dict[str, Tensor]  # float32 on the CPU, by our parameters' names
    missing_heads: tuple[str, ...]  # of a family's heads, whose parameters are not among them
    left_out: tuple[str, ...]  # modules that belong to other tasks


def read_stored(source: WeightSource) -> StoredWeights:
    """Reads all weights of a source, with the rows of pieces in our order.

    Raises:
        UserError: a file is damaged, its tensors are not those of its config, or its tokenizer is
            of another model.
    """
    if source.checkpoint is not None:
        tensors = CheckpointReader(source.checkpoint).weights(source.is_average)
        return StoredWeights(tensors, (), ())
    tensors = _read_files(source.tensor_files)
    if not source.is_published:
        return StoredWeights(tensors, (), ())
    table = family(source.model)
    published, left_out = under_published_names(tensors, table)
    own = [name for name in published if name not in table.tied]
    missing = tuple(
        head
        for head, prefixes in table.heads.items()
        if not prefixes or not all(any(n.startswith(prefix) for n in own) for prefix in prefixes)
    )
    without = tuple(prefix for head in missing for prefix in table.heads[head])
    # A decoder alone is no head: it is the word embeddings again. A head without its decoder is
    # that of another task.
    others = {name.split(".")[0] for name in own if name.startswith(without)}
    published = {name: t for name, t in published.items() if not name.startswith(without)}
    left_out = tuple(sorted(others.union(left_out)))
    ours = from_published(published, source.model, without)
    path = source.tokenizer
    if path is not None and kind_of(path.read_bytes()) == "byte-level BPE":
        tokenizer = Tokenizer(path)
        require_rows(tokenizer, source)
        ours = in_order(ours, published_order(tokenizer, source.model.vocab_size))
    return StoredWeights(ours, missing, left_out)


def require_rows(tokenizer: Tokenizer, source: WeightSource) -> None:
    """Refuses a tokenizer with more pieces than a model has rows.

    Raises:
        UserError: it has.
    """
    if tokenizer.vocab_size > source.model.vocab_size:
        raise UserError(
            f"{source.path}: its tokenizer has {tokenizer.vocab_size} pieces, the word embeddings"
            f" {source.model.vocab_size} rows: they belong to different models"
        )


def published_order(tokenizer: Tokenizer, num_rows: int) -> Tensor:
    """(R,) the row of a folder in Hugging Face layout for each of our rows; inverse: `argsort`."""
    order = torch.arange(num_rows)
    if tokenizer.published_ids is not None:
        order[: tokenizer.vocab_size] = torch.from_numpy(tokenizer.published_ids)
    return order


def in_order(tensors: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """The same tensors; of the parameters with a row for each piece, the first R in this order."""
    if torch.equal(order, torch.arange(len(order))):
        return dict(tensors)
    rows = {
        name: torch.cat([tensors[name][order], tensors[name][len(order) :]])
        for name in _BY_PIECE
        if name in tensors
    }
    return {**tensors, **rows}


def under_published_names(
    tensors: dict[str, Tensor], table: Family
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Float32 tensors of encoder and pretraining heads, named as the family's pretrained models.

    Args:
        tensors: of any of transformers' models of the family. The bare encoder's names lack their
            beginning; the heads of other tasks are left out.
        table: of the family.

    Returns:
        The tensors, and the modules that were left out.
    """
    heads = tuple({f"{prefix.split('.')[0]}." for of in table.heads.values() for prefix in of})
    is_bare = not any(name.startswith(table.encoder) for name in tensors)
    named = {
        f"{table.encoder}{name}" if is_bare and not name.startswith(heads) else name: tensor
        for name, tensor in tensors.items()
    }
    known = {n: t.float() for n, t in named.items() if n.startswith((table.encoder, *heads))}
    return known, tuple(sorted({name.split(".")[0] for name in named.keys() - known.keys()}))


def take_weights(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Gives a module all its weights, which it keeps as they are.

    Args:
        module: made from a config.
        tensors: by the names of its parameters.
        origin: of the config, for the message.

    Raises:
        UserError: they are those of another architecture.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    names = sorted(expected.keys() | given.keys())
    differences = [name for name in names if expected.get(name) != given.get(name)]
    if differences:
        name = differences[0]
        shapes = (str(shapes.get(name, "missing")) for shapes in (given, expected))
        raise UserError(
            f"{origin}: describes another model than the weights are of: {name} is"
            f" {', must be '.join(shapes)}, and {len(differences) - 1:,} more differ; copy it again"
        )
    module.load_state_dict(tensors, assign=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All of a safetensors file.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}): fetch it again") from None


def _read_files(paths: Iterable[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= read_tensors(path)
    return tensors


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """What was done to a model."""

    has_mlm_head: bool  # False: the source has none, so the head is as it was
    description: str  # one line for the console


def load_initial_weights(
    model: BertForPreTraining, config: ModelConfig, source: WeightSource, parts: str = "all"
) -> InitialWeights:
    """Replaces a model's weights; heads that the source lacks keep theirs.

    Args:
        model: newly made, on the CPU in float32; changed in place.
        config: its architecture, to which `source` has no problems.
        source: of the weights.
        parts: all, or the word embeddings alone.

    Raises:
        UserError: a file is damaged, or its tensors are not those of its config.
    """
    stored = read_stored(source)
    notes = []
    if source.checkpoint is not None:
        where = f"{source.path} at {source.checkpoint.name}"
        if source.is_average:
            where += ", the average"
    else:
        where = str(source.path)
        if stored.left_out:
            notes.append(f"left out: {', '.join(stored.left_out)}")
        if source.tokenizer is None:
            notes.append("whether its vocabulary is the shards' is not known: only the sizes agree")
    if parts == "embeddings":
        words = stored.tensors[_WORDS]
        model.load_state_dict({**model.state_dict(), _WORDS: words})
        names = [name for name in model.state_dict() if name != _WORDS]
        notes.append(f"not taken and new: {', '.join(_modules(names))}")
        return InitialWeights(False, "; ".join((f"word embeddings from {where}", *notes)))
    tensors = dict(stored.tensors)
    saved, wanted = source.model.max_position_embeddings, config.max_position_embeddings
    if _POSITIONS in tensors:
        tensors[_POSITIONS] = fit_positions(tensors[_POSITIONS], wanted)
    model.load_state_dict({**model.state_dict(), **tensors})
    if _POSITIONS in tensors and wanted != saved:
        notes.append(
            f"positions {'repeated' if wanted > saved else 'cut'} from {saved} to {wanted}"
        )
    if stored.missing_heads:
        notes.append(f"not in it and new: {', '.join(stored.missing_heads)}")
    description = "; ".join((f"weights from {where}", *notes))
    return InitialWeights("MLM head" not in stored.missing_heads, description)


def _modules(names: Iterable[str]) -> list[str]:
    """The modules of parameters, all layers as one, in their order."""
    known = [name.removeprefix("encoder.").split(".")[0] for name in names]
    return list(dict.fromkeys(known))


def fit_positions(table: Tensor, num_positions: int) -> Tensor:
    """Position embeddings (saved, H) as (num_positions, H): the first ones, or all repeated.

    Repeating keeps what the layers know of neighbours, except at the seams, and was found to be
    far better than new random rows (Beltagy et al. 2020, "Longformer", section 5,
    https://arxiv.org/abs/2004.05150).
    """
    repeats = -(-num_positions // len(table))
    return table.repeat(repeats, 1)[:num_positions]
