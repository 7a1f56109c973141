"""A new run's weights read from a `WeightSource` and fitted to its model. Not for: resuming."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dist_bert.config import ModelConfig
from dist_bert.errors import UserError
from dist_bert.hf_names import TIED, from_published, to_published
from dist_bert.inference import read_weights
from dist_bert.model import BertForPreTraining
from dist_bert.weight_source import WeightSource

_POSITIONS = "encoder.position_embeddings.weight"
_PUBLISHED_POSITIONS = "bert.embeddings.position_embeddings.weight"
# What published files may lack: models saved for another task come without it.
_HEADS = {
    "MLM head": "cls.predictions.",
    "pooler": "bert.pooler.",
    "NSP head": "cls.seq_relationship.",
}


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """What was done to a model."""

    has_mlm_head: bool  # False: the source has none, so the head is as it was
    description: str  # one line for the console


def load_initial_weights(
    model: BertForPreTraining, config: ModelConfig, source: WeightSource
) -> InitialWeights:
    """Replaces a model's weights; heads that the source lacks keep theirs.

    Args:
        model: newly made, on the CPU in float32; changed in place.
        config: its architecture, to which `source` has no problems.
        source: of the weights.

    Raises:
        UserError: a file is damaged, or its tensors are not those of its config.
    """
    new_heads: list[str] = []
    notes = []
    if source.checkpoint is not None:
        weights = read_weights(source.checkpoint)
        weights[_POSITIONS] = fit_positions(weights[_POSITIONS], config.max_position_embeddings)
        where = f"{source.path} at {source.checkpoint.name}"
    else:
        published, left_out = under_published_names(_read_files(source.tensor_files))
        new_heads = _fill_missing_heads(published, model, config)
        if _PUBLISHED_POSITIONS in published:
            published[_PUBLISHED_POSITIONS] = fit_positions(
                published[_PUBLISHED_POSITIONS], config.max_position_embeddings
            )
        weights = from_published(published, config)
        where = str(source.path)
        if left_out:
            notes.append(f"left out: {', '.join(left_out)}")
        if source.tokenizer is None:
            notes.append("whether its vocabulary is the shards' is not known: only the sizes agree")
    model.load_state_dict(weights)
    saved, wanted = source.model.max_position_embeddings, config.max_position_embeddings
    if wanted != saved:
        notes.append(
            f"positions {'repeated' if wanted > saved else 'cut'} from {saved} to {wanted}"
        )
    if new_heads:
        notes.append(f"not in it and new: {', '.join(new_heads)}")
    return InitialWeights("MLM head" not in new_heads, "; ".join((f"weights from {where}", *notes)))


def fit_positions(table: Tensor, num_positions: int) -> Tensor:
    """Position embeddings (saved, H) as (num_positions, H): the first ones, or all repeated.

    Repeating keeps what the layers know of neighbours, except at the seams, and was found to be
    far better than new random rows (Beltagy et al. 2020, "Longformer", section 5,
    https://arxiv.org/abs/2004.05150).
    """
    repeats = -(-num_positions // len(table))
    return table.repeat(repeats, 1)[:num_positions]


def under_published_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Float32 tensors of encoder and pretraining heads, named as in `BertForPreTraining`.

    Args:
        tensors: of any of transformers' BERT models. The bare encoder says no `bert.`; the heads of
            other tasks are left out.

    Returns:
        The tensors, and the modules that were left out.
    """
    is_bare = not any(name.startswith("bert.") for name in tensors)
    named = {
        f"bert.{name}" if is_bare and not name.startswith("cls.") else name: tensor
        for name, tensor in tensors.items()
    }
    known = {name: t.float() for name, t in named.items() if name.startswith(("bert.", "cls."))}
    return known, sorted({name.split(".")[0] for name in named.keys() - known.keys()})


def _fill_missing_heads(
    published: dict[str, Tensor], model: BertForPreTraining, config: ModelConfig
) -> list[str]:
    """Puts the model's own weights where a whole head is missing; returns the heads' names."""
    own = to_published(model.state_dict(), config)
    missing = []
    for head, prefix in _HEADS.items():
        parts = [name for name in own if name.startswith(prefix) and name not in TIED]
        if not any(name.startswith(prefix) and name not in TIED for name in published):
            published.update({name: own[name] for name in parts})
            missing.append(head)
    return missing


def _read_files(paths: Iterable[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: cannot be read ({error}): fetch it again") from None
    return tensors
