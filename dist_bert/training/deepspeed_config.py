"""The DeepSpeed JSON: read once, checked before any process waits for another, passed on as a dict.

It is the one home of batch sizes, optimizer, precision, ZeRO and clipping. DeepSpeed checks the
inside of its sections; what it lets pass (unknown top-level keys, optimizers that are wrong under
ZeRO) or reports late is checked here. Needs neither torch nor deepspeed.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.common.settings import AUTO, raise_all, read_json
from dist_bert.data.batches import TO_BE_FOUND, BatchShape
from dist_bert.training.deepspeed_flags import with_values
from dist_bert.training.deepspeed_release import require_sound_release
from dist_bert.training.optimizers.kinds import kind_problems, own_kind

# Sections that mean something in this system. The others that DeepSpeed knows are refused,
# because a key that does nothing here would look as if it did.
_KNOWN_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "optimizer",
    "bf16",
    "fp16",
    "torch_autocast",
    "data_types",
    "communication_data_type",
    "gradient_clipping",
    "prescale_gradients",
    "gradient_predivide_factor",
    "zero_optimization",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "aio",
    "comms_logger",
    "wall_clock_breakdown",
    "memory_breakdown",
)
_ELSEWHERE = {
    "scheduler": "the learning rate is a run setting: schedule, warmup_steps, num_train_steps",
    "tensorboard": "TensorBoard is always written, to OUTPUT_DIR/tensorboard",
    "steps_per_print": "the console's interval is the run setting log_interval",
}
_SECTIONS = ("optimizer", "bf16", "fp16", "zero_optimization")


@dataclasses.dataclass(frozen=True)
class DeepSpeedConfig:
    """A checked DeepSpeed configuration for a given number of ranks."""

    values: dict[str, Any]  # the JSON, with all three batch sizes filled in
    batch_shape: BatchShape

    @property
    def zero_stage(self) -> int:
        """0 to 3."""
        return int(self.values.get("zero_optimization", {}).get("stage", 0))

    @property
    def optimizer_type(self) -> str:
        """As written; amsgrad, which keeps another state, makes another type of it."""
        optimizer = self.values["optimizer"]
        name = str(optimizer["type"])
        return f"{name} with amsgrad" if optimizer["params"].get("amsgrad") else name

    @property
    def peak_lr(self) -> float:
        """The learning rate that the schedule scales."""
        return float(self.values["optimizer"]["params"]["lr"])

    @property
    def weight_decay(self) -> float:
        """Of the parameters that decay at all."""
        return float(self.values["optimizer"]["params"].get("weight_decay", 0.0))

    @property
    def gradient_clipping(self) -> float:
        """Largest norm of all gradients; 0 = no limit. Where it is not given, DeepSpeed's."""
        return float(self.values.get("gradient_clipping", 1.0))

    @property
    def precision(self) -> str:
        """Type of the weights that forward and backward use: bf16, fp16 or fp32."""
        return precision_of(self.values)

    @classmethod
    def load(
        cls, path: str | Path, world_size: int, changes: Mapping[str, Any] | None = None
    ) -> "DeepSpeedConfig":
        """Reads and checks a DeepSpeed JSON.

        Args:
            path: of the JSON file.
            world_size: number of data-parallel ranks, from the launcher.
            changes: values that replace those of the file, by their keys, a.b.c.

        Raises:
            UserError: all that is wrong with it, at once; or with the release of DeepSpeed.
        """
        require_sound_release()
        origin = f"{path} (with the flags' {', '.join(changes)})" if changes else str(path)
        values = with_values(read_json(path), changes or {})
        return cls.from_values(values, origin, world_size)

    @classmethod
    def from_values(cls, values: dict[str, Any], origin: str, world_size: int) -> "DeepSpeedConfig":
        """Checks the contents of a DeepSpeed JSON; `origin` names their source in errors."""
        raise_all(origin, _section_problems(values))  # the other checks look into sections
        problems = [f"{key}: {_ELSEWHERE[key]}; remove it" for key in values if key in _ELSEWHERE]
        unknown = [key for key in values if key not in _KNOWN_KEYS and key not in _ELSEWHERE]
        if unknown:
            problems.append(f"unknown key {', '.join(unknown)}; known: {', '.join(_KNOWN_KEYS)}")
        problems += [*_optimizer_problems(values), *_number_problems(values)]
        problems += kind_problems(values, precision_of(values))
        if values.get("bf16", {}).get("enabled") and values.get("fp16", {}).get("enabled"):
            problems.append("bf16 and fp16 are both enabled: choose one")
        try:
            shape = _batch_shape(values, world_size)
        except UserError as error:
            raise_all(origin, [*problems, str(error)])
        raise_all(origin, problems)
        return cls(values, shape).with_shape(shape)

    def with_shape(self, shape: BatchShape) -> "DeepSpeedConfig":
        """The same with another division of a global batch."""
        sizes = {
            "train_batch_size": shape.global_batch_size,
            "train_micro_batch_size_per_gpu": shape.micro_batch_size,
            "gradient_accumulation_steps": shape.accumulation_steps,
        }
        return dataclasses.replace(self, values={**self.values, **sizes}, batch_shape=shape)

    def with_peak_lr(self, lr: float) -> "DeepSpeedConfig":
        """The same with another peak learning rate."""
        optimizer = self.values["optimizer"]
        changed = {**optimizer, "params": {**optimizer["params"], "lr": lr}}
        return dataclasses.replace(self, values={**self.values, "optimizer": changed})

    def check_device(self, has_gpu: bool) -> None:
        """Refuses what DeepSpeed can do on GPUs alone.

        Raises:
            UserError: there is none, and something needs one.
        """
        problems = []
        if self.precision == "fp16" and not has_gpu:
            problems.append(
                "fp16 is enabled, which needs a GPU, and there is none here; use bf16"
                " (configs/zero2.json) or float32 (configs/zero2_fp32.json)"
            )
        raise_all("DeepSpeed", problems)


