"""What every step of a run is: its phase, batch, masks and learning rate, as functions of the step.

The prefix sums of the phases say where each begins and what it has been given of each data set, so
any step is known without those before it. No torch here: `--check` and the planner print it.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dist_bert.common.settings import raise_all
from dist_bert.data.batches import TO_BE_FOUND, BatchShape
from dist_bert.data.mixture import Mixture
from dist_bert.data.shard_format import Manifest
from dist_bert.data.shard_source import ShardSource
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.recipe import OF_RUN, Phase
from dist_bert.training.schedule import LrSchedule


class Corpus(NamedTuple):
    """A data set that a run reads."""

    name: str  # of its curve
    source: ShardSource
    manifest: Manifest

    @property
    def num_samples(self) -> int:
        """Training samples of one epoch."""
        return sum(record.num_samples for record in self.manifest.splits["train"])

    @property
    def tokens_per_sample(self) -> float:
        """The mean of the training samples; their longest where the manifest has no statistics."""
        counts = self.manifest.statistics.get("train", {})
        if counts.get("num_tokens") and counts.get("num_samples"):
            return float(counts["num_tokens"] / counts["num_samples"])
        return float(self.manifest.config["sequence_length"])


class Stage(NamedTuple):
    """Consecutive steps of one phase, with one batch size."""

    first_step: int  # steps of the phase before it
    num_steps: int
    first_sample: int  # samples of the phase before it
    shape: BatchShape


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """A phase and its place in the run."""

    settings: Phase
    corpora: tuple[Corpus, ...]
    weights: tuple[float, ...]  # of each, by samples
    consumed: tuple[int, ...]  # samples of each that the phases before use
    first_step: int  # steps of the run before it
    first_sample: int
    stages: tuple[Stage, ...]
    lr: LrSchedule | None  # of its own

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return self.stages[-1].first_step + self.stages[-1].num_steps

    @property
    def num_samples(self) -> int:
        """Samples consumed."""
        return sum(stage.num_steps * stage.shape.global_batch_size for stage in self.stages)

    @property
    def last_step(self) -> int:
        """Of the run."""
        return self.first_step + self.num_steps

    @property
    def sequence_length(self) -> int:
        """Of its longest data set."""
        return max(corpus.manifest.config["sequence_length"] for corpus in self.corpora)

    @property
    def tokens_per_sample(self) -> float:
        """The mean over its data sets, as weighted."""
        pairs = zip(self.weights, self.corpora, strict=True)
        return sum(w * c.tokens_per_sample for w, c in pairs) / sum(self.weights)

    @property
    def consumed_at_end(self) -> tuple[int, ...]:
        """Samples of each data set that the run has used when it ends."""
        counts = Mixture(self.weights).counts(self.num_samples)
        return tuple(a + b for a, b in zip(self.consumed, counts, strict=True))

    def stage_of(self, step: int) -> Stage:
        """The stage with a step of the phase, from 1 on."""
        return next(s for s in self.stages if step <= s.first_step + s.num_steps)

    def masked_lm_prob(self, step: int) -> float:
        """Share of the tokens to mask in a step of the phase, from 1 on; 0 = as stored."""
        first, last = self.settings.masked_lm_prob, self.settings.final_masked_lm_prob
        share = (step - 1) / max(1, self.num_steps - 1)
        return first + ((last or first) - first) * share


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The phases of a run, one after the other."""

    phases: tuple[PhasePlan, ...]
    lr: LrSchedule  # of the whole run, for the phases that have none of their own

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.phases[-1].last_step

    def phase_of(self, step: int) -> PhasePlan:
        """The phase with a step, from 1 on; the last one also for all that follow."""
        return next((p for p in self.phases if step <= p.last_step), self.phases[-1])

    def shape_at(self, step: int) -> BatchShape:
        """The division of a step's global batch; the last one also for all that follow."""
        phase = self.phase_of(step)
        return phase.stage_of(min(step, phase.last_step) - phase.first_step).shape

    def samples_before(self, step: int) -> int:
        """Samples of the steps before a step, from 1 on."""
        phase = self.phase_of(step)
        own = step - phase.first_step
        stage = phase.stage_of(min(own, phase.num_steps))
        before = (own - 1 - stage.first_step) * stage.shape.global_batch_size
        return phase.first_sample + stage.first_sample + before

    def lr_share(self, step: int) -> float:
        """The learning rate of a step, from 1 on, as a share of the DeepSpeed JSON's."""
        phase = self.phase_of(step)
        if phase.lr is None:
            return phase.settings.lr_share * self.lr.share(step)
        return phase.settings.lr_share * phase.lr.share(step - phase.first_step)

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """All data sets, each once."""
        every = itertools.chain.from_iterable(phase.corpora for phase in self.phases)
        return tuple({corpus.source.place: corpus for corpus in every}.values())

    @property
    def largest_shape(self) -> BatchShape:
        """That of the most micro-steps."""
        shapes = [stage.shape for phase in self.phases for stage in phase.stages]
        return max(shapes, key=lambda shape: (shape.accumulation_steps, shape.micro_batch_size))

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be resumed; the last phase may grow longer.

        The first phase's facts have the names that they had when there was but one.
        """
        facts: dict[str, Any] = {}
        for number, phase in enumerate(self.phases, start=1):
            own = {
                "shards fingerprint": _mixture_fingerprint(phase),
                "train_batch_size": phase.stages[-1].shape.global_batch_size,
            }
            if phase is not self.phases[-1]:
                own["steps"] = phase.num_steps
            for name in ("initial_batch_size", "ramp_samples", "masked_lm_prob"):
                if getattr(phase.settings, name):
                    own[name] = getattr(phase.settings, name)
            if phase.settings.final_masked_lm_prob:
                own["final_masked_lm_prob"] = phase.settings.final_masked_lm_prob
            facts.update({_name(number, fact): value for fact, value in own.items()})
        return facts

    def open_facts(self, saved: Mapping[str, Any], step: int) -> list[str]:
        """Which facts of the identity are still open at a step: what is to come may be changed.

        All facts of the phases that begin there or later, for this run and the saved one, and the
        length of the phase before.

        Args:
            saved: the identity of a checkpoint.
            step: its step.
        """
        own = self.identity()
        begun = max(_num_begun(own, step), _num_begun(saved, step))
        length = _name(begun, "steps")
        return [n for n in {**saved, **own} if n == length or _phase_number(n) > begun]


def _name(number: int, fact: str) -> str:
    """Of a fact of a phase, counted from 1."""
    return f"phase {number} {fact}" if number > 1 else fact


def _num_begun(identity: Mapping[str, Any], step: int) -> int:
    """How many phases have begun when so many steps are done."""
    number, end = 1, 0
    while (end := end + identity.get(_name(number, "steps"), math.inf)) < step:
        number += 1
    return number


def _phase_number(fact: str) -> int:
    """Of a phase after the first; the first one's facts and others have 1."""
    parts = fact.split(" ", 2)
    return int(parts[1]) if parts[0] == "phase" and parts[1].isdigit() else 1


