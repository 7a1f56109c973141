"""A run's phases, as its settings and its recipe give them.

A recipe is a run JSON with `phases`: a list of objects whose keys are the fields of `Phase`. A run
without one has one phase, from the run settings. Not for: what follows from the phases for every
step (`dist_bert.pretraining.timeline`).
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dist_bert.common.errors import UserError
from dist_bert.common.settings import from_dict, raise_all, read_json, setting
from dist_bert.pretraining.config import PretrainingConfig, problems_of_phase
from dist_bert.training.schedule import schedule_setting

_OWN = ("num_train_steps", "shards")  # run settings that the phases give instead
_LENGTHS = ("steps", "samples", "tokens")
# Steps of a run whose data sets have not yet said how long a number of tokens lasts.
NOT_KNOWN = sys.maxsize
OF_RUN = "run"  # the schedule of a phase that has none of its own


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run with data, batch size and masks of its own."""

    shards: dict[str, float]  # folder or URL of prepared shards -> its weight
    name: str = setting("", "for messages and curves (default: its number)")
    weights_by: str = setting(
        "samples", "what the weights of shards are shares of", ("samples", "tokens")
    )
    steps: int = setting(0, "length in optimizer steps")
    samples: int = setting(0, "length in samples, rounded up to whole steps")
    tokens: int = setting(0, "length in tokens, by the mean of the shards")
    train_batch_size: int = setting(0, "samples of a step; 0 = the DeepSpeed JSON's")
    train_micro_batch_size_per_gpu: int = setting(0, "0 = at most the DeepSpeed JSON's")
    micro_batch_tokens: int | Literal["auto"] = setting(0, "as the run setting")
    initial_batch_size: int = setting(0, "as the run setting")
    ramp_samples: int = setting(0, "as the run setting")
    masked_lm_prob: float = setting(0.0, "as the run setting")
    final_masked_lm_prob: float = setting(0.0, "as the run setting")
    lr_share: float = setting(1.0, "its highest lr as a share of the DeepSpeed JSON's")
    schedule: str = schedule_setting(OF_RUN, (OF_RUN,))
    warmup_steps: int = setting(0, "with a schedule of its own: from the lr of the phase before")
    decay_steps: int = setting(0, "with a schedule of its own")
    min_lr_ratio: float = setting(0.0, "with a schedule of its own")

    def problems(self) -> list[str]:
        """All values that are out of range or contradict each other, each as one sentence."""
        problems = []
        for name in (
            *_LENGTHS, "train_batch_size", "train_micro_batch_size_per_gpu", "warmup_steps",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                problems.append(f"{name} = {getattr(self, name)}: must be at least 0")
        if sum(getattr(self, name) > 0 for name in _LENGTHS) != 1:
            problems.append(f"give its length once, as one of {', '.join(_LENGTHS)}")
        if not self.shards:
            problems.append('shards: must be a folder, or weights of folders: {"data/books": 0.7}')
        for place, weight in self.shards.items():
            if type(weight) not in (int, float) or not 0 < weight < float("inf"):
                problems.append(f"shards: the weight of {place} is {weight!r}, must be above 0")
        if self.micro_batch_tokens and self.train_micro_batch_size_per_gpu:
            problems.append("micro_batch_tokens, train_micro_batch_size_per_gpu: give one of them")
        if not 0.0 < self.lr_share <= 1.0:
            problems.append(f"lr_share = {self.lr_share}: must be above 0 and at most 1")
        if self.schedule == OF_RUN and (self.warmup_steps or self.decay_steps or self.min_lr_ratio):
            problems.append(
                "warmup_steps, decay_steps, min_lr_ratio: do nothing without a schedule of the"
                " phase's own"
            )
        return problems

    @classmethod
    def of_run(cls, run: PretrainingConfig) -> "Phase":
        """The only phase of a run without a recipe."""
        return cls(
            shards={run.shards: 1.0},
            steps=run.num_train_steps,
            **{name: getattr(run, name) for name in _INHERITED},
        )


_INHERITED = (
    "micro_batch_tokens",
    "initial_batch_size",
    "ramp_samples",
    "masked_lm_prob",
    "final_masked_lm_prob",
)


def resolve_run(
    config: str | Path | None, flags: Mapping[str, Any]
) -> tuple[PretrainingConfig, tuple[Phase, ...]]:
    """The run settings and its phases: default < recipe < run JSON < flag.

    With a recipe, `num_train_steps` is `NOT_KNOWN`: `timeline.run_of` gives it.

    Args:
        config: the run JSON, or None.
        flags: values from the command line; None means "not given".

    Raises:
        UserError: something is wrong with one of them.
    """
    given = read_json(config) if config is not None else {}
    given.update({name: value for name, value in flags.items() if value is not None})
    place = given.get("recipe")
    if not place:
        run = from_dict(PretrainingConfig, given, str(config or "flags"))
        return run, (Phase.of_run(run),)
    if not isinstance(place, str):
        raise UserError(f"recipe = {place!r}: must be the path of a JSON file")
    recipe = read_json(place)
    listed = recipe.pop("phases", None)
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{place}: phases: must be a list of at least one phase")
    raise_all(
        place,
        [
            f"{name}: is a matter of the phases; remove it from flags, run JSON and recipe"
            for name in _OWN
            if name in given or name in recipe
        ],
    )
    values = {**recipe, **given, "num_train_steps": NOT_KNOWN}
    run = from_dict(PretrainingConfig, values, f"{place}, run JSON and flags")
    phases = tuple(_phase(value, n, run, place) for n, value in enumerate(listed, start=1))
    names = [phase.name for phase in phases]
    raise_all(
        place,
        [
            f"phase {n}: name = {name!r}: an earlier phase has it; give each another"
            for n, name in enumerate(names, start=1)
            if name in names[: n - 1]
        ],
    )
    return run, phases


def deepspeed_changes(phases: Sequence[Phase], flags: Mapping[str, Any]) -> dict[str, Any]:
    """What replaces values of the DeepSpeed JSON, by their keys: the flags, and the micro-batch.

    Where every phase has one of tokens, its size in samples means nothing, and must not restrict
    the batch: 1.
    """
    by_tokens = bool(phases) and all(phase.micro_batch_tokens for phase in phases)
    return {**({"train_micro_batch_size_per_gpu": 1} if by_tokens else {}), **flags}


def _phase(value: Any, number: int, run: PretrainingConfig, place: str) -> Phase:
    """One entry of the list; what it leaves out is the run's."""
    origin = f"{place}: phase {number}"
    if not isinstance(value, dict):
        raise UserError(f"{origin}: must be a JSON object")
    shards = value.get("shards", {})
    if isinstance(shards, str):
        shards = {shards: 1.0}
    inherited = {name: getattr(run, name) for name in _INHERITED}
    phase = from_dict(Phase, {**inherited, "name": str(number), **value, "shards": shards}, origin)
    raise_all(origin, [*phase.problems(), *problems_of_phase(phase, run.masks)])
    return phase
