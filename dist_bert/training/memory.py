"""The memory that one rank needs, item by item, and the largest micro-batch that fits.

Model states are exact (`zero_layout.py`); activations follow from what each operation of
dist_bert/model/bert.py saves for its backward pass. Both are tested against what engines and
autograd hold. Assumed are what the framework takes and what fragmentation needs, both named below.

Letters: T tokens of the micro-batch, P masked positions, B samples, H hidden, I inner size, V
padded vocabulary, S tokens of a sample.
"""

import bisect
import dataclasses

from dist_bert.model.config import ModelConfig
from dist_bert.training.zero_layout import ZeroLayout

FRAMEWORK_BYTES = 2 * 2**30  # assumed: CUDA context, NCCL's buffers, cuBLAS workspaces
MARGIN = 0.08  # assumed: share of the memory that fragmentation and the unforeseen may take
# What the optimizers of ours allocate while they step, in bytes for an element of a group: updates
# and the roots of second moments; for StableAdamW also gradients by roots. float32.
_UPDATE_BYTES = {"Lamb": 8, "StableAdamW": 12, "Muon": 8}
LOGITS_AT_ONCE = 1 << 25  # of dist_bert.model.kernels, which needs torch
NUM_SNAPSHOTS = 2  # of dist_bert.checkpoint.writer, which needs torch
_MOST_SAMPLES = 1 << 20  # where the search for the largest micro-batch ends


@dataclasses.dataclass(frozen=True)
class SampleSize:
    """What one sample of a micro-batch is; memory is planned for samples of full length."""

    num_tokens: int  # S
    num_masked: float


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank by item, at one micro-batch size."""

    states: dict[str, int]  # there all the time: weights, optimizer state; gradients at their most
    buffers: dict[str, int]  # of communication, during the backward pass
    activations: dict[str, int]  # at the end of the forward pass
    update: dict[str, int]  # during the optimizer's step, when there are no activations

    @property
    def peak(self) -> int:
        """The most at once, conservatively: all gradients beside all activations."""
        backward = sum(self.buffers.values()) + sum(self.activations.values())
        busiest = max(backward, sum(self.update.values()))
        return FRAMEWORK_BYTES + sum(self.states.values()) + busiest


def plan_memory(
    layout: ZeroLayout, sample: SampleSize, num_samples: int, checkpointing: bool
) -> MemoryPlan:
    """Memory of one rank on GPUs.

    Args:
        layout: model, precision and ZeRO.
        sample: how large samples are.
        num_samples: B, the micro-batch.
        checkpointing: whether layers are computed again in the backward pass.
    """
    return MemoryPlan(
        states=state_bytes(layout),
        buffers=buffer_bytes(layout),
        activations=activation_bytes(
            layout.model, layout.weight_bytes, sample, num_samples, checkpointing
        ),
        update=update_bytes(layout),
    )


def largest_micro_batch(
    layout: ZeroLayout, sample: SampleSize, checkpointing: bool, memory_bytes: float
) -> int:
    """Samples of the largest micro-batch whose peak leaves the margin free; 0 if not even one."""
    budget = memory_bytes * (1.0 - MARGIN)
    return bisect.bisect_left(
        range(1, _MOST_SAMPLES),
        True,
        key=lambda size: plan_memory(layout, sample, size, checkpointing).peak > budget,
    )


def state_bytes(layout: ZeroLayout) -> dict[str, int]:
    """Weights, gradients and optimizer state that one rank holds, as DeepSpeed keeps them.

    At ZeRO-1 to 3 the optimizer works on a float32 copy of the rank's part, in float32 too.
    """
    size = layout.weight_bytes
    items = {"weights": size * layout.num_parameters}
    if layout.stage == 3:
        items = {
            "weights": size * layout.num_owned,
            "weights kept whole": size * layout.num_persistent,
        }
    items["gradients"] = size * layout.num_gradients
    if layout.stage or layout.precision != "fp32":
        items["float32 weights"] = 4 * layout.num_owned
    items[f"{layout.optimizer} moments"] = 4 * layout.num_moments
    if layout.has_average:
        items["average of the weights"] = 4 * layout.num_owned
    if layout.stage == 3 and layout.num_buffers:
        items["gradient bucket"] = size * layout.bucket_size
    return items


def buffer_bytes(layout: ZeroLayout) -> dict[str, int]:
    """What communication needs during the backward pass, beside the states."""
    size, total = layout.weight_bytes, layout.num_parameters
    if layout.stage == 0:
        return {}  # gradients are reduced after the backward pass: see `update_bytes`
    if layout.stage == 3:
        return {"gathered weights": size * total}  # kept until the backward pass is over
    # Buckets are allocated whole, whatever the model's size; a message is flattened once more.
    message = size * min(layout.bucket_size, total)
    return {
        "gradient buckets": layout.num_buffers * size * layout.bucket_size,
        "message": message,
    }


def update_bytes(layout: ZeroLayout) -> dict[str, int]:
    """What exists only while the optimizer steps: its gradients in float32."""
    if layout.stage == 0 and layout.precision == "fp32":
        items = {"gradients as one message": 4 * layout.num_parameters}
    else:
        items = {"float32 gradients": 4 * layout.num_owned}
    if layout.optimizer in _UPDATE_BYTES:
        items["updates"] = _UPDATE_BYTES[layout.optimizer] * layout.num_in_largest_group
    return items


def checkpoint_bytes(layout: ZeroLayout) -> int:
    """Of the files of one checkpoint: weights, their average, moments of all, in float32."""
    whole = dataclasses.replace(layout, num_ranks=1, stage=0)
    num_copies = 2 if layout.has_average else 1
    return 4 * (num_copies * whole.num_parameters + whole.num_moments)


def most_checkpoint_bytes(layout: ZeroLayout, num_kept: int) -> int:
    """Of all files of a run's checkpoints: those kept, the best, one being written, the weights."""
    return (num_kept + 2) * checkpoint_bytes(layout) + 4 * layout.num_parameters