def _mixture_fingerprint(phase: PhasePlan) -> str:
    """Of the only data set, or of each and its weight."""
    prints = [corpus.manifest.fingerprint for corpus in phase.corpora]
    if len(prints) == 1:
        return prints[0]
    total = sum(phase.weights)
    pairs = zip(prints, phase.weights, strict=True)
    return ", ".join(f"{fingerprint} x {weight / total:.9f}" for fingerprint, weight in pairs)


def make_timeline(
    run: PretrainingConfig,
    phases: Sequence[Phase],
    corpora: Mapping[str, Corpus],
    usual: BatchShape,
) -> Timeline:
    """Computes where every phase begins.

    Args:
        run: gives the schedule of phases that have none of their own.
        phases: in their order.
        corpora: all data sets, by the places that the phases name.
        usual: the batch of phases that give none, and the largest micro-batch of others.

    Raises:
        UserError: all in which the phases do not fit the data sets or the ranks.
    """
    problems: list[str] = []
    plans: list[PhasePlan] = []
    consumed: dict[str, int] = {}
    step = sample = 0
    for phase in phases:
        where = f"phase {phase.name}: " if len(phases) > 1 else ""
        own = tuple(corpora[place] for place in phase.shards)
        weights = _weights_by_samples(phase, own)
        stages, found = stages_of(phase, weights, own, usual)
        if stages:
            plan = PhasePlan(
                phase,
                own,
                weights,
                tuple(consumed.get(c.manifest.fingerprint, 0) for c in own),
                step,
                sample,
                tuple(stages),
                None,
            )
            plans.append(plan)
            step, sample = plan.last_step, sample + plan.num_samples
            consumed.update(
                zip((c.manifest.fingerprint for c in own), plan.consumed_at_end, strict=True)
            )
        found += _mixture_problems(phase, own)
        problems += [f"{where}{problem}" for problem in found]
    raise_all("pretraining", problems)
    timeline = Timeline((), run_of(run, phases, step).lr_schedule)
    for plan in plans:  # its warm-up begins at the lr with which the phases before have ended
        lr_before = timeline.lr_share(plan.first_step) if timeline.phases else 0.0
        lr = _own_schedule(plan, lr_before)
        problems += [f"phase {plan.settings.name}: {p}" for p in (lr.problems() if lr else [])]
        timeline = Timeline((*timeline.phases, dataclasses.replace(plan, lr=lr)), timeline.lr)
    raise_all("pretraining", problems)
    return timeline


