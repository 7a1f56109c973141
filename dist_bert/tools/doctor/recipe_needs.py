"""What a recipe needs of the machine, as JSON; a process of its own, for the doctor.

    python -m dist_bert.tools.doctor.recipe_needs --num_ranks 2 --recipe FILE ...

takes the flags of launch/pretrain.py that the doctor has. Not for: judging the machine by it
(`dist_bert.tools.doctor.doctor`).
"""

import argparse
import json
from typing import Any

from dist_bert.common.device import rank_memory_bytes
from dist_bert.common.errors import UserError
from dist_bert.common.settings import add_flags
from dist_bert.data.batches import TO_BE_FOUND
from dist_bert.model.config import ModelConfig
from dist_bert.pretraining.auto_tokens import layout_of, masked_share
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.job import PartialJob, PretrainingJob
from dist_bert.pretraining.timeline import PhasePlan
from dist_bert.pretraining.timeline_text import warnings_of
from dist_bert.training.deepspeed_flags import add_deepspeed_flags
from dist_bert.training.memory import SampleSize, most_checkpoint_bytes, plan_memory
from dist_bert.training.zero_layout import ZeroLayout


def needs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Phases, memory of a rank and disk of a command line; all problems where there is no job.

    Returns:
        `problems` and `warnings`; of a job also `phases` (name, data sets, steps, samples, tokens
        of the longest, bytes that a rank needs, or null where that is not planned), `memory_bytes`
        that a rank has here, `disk_bytes` of checkpoints, and `not_planned`: why there are no
        figures.
    """
    partial = PartialJob.of(arguments, arguments.num_ranks)
    job = partial.job
    if job is None:
        return {"problems": partial.problems, "warnings": []}
    layout, not_planned = None, ""
    try:
        layout = layout_of(job.model, job.deepspeed, job.run)
    except UserError as error:
        not_planned = str(error)
    return {
        "problems": partial.problems,
        "warnings": warnings_of(job.timeline),
        "phases": [_phase(phase, job, layout) for phase in job.timeline.phases],
        "memory_bytes": rank_memory_bytes(),
        "disk_bytes": layout and most_checkpoint_bytes(layout, job.run.keep_checkpoints),
        "not_planned": not_planned,
    }


def _phase(phase: PhasePlan, job: PretrainingJob, layout: ZeroLayout | None) -> dict[str, Any]:
    length = phase.sequence_length
    shape = max((stage.shape for stage in phase.stages), key=lambda s: s.global_batch_size)
    num_samples = shape.micro_batch_size
    if shape.micro_batch_tokens and shape.micro_batch_tokens != TO_BE_FOUND:
        num_samples = shape.micro_batch_tokens // length
    # What is to be found starts from one longest sample, whose shape is by tokens: 1.
    sample = SampleSize(length, length * masked_share(phase))
    checkpointing = job.run.activation_checkpointing
    return {
        "name": phase.settings.name or "1",
        "data_sets": [corpus.name for corpus in phase.corpora],
        "num_steps": phase.num_steps,
        "num_samples": phase.num_samples,
        "sequence_length": length,
        "rank_bytes": layout and plan_memory(layout, sample, num_samples, checkpointing).peak,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_ranks", type=int, required=True)
    parser.add_argument("--model")
    parser.add_argument("--config")
    add_deepspeed_flags(parser, "configs/zero2.json")
    add_flags(parser, PretrainingConfig)
    add_flags(parser, ModelConfig)
    print(json.dumps(needs(parser.parse_args())))
