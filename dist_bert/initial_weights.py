"""A new run's weights read from a `WeightSource` and fitted to its model. Not for: resuming."""

import dataclasses

from torch import Tensor

from dist_bert.config import ModelConfig
from dist_bert.model import BertForPreTraining
from dist_bert.stored_weights import read_stored
from dist_bert.weight_source import WeightSource

_POSITIONS = "encoder.position_embeddings.weight"


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
    stored = read_stored(source)
    notes = []
    if source.checkpoint is not None:
        where = f"{source.path} at {source.checkpoint.name}"
    else:
        where = str(source.path)
        if stored.left_out:
            notes.append(f"left out: {', '.join(stored.left_out)}")
        if source.tokenizer is None:
            notes.append("whether its vocabulary is the shards' is not known: only the sizes agree")
    table = fit_positions(stored.tensors[_POSITIONS], config.max_position_embeddings)
    model.load_state_dict({**model.state_dict(), **stored.tensors, _POSITIONS: table})
    saved, wanted = source.model.max_position_embeddings, config.max_position_embeddings
    if wanted != saved:
        notes.append(
            f"positions {'repeated' if wanted > saved else 'cut'} from {saved} to {wanted}"
        )
    if stored.missing_heads:
        notes.append(f"not in it and new: {', '.join(stored.missing_heads)}")
    description = "; ".join((f"weights from {where}", *notes))
    return InitialWeights("MLM head" not in stored.missing_heads, description)


def fit_positions(table: Tensor, num_positions: int) -> Tensor:
    """Position embeddings (saved, H) as (num_positions, H): the first ones, or all repeated.

    Repeating keeps what the layers know of neighbours, except at the seams, and was found to be
    far better than new random rows (Beltagy et al. 2020, "Longformer", section 5,
    https://arxiv.org/abs/2004.05150).
    """
    repeats = -(-num_positions // len(table))
    return table.repeat(repeats, 1)[:num_positions]