def snapshot_bytes(layout: ZeroLayout) -> int:
    """Host memory of one rank for copies of its part of a checkpoint, when writing is slow.

    Without ZeRO the tensors are shared out among the ranks: about as much. Pinned memory, on GPUs,
    may take up to twice as much: torch allocates it in powers of two, tensor by tensor.
    """
    return NUM_SNAPSHOTS * -(-checkpoint_bytes(layout) // layout.num_ranks)


def activation_bytes(
    model: ModelConfig,
    weight_bytes: int,
    sample: SampleSize,
    num_samples: int,
    checkpointing: bool,
) -> dict[str, int]:
    """What autograd holds at the end of the forward pass on a GPU, by part of the model.

    `loss` is the gradient of the MLM logits, and what makes it in float32, a part at a time.
    """
    num_tokens = num_samples * sample.num_tokens
    num_masked = round(num_samples * sample.num_masked)
    layer = num_tokens * layer_bytes(model, weight_bytes)
    kept_input = num_tokens * weight_bytes * model.hidden_size
    layers = model.num_hidden_layers
    items = {
        "batch and embeddings": num_tokens * embedding_bytes(model, weight_bytes),
        "layers": layers * kept_input if checkpointing else layers * layer,
    }
    if model.positions == "rotary":
        items["rotations"] = num_tokens * rotation_bytes(model)
    if checkpointing:
        if model.norm == "pre":  # else it stands for the norm that the first layer lacks
            items["final norm"] = kept_input + num_tokens * 8
        items["the layer computed again"] = layer - kept_input
    items["heads"] = head_bytes(model, weight_bytes, num_samples, num_masked)
    logits = num_masked * model.padded_vocab_size
    items["loss"] = weight_bytes * logits
    items["part of the loss in float32"] = 2 * 4 * min(logits, LOGITS_AT_ONCE)
    return items


def layer_bytes(model: ModelConfig, weight_bytes: int) -> int:
    """What one encoder layer saves of a token, with an attention that keeps no scores and no noise.

    Its input, query, key and value, the context, and of the two norms what goes in and comes out,
    where that is not the next layer's input: 8 H, before or after the halves. The inner
    activation's input and output, and of GeGLU both halves and their product; float32 statistics of
    two norms and of softmax, one a head; dropout masks of a byte.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    inner_copies = 2 if model.hidden_act == "gelu" else 1  # relu needs its output alone
    if model.feed_forward == "geglu":
        inner_copies = 4
    masks = 2 * hidden if model.hidden_dropout_prob else 0
    statistics = 2 * 8 + 4 * model.num_attention_heads
    return weight_bytes * (8 * hidden + inner_copies * inner) + statistics + masks


def embedding_bytes(model: ModelConfig, weight_bytes: int) -> int:
    """What the embeddings save of a token: int64 rows, the sum, its norm's statistics, a mask."""
    num_tables = 1 + (model.type_vocab_size > 0) + (model.positions == "learned")
    mask = model.hidden_size if model.hidden_dropout_prob else 0
    return num_tables * 8 + weight_bytes * model.hidden_size + 8 + mask


def rotation_bytes(model: ModelConfig) -> int:
    """Cosines and sines of a token in float32, of global layers and, if others, of local ones."""
    is_one = model.window is None or model.local_rope_theta == model.global_rope_theta
    return (1 if is_one else 2) * 4 * model.head_size


def head_bytes(model: ModelConfig, weight_bytes: int, num_samples: int, num_masked: int) -> int:
    """What both heads save up to their logits: 4 H of a masked position, 2 H of a sample."""
    copies = 4 if model.mlm_hidden_act == "gelu" else 3
    rows = copies * num_masked + 2 * num_samples
    return weight_bytes * model.hidden_size * rows + 16 * num_masked
