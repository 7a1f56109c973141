"""`micro_batch_tokens auto` before any device is tried: the number that is planned for its memory.

No torch here: the planner prints it. Not for: the trial (`dist_bert.pretraining.trial`).
"""

import dataclasses
import math
from collections.abc import Sequence

from dist_bert.data.batches import TO_BE_FOUND
from dist_bert.model.config import ModelConfig
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.timeline import PhasePlan, Stage, Timeline
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.memory import SampleSize, largest_micro_batch
from dist_bert.training.zero_layout import ZeroLayout

_MASKED_SHARE = 0.15  # of shards that do not say
# The micro-batch whose speed on CPUs docs/performance.md gives: 32 samples of 128 tokens.
MOST_ON_CPU = 4_096


def phases_to_settle(timeline: Timeline) -> tuple[PhasePlan, ...]:
    """Those whose number of tokens is to be found."""
    return tuple(
        phase
        for phase in timeline.phases
        if phase.stages[0].shape.micro_batch_tokens == TO_BE_FOUND
    )


def with_tokens(timeline: Timeline, num_tokens: int) -> Timeline:
    """The same with the number that was found, in all phases that have none."""

    def settled(stage: Stage) -> Stage:
        if stage.shape.micro_batch_tokens != TO_BE_FOUND:
            return stage
        return stage._replace(shape=dataclasses.replace(stage.shape, micro_batch_tokens=num_tokens))

    phases = (
        dataclasses.replace(phase, stages=tuple(map(settled, phase.stages)))
        for phase in timeline.phases
    )
    return dataclasses.replace(timeline, phases=tuple(phases))


def layout_of(model: ModelConfig, deepspeed: DeepSpeedConfig, run: PretrainingConfig) -> ZeroLayout:
    """What of the model a rank holds.

    Raises:
        UserError: the DeepSpeed JSON asks for something that is not planned for.
    """
    layout = ZeroLayout.of(model, deepspeed)
    return dataclasses.replace(layout, has_average=run.average_decay > 0)


def longest_samples(timeline: Timeline) -> list[SampleSize]:
    """Of each phase whose number is to be found, the longest samples with its most masks."""
    return [
        SampleSize(phase.sequence_length, math.ceil(phase.sequence_length * masked_share(phase)))
        for phase in phases_to_settle(timeline)
    ]


def masked_share(phase: PhasePlan) -> float:
    """The largest share of the tokens that a phase masks."""
    stored = (corpus.manifest.config.get("masked_lm_prob") for corpus in phase.corpora)
    own = max(phase.masked_lm_prob(1), phase.masked_lm_prob(phase.num_steps))
    return own or max(share or _MASKED_SHARE for share in stored)


def planned_tokens(
    timeline: Timeline,
    layout: ZeroLayout,
    samples: Sequence[SampleSize],
    checkpointing: bool,
    memory_bytes: float,
    is_gpu: bool,
) -> int:
    """The most tokens of a micro-batch that fit by arithmetic; at least one longest sample.

    No more than a rank has in a step, and on a CPU at most `MOST_ON_CPU`.

    Args:
        timeline: the run.
        layout: model, precision and ZeRO.
        samples: the longest of each phase; short ones with many masks may take more a token.
        checkpointing: whether layers are computed again in the backward pass.
        memory_bytes: of the device, or a rank's share of it.
        is_gpu: whether it is a GPU.
    """
    longest = max(sample.num_tokens for sample in samples)
    fitting = min(
        sample.num_tokens * largest_micro_batch(layout, sample, checkpointing, memory_bytes)
        for sample in samples
    )
    shapes = [stage.shape for phase in phases_to_settle(timeline) for stage in phase.stages]
    num_own = max(math.ceil(shape.global_batch_size / shape.world_size) for shape in shapes)
    most = min(fitting, num_own * longest)
    return max(longest, most if is_gpu else min(most, MOST_ON_CPU))
