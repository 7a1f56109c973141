"""Which optimizers there are, at which ZeRO stages and precisions, and what their settings are.

`AdamW` and `Adam` are DeepSpeed's to build. The others are ours (`build.py`): DeepSpeed never sees
their names. Needs neither torch nor deepspeed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

DEEPSPEEDS = ("adamw", "adam")
_NO_COMPRESSION = "DeepSpeed 0.19 has it no longer"
_REFUSED = {  # what DeepSpeed has or had, and why not here
    "lion": "DeepSpeed has it for GPUs alone, and no test here covers it",
    "onebitadam": _NO_COMPRESSION,
    "onebitlamb": _NO_COMPRESSION,
    "zerooneadam": _NO_COMPRESSION,
}
_BETAS = (0.9, 0.999)


@dataclasses.dataclass(frozen=True)
class Kind:
    """An optimizer of ours."""

    name: str  # as messages write it
    settings: Mapping[str, Any]  # in `optimizer.params`, beside lr and weight_decay, with defaults
    stages: tuple[int, ...] = (0, 1, 2)
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")


# At ZeRO 3 DeepSpeed steps parts of parameters one after the other, so that no step sees all of a
# parameter; with offload the parts lie in the host's memory. Both are refused.
OURS = {
    "lamb": Kind(
        "Lamb",
        {
            "betas": _BETAS,
            "eps": 1e-6,
            "bias_correction": True,
            "min_trust_ratio": 0.0,
            "max_trust_ratio": None,
        },
    ),
    "stableadamw": Kind("StableAdamW", {"betas": (0.9, 0.99), "eps": 1e-6}),
    "muon": Kind(
        "Muon",
        {
            "momentum": 0.95,
            "nesterov": True,
            "newton_schulz_steps": 5,
            "matrix_lr_factor": 1.0,
            "matrix_weight_decay": None,
            "betas": (0.9, 0.95),
            "eps": 1e-8,
        },
    ),
}


def own_kind(values: Mapping[str, Any]) -> Kind | None:
    """The optimizer of ours that a DeepSpeed JSON names; None where it is DeepSpeed's."""
    return OURS.get(str(values.get("optimizer", {}).get("type", "")).lower())


def kind_problems(values: Mapping[str, Any], precision: str) -> list[str]:
    """What is wrong with the choice of an optimizer and its settings.

    Args:
        values: of a DeepSpeed JSON whose sections are JSON objects.
        precision: bf16, fp16 or fp32.
    """
    given = values.get("optimizer", {}).get("type", "")
    name = str(given).lower()
    if not name or name in DEEPSPEEDS:
        return []
    if name in _REFUSED:
        return [f"optimizer type {given}: {_REFUSED[name]}; use AdamW"]
    kind = OURS.get(name)
    if kind is None:
        known = ", ".join(["Adam", *(own.name for own in OURS.values())])
        return [f"optimizer type {given}: is not known here; use AdamW (known, too: {known})"]
    return [*_place_problems(kind, values, precision), *_setting_problems(kind, values)]


def _place_problems(kind: Kind, values: Mapping[str, Any], precision: str) -> list[str]:
    """Where an optimizer of ours does not work."""
    problems = []
    zero = values.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in kind.stages:
        problems.append(
            f"optimizer type {kind.name} with ZeRO {stage} would train wrongly: it needs whole"
            f" parameters in one step; use ZeRO {', '.join(map(str, kind.stages))}, or AdamW"
        )
    if precision not in kind.precisions:
        problems.append(
            f"optimizer type {kind.name} with {precision}: is not supported; use"
            f" {', '.join(kind.precisions)}, or AdamW"
        )
    offload = zero.get("offload_optimizer") or {}
    if not isinstance(offload, dict) or offload.get("device", "none") != "none":
        problems.append(
            f"optimizer type {kind.name} with offload_optimizer: is not supported; remove the"
            " offload, or use AdamW"
        )
    autocast = values.get("torch_autocast") or {}
    is_half = isinstance(autocast, dict) and autocast.get("dtype") in ("fp16", "float16", "half")
    if is_half and autocast.get("enabled"):
        problems.append(
            f"optimizer type {kind.name} with torch_autocast in float16: its loss scale lets a rank"
            " skip a step alone; use bfloat16, fp16, or AdamW"
        )
    return problems


def _setting_problems(kind: Kind, values: Mapping[str, Any]) -> list[str]:
    """What is wrong with `optimizer.params`; the lr is checked with those of all optimizers."""
    settings = {"weight_decay": 0.0, **kind.settings}
    given = {k: v for k, v in values["optimizer"].get("params", {}).items() if k != "lr"}
    unknown = [name for name in given if name not in settings]
    problems = []
    if unknown:
        problems.append(
            f"optimizer type {kind.name}: unknown params {', '.join(unknown)}; known: lr,"
            f" {', '.join(settings)}"
        )
    for name in settings.keys() & given.keys():
        if rule := _broken_rule(settings[name], given[name]):
            problems.append(f"optimizer params {name} = {given[name]!r}: must be {rule}")
    return sorted(problems)


def _broken_rule(default: Any, value: Any) -> str:
    """The rule that a value breaks, told from the default's type; empty if none."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return "" if type(value) is int and value >= 1 else "a whole number of at least 1"
    if isinstance(default, tuple):
        is_pair = isinstance(value, list | tuple) and len(value) == 2
        is_right = is_pair and all(_is_number(beta) and 0.0 <= beta < 1.0 for beta in value)
        return "" if is_right else "two numbers from 0 to below 1"
    if default is None and value is None:
        return ""
    return "" if _is_number(value) and value >= 0.0 else "a number of at least 0"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # true is no number
