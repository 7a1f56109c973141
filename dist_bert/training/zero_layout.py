"""How DeepSpeed divides a model's parameters among ranks, by arithmetic: no model, no torch.

What a rank keeps of weights, gradients and optimizer state, in elements, and how large the pieces
are that ranks send each other. Rajbhandari et al. 2020, "ZeRO" (https://arxiv.org/abs/1910.02054),
and DeepSpeed 0.19's source where it does otherwise. Measured against real engines by
tests/integration/test_plan.py.
"""

import dataclasses
import functools
import math
from typing import Any

from dist_bert.common.settings import raise_all
from dist_bert.model.config import ModelConfig
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.optimizers.kinds import own_kind

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# DeepSpeed's own defaults, in elements.
_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
}
_MAX_LIVE = 1_000_000_000  # its stage3_max_live_parameters
_COVERED = {"stage", "overlap_comm", "contiguous_gradients", "allgather_bucket_size", *_DEFAULTS}
_NOT_COVERED = ("torch_autocast", "data_types", "communication_data_type", "aio")


@dataclasses.dataclass(frozen=True)
class ZeroLayout:
    """Parameters of one model under one DeepSpeed configuration, on a number of ranks."""

    model: ModelConfig
    num_ranks: int
    stage: int
    precision: str  # bf16, fp16 or fp32
    accumulation_steps: int
    overlaps: bool  # communication with computation
    num_buffers: int  # of gradients on their way, each of `bucket_size`
    bucket_size: int  # elements
    prefetch_size: int  # elements; ZeRO-3
    persistence_threshold: int  # smaller parameters stay whole at ZeRO-3
    optimizer: str = "AdamW"  # or the name of one of ours
    newton_schulz_steps: int = 0  # of Muon
    has_average: bool = False  # of the weights, in float32

    @classmethod
    def of(cls, model: ModelConfig, config: DeepSpeedConfig) -> "ZeroLayout":
        """The layout that a DeepSpeed JSON asks for.

        Raises:
            UserError: it asks for something that is not planned here.
        """
        zero: dict[str, Any] = config.values.get("zero_optimization", {})
        problems = [*_not_covered(config.values), *_not_covered_zero(zero)]
        size = sum(map(math.prod, parameter_shapes(model).values()))
        if config.zero_stage == 3 and size > _MAX_LIVE:
            problems.append(
                f"ZeRO-3 of {size:,} parameters: is planned for up to {_MAX_LIVE:,}, beyond which"
                " DeepSpeed gives weights back between forward and backward pass; use ZeRO-2"
            )
        raise_all("plan", problems)
        sizes = {name: int(zero.get(name, default)) for name, default in _DEFAULTS.items()}
        stage = config.zero_stage
        kind = own_kind(config.values)
        settings = {**kind.settings, **config.values["optimizer"]["params"]} if kind else {}
        overlaps = stage > 0 and bool(zero.get("overlap_comm", stage == 3))
        # Before it reduces gradients, ZeRO copies them one behind the other, twice if it overlaps.
        has_buffers = stage > 0 and bool(zero.get("contiguous_gradients", True))
        return cls(
            model=model,
            num_ranks=config.batch_shape.world_size,
            stage=stage,
            precision=config.precision,
            accumulation_steps=config.batch_shape.accumulation_steps,
            overlaps=overlaps,
            num_buffers=0 if not has_buffers else 2 if overlaps and stage < 3 else 1,
            bucket_size=sizes["reduce_bucket_size"],
            prefetch_size=sizes["stage3_prefetch_bucket_size"],
            persistence_threshold=sizes["stage3_param_persistence_threshold"],
            optimizer=kind.name if kind else "AdamW",
            newton_schulz_steps=settings.get("newton_schulz_steps", 0),
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of an element of weights and gradients."""
        return WEIGHT_BYTES[self.precision]

    @functools.cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Elements of every parameter: those with weight decay, those without.

        Before them those that Muon has for itself, the matrices of the layers.
        """
        shapes = parameter_shapes(self.model)
        own = [
            name
            for name, shape in shapes.items()
            if self.optimizer == "Muon" and "encoder.layers." in name and len(shape) > 1
        ]
        matrices = tuple(math.prod(shapes[name]) for name in own)
        others = [shape for name, shape in shapes.items() if name not in own]
        decayed = tuple(math.prod(shape) for shape in others if len(shape) > 1)
        vectors = tuple(math.prod(shape) for shape in others if len(shape) == 1)
        return (matrices, decayed, vectors) if own else (decayed, vectors)

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of every parameter, in the model's order."""
        return tuple(map(math.prod, parameter_shapes(self.model).values()))

    @functools.cached_property
    def num_parameters(self) -> int:
        """Elements of the model."""
        return sum(self.sizes)

    @functools.cached_property
    def num_padded(self) -> int:
        """Elements of all ranks' parts together: parts are of equal size."""
        if self.stage == 0:
            return self.num_parameters
        if self.stage == 3:  # every parameter is cut into equal parts
            return sum(_up_to_multiple(size, self.num_ranks) for size in self.sizes)
        return self.num_ranks * sum(map(self._part_of, self.groups))

    @property
    def num_owned(self) -> int:
        """Elements whose optimizer state a rank keeps."""
        return self.num_padded // (self.num_ranks if self.stage else 1)

    @property
    def num_moments(self) -> int:
        """Elements of a rank's optimizer state: two for each, one for Muon's matrices."""
        moments = 2 * self.num_owned
        if self.optimizer == "Muon":
            moments -= self._part_of(self.groups[0])
        return moments

    @property
    def num_in_largest_group(self) -> int:
        """Elements of the largest group that a rank keeps: groups are updated one by one."""
        return self.num_owned if self.stage in (0, 3) else max(map(self._part_of, self.groups))

    @functools.cached_property
    def num_persistent(self) -> int:
        """Elements that every rank keeps whole at ZeRO-3, beside its part of them."""
        return sum(size for size in self.sizes if size <= self.persistence_threshold)

    @property
    def num_gradients(self) -> int:
        """Elements of gradients that a rank holds at most, of the rank that holds the most.

        ZeRO-1 holds all while it accumulates. ZeRO-1 at the last micro-step and ZeRO-2 hold every
        parameter that lies in the rank's part whole, even where a part has only some of it: more
        ranks do not make it less than the word embeddings.
        """
        if self.stage == 0 or (self.stage == 1 and self.accumulation_steps > 1):
            return self.num_parameters
        if self.stage == 3:
            return self.num_owned
        held = [0] * self.num_ranks
        for group in self.groups:
            part = self._part_of(group)
            start = 0
            for size in group:
                for rank in range(start // part, (start + size - 1) // part + 1):
                    held[rank] += size
                start += size
        return max(held)

    def _part_of(self, group: tuple[int, ...]) -> int:
        """Elements of a rank's part of a group, which is laid out flat and cut at ZeRO 1 and 2.

        At multiples of two elements.
        """
        if self.stage == 0:
            return sum(group)
        return _up_to_multiple(sum(group), 2 * self.num_ranks) // self.num_ranks


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of `BertForPreTraining`, in its order."""
    hidden, inner = model.hidden_size, model.intermediate_size

    def linear(
        name: str, inputs: int, outputs: int, bias: bool = model.bias
    ) -> dict[str, tuple[int, ...]]:
        weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs)}
        return weight | ({f"{name}.bias": (outputs,)} if bias else {})

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (hidden,)}
        return weight | ({f"{name}.bias": (hidden,)} if model.norm_bias else {})

    shapes: dict[str, tuple[int, ...]] = {
        "mlm_bias": (model.vocab_size,),
        "encoder.word_embeddings.weight": (model.padded_vocab_size, hidden),
    }
    if model.positions == "learned":
        positions = (model.max_position_embeddings, hidden)
        shapes["encoder.position_embeddings.weight"] = positions
    if model.type_vocab_size:
        shapes["encoder.token_type_embeddings.weight"] = (model.type_vocab_size, hidden)
    shapes |= norm("encoder.embeddings_norm")
    is_pre_norm = model.norm == "pre"
    width = 2 * inner if model.feed_forward == "geglu" else inner
    for index in range(model.num_hidden_layers):
        layer = f"encoder.layers.{index}"
        shapes |= linear(f"{layer}.qkv", hidden, 3 * hidden)
        shapes |= linear(f"{layer}.attention_output", hidden, hidden)
        if index > 0 or not is_pre_norm:
            shapes |= norm(f"{layer}.attention_norm")
        shapes |= linear(f"{layer}.intermediate", hidden, width)
        shapes |= linear(f"{layer}.output", inner, hidden)
        shapes |= norm(f"{layer}.feed_forward_norm" if is_pre_norm else f"{layer}.output_norm")
    if is_pre_norm:
        shapes |= norm("encoder.final_norm")
    shapes |= linear("mlm_dense", hidden, hidden) | norm("mlm_norm")
    return shapes | linear("pooler", hidden, hidden, True) | linear("nsp", hidden, 2, True)


def _not_covered(values: dict[str, Any]) -> list[str]:
    return [
        f"{key}: is not planned for; take it out of the JSON to plan without it"
        for key in _NOT_COVERED
        if values.get(key)
    ]


def _not_covered_zero(zero: dict[str, Any]) -> list[str]:
    """Offload and the like, each of which moves or changes what is counted here."""
    return [
        f"zero_optimization {key}: is not planned for (known: {', '.join(sorted(_COVERED))});"
        " take it out of the JSON to plan without it"
        for key in zero
        if key not in _COVERED
    ]


def _up_to_multiple(size: int, unit: int) -> int:
    return -(-size // unit) * unit