def _section_problems(values: dict[str, Any]) -> list[str]:
    """What is no JSON object but must be one, of the sections that are looked into here."""
    sections = {key: values.get(key, {}) for key in _SECTIONS}
    if isinstance(sections["optimizer"], dict):
        sections["optimizer params"] = sections["optimizer"].get("params", {})
    return [
        f"{name} = {value!r}: must be a JSON object"
        for name, value in sections.items()
        if not isinstance(value, dict)
    ]


def precision_of(values: dict[str, Any]) -> str:
    """The precision that a checked DeepSpeed JSON enables: bf16, fp16 or fp32."""
    return next((p for p in ("bf16", "fp16") if values.get(p, {}).get("enabled")), "fp32")


def stored_precision(values: dict[str, Any], origin: str) -> str:
    """The precision that the DeepSpeed JSON inside of a run's config.json enables.

    Raises:
        UserError: it is damaged; `origin` names its source.
    """
    raise_all(origin, _section_problems(values))
    return precision_of(values)


def _optimizer_problems(values: dict[str, Any]) -> list[str]:
    optimizer = values.get("optimizer", {})
    problems = []
    lr = optimizer.get("params", {}).get("lr")
    if not optimizer.get("type") or type(lr) not in (int, float):  # true is no number
        problems.append(
            "optimizer: must be given with its type and peak lr, as"
            ' {"type": "AdamW", "params": {"lr": 1e-4}}'
        )
    return problems


def _number_problems(values: dict[str, Any]) -> list[str]:
    """Numbers that are none, or out of range, of those that are computed with here, too."""
    params = values.get("optimizer", {}).get("params", {})
    numbers = {}
    if type(params.get("lr")) in (int, float):  # else it counts as not given, above
        numbers["optimizer params lr"] = params["lr"]
    if own_kind(values) is None and "weight_decay" in params:  # `kind_problems` has that of ours
        numbers["optimizer params weight_decay"] = params["weight_decay"]
    if "gradient_clipping" in values:
        numbers["gradient_clipping"] = values["gradient_clipping"]
    problems = [
        f"{name} = {value!r}: must be a finite number of at least 0"
        for name, value in numbers.items()
        if type(value) not in (int, float) or not 0 <= value < math.inf
    ]
    stage = values.get("zero_optimization", {}).get("stage", 0)
    if type(stage) is not int or not 0 <= stage <= 3:
        problems.append(f"zero_optimization stage = {stage!r}: must be 0, 1, 2 or 3")
    return problems


def _batch_shape(values: dict[str, Any], world_size: int) -> BatchShape:
    """Solves train_batch_size = micro-batch * accumulation * ranks for whatever is not given.

    Where the micro-batch is auto, a number of tokens is to be found.
    """
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    total, micro, accumulation = (values.get(name) for name in names)
    is_auto = micro == AUTO
    if is_auto:
        micro = None
        if accumulation is not None:
            raise UserError(
                f"{names[2]} = {accumulation!r}: does nothing where {names[1]} = auto; remove it"
            )
    for name, value in zip(names, (total, micro, accumulation), strict=True):
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{name} = {value!r}: must be a whole number of at least 1")
    if total is None:
        if micro is None:
            raise UserError("train_batch_size: must be given, in samples over all ranks")
        return BatchShape(accumulation or 1, world_size, micro)
    unit = (micro or 1) * world_size * (accumulation or 1)
    is_fixed = micro is not None and accumulation is not None
    if total % unit or (is_fixed and total != unit):
        factors = [
            *([f"train_micro_batch_size_per_gpu = {micro}"] if micro else []),
            f"{world_size} ranks",
            *([f"gradient_accumulation_steps = {accumulation}"] if accumulation else []),
        ]
        lower, upper = total // unit * unit, -(-total // unit) * unit
        near = unit if is_fixed else f"{lower} or {upper}" if lower else upper
        raise UserError(
            f"train_batch_size = {total} is not {'' if is_fixed else 'a multiple of '}"
            f"{' x '.join(factors)} = {unit}: set it to {near}, or change the others"
        )
    if is_auto:
        return BatchShape(total // world_size, world_size, 1, TO_BE_FOUND)
    micro = micro or total // unit
    return BatchShape(total // (micro * world_size), world_size, micro)