def run_of(run: PretrainingConfig, phases: Sequence[Phase], num_steps: int) -> PretrainingConfig:
    """The run settings, with the number of steps of all phases.

    Where every phase has a schedule of its own, the run's means nothing.

    Raises:
        UserError: the run's schedule does not fit into so many steps.
    """
    if all(phase.schedule != OF_RUN for phase in phases):
        run = dataclasses.replace(
            run, warmup_steps=0, schedule="constant", decay_steps=0, min_lr_ratio=0.0
        )
    return dataclasses.replace(run, num_train_steps=num_steps)


def _weights_by_samples(phase: Phase, corpora: Sequence[Corpus]) -> tuple[float, ...]:
    weights = phase.shards.values()
    if phase.weights_by == "samples":
        return tuple(map(float, weights))
    return tuple(w / c.tokens_per_sample for w, c in zip(weights, corpora, strict=True))


def stages_of(
    phase: Phase, weights: Sequence[float], corpora: Sequence[Corpus], usual: BatchShape
) -> tuple[list[Stage], list[str]]:
    """The batch sizes of a phase, and all that is wrong with them.

    Args:
        phase: its length is in tokens only where there are data sets.
        weights: of the data sets, by samples.
        corpora: none where they need not be there.
        usual: the batch of a phase that gives none, and the largest micro-batch of others.
    """
    size = phase.train_batch_size or usual.global_batch_size
    first, world_size = phase.initial_batch_size or size, usual.world_size
    if size % first:
        return [], [
            f"initial_batch_size = {first}: must divide train_batch_size = {size}, which it grows"
            " to in steps of its own size"
        ]
    if bool(phase.ramp_samples) != (first < size):
        return [], ["initial_batch_size, ramp_samples: a ramp needs both, the first below the end"]
    own_micro = phase.train_micro_batch_size_per_gpu
    micro = own_micro or min(usual.micro_batch_size, max(1, first // world_size))
    longest = max((c.manifest.config["sequence_length"] for c in corpora), default=0)
    given = phase.micro_batch_tokens
    tokens = TO_BE_FOUND if isinstance(given, str) else given  # the only word is auto
    tokens = tokens or (0 if own_micro else usual.micro_batch_tokens)
    if tokens:
        micro = 1
        if TO_BE_FOUND < tokens < longest:
            return [], [
                f"micro_batch_tokens = {tokens} is below the shards'"
                f" sequence_length = {longest}: raise it"
            ]
    if first % (micro * world_size):
        name = "initial_batch_size" if phase.initial_batch_size else "train_batch_size"
        return [], [
            f"{name} = {first} is not a multiple of train_micro_batch_size_per_gpu = {micro} x"
            f" {world_size} ranks = {micro * world_size}: change one of them"
        ]
    length = phase.samples
    if phase.tokens:
        mean = sum(w * c.tokens_per_sample for w, c in zip(weights, corpora, strict=True))
        length = math.ceil(phase.tokens * sum(weights) / mean)
    sizes = list(range(first, size + 1, first))
    stages: list[Stage] = []
    step = sample = 0
    for own in sizes:
        if own < size:
            num_steps = math.ceil(phase.ramp_samples / (len(sizes) - 1) / own)
        else:
            num_steps = phase.steps - step if phase.steps else math.ceil((length - sample) / own)
        shape = BatchShape(own // (micro * world_size), world_size, micro, tokens)
        stages.append(Stage(step, num_steps, sample, shape))
        step, sample = step + num_steps, sample + num_steps * own
    if stages[-1].num_steps < 1:
        return [], [
            f"ramp_samples = {phase.ramp_samples}: the phase ends before its batch has grown"
        ]
    return stages, []


def _own_schedule(plan: PhasePlan, lr_before: float) -> LrSchedule | None:
    """A phase's own learning rate, None where it has none; `lr_before` is a share of the peak."""
    phase = plan.settings
    if phase.schedule == OF_RUN:
        return None
    return LrSchedule(
        plan.num_steps,
        phase.warmup_steps,
        phase.schedule,
        phase.decay_steps,
        phase.min_lr_ratio,
        min(1.0, lr_before / phase.lr_share),
    )


def _mixture_problems(phase: Phase, corpora: Sequence[Corpus]) -> list[str]:
    """What is wrong with the data sets of one phase; in some facts they may not differ."""
    problems = []
    if phase.masked_lm_prob:
        problems += [
            f"masked_lm_prob: the manifest of {corpus.name} does not say what share it has masked;"
            " prepare it again"
            for corpus in corpora
            if not corpus.manifest.config.get("masked_lm_prob")
        ]
    for name in ("pair_objective", "whole_words", "mean_span_length", "masked_lm_prob"):
        values = {corpus.manifest.config.get(name) for corpus in corpora}
        if len(values) > 1:
            told = ", ".join(f"{c.name}: {c.manifest.config.get(name)}" for c in corpora)
            problems.append(
                f"its data sets differ in {name} ({told}): prepare them alike, or give them phases"
                " of their own"
            )
    return problems
