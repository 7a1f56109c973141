"""`launch/pretrain.py --check`: in about a minute what would otherwise fail after hours.

Lists every problem that it finds, of all ranks. An existing run stays as it is.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from dist_bert.checkpoint import checkpoint
from dist_bert.common.cli import USER_ERROR_EXIT_CODE
from dist_bert.common.device import has_gpu
from dist_bert.common.errors import UserError
from dist_bert.data.pretraining_batches import count_validation_samples
from dist_bert.distributed.environment import differences, nodes
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.pretraining.build import open_corpora
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.job import PartialJob, PretrainingJob
from dist_bert.pretraining.rehearsal import Rehearsal
from dist_bert.pretraining.timeline_text import timeline_table, warnings_of
from dist_bert.tokenizer.tokenizer import Tokenizer
from dist_bert.training.console import Console
from dist_bert.training.out_of_memory import told_if_out_of_memory
from dist_bert.training.rank_group import joined_ranks
from dist_bert.training.rank_reports import gather_environment, gather_warnings


def check(found: PartialJob, console: Console) -> int:
    """Checks a job, as far as there is one; called by every rank of the launcher.

    Args:
        found: the job's parts, and the problems of its configurations.
        console: of this rank.

    Returns:
        The exit code: 0, or 2 where there are problems.

    Raises:
        UserError: the ranks cannot meet, or have no device.
    """
    run = found.run
    with joined_ranks(run or PretrainingConfig(), console) as watchdog:
        problems = _problems(found, console, watchdog)
        console.say(f"problems found: {len(problems) or 'none'}")
    return USER_ERROR_EXIT_CODE if problems else 0


def _problems(found: PartialJob, console: Console, watchdog: Watchdog) -> list[str]:
    """All problems, each shown as it is found."""
    job = found.job
    if job is not None:
        console.say(json.dumps(job.resolved(), indent=2))
        console.say(timeline_table(job.timeline, job.deepspeed.peak_lr))
        for warning in warnings_of(job.timeline):
            console.say(f"warning: {warning}")
    of_nodes = nodes(gather_environment())
    console.say(f"checked  versions and code of all nodes ({len(of_nodes):,})")
    differing = _told([f"nodes differ: {text}" for text in differences(of_nodes)])
    problems = _told(found.problems)
    for corpus in found.corpora:
        watchdog.beat("opening the shards")
        own = corpus.source.problems(corpus.manifest, dist.get_rank(), dist.get_world_size())
        problems += _told(_of_all_ranks(own))
        num_shards = sum(map(len, corpus.manifest.splits.values()))
        name = f" of {corpus.name}" if len(found.corpora) > 1 else ""
        console.say(f"checked  {num_shards} shards{name}: sizes and first blocks")
    if job is not None and not problems:
        problems += _told(_of_all_ranks(_start_problems(job)))
    can_rehearse = job is not None and not problems
    if job is not None:
        watchdog.beat("reading the checkpoint")
        name, misfits = checkpoint.examine(job.run.output_dir, job.identity(), job.may_differ)
        console.say(f"checked  {name or 'no checkpoint: the run starts from step 0'}")
        problems += _told(misfits)
    if job is not None and can_rehearse:
        rehearsal = Rehearsal(job, console.say, watchdog)
        with told_if_out_of_memory(lambda: rehearsal.shape):
            problems += _told(_of_all_ranks(rehearsal.problems(may_resume=not problems)))
    else:
        console.say("left out steps, a save and a validation: they need what is wrong")
    problems += differing  # last: they keep nothing else from being checked
    gather_warnings(console)
    return problems


def _told(problems: list[str]) -> list[str]:
    """The same problems, each shown as an error, on rank 0."""
    if dist.get_rank() == 0:
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr, flush=True)
    return list(problems)


def _of_all_ranks(problems: list[str]) -> list[str]:
    """The problems of all ranks, each once."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, problems)
    return list(dict.fromkeys(problem for own in gathered for problem in own))


def _problem_of(work: Callable[[], Any]) -> list[str]:
    """The mistake in which a piece of work ends, if it does."""
    try:
        work()
    except UserError as error:
        return [str(error)]
    return []


def _start_problems(job: PretrainingJob) -> list[str]:
    """What a start would refuse once it has torch: device, splits, tokenizer."""
    run, shape = job.run, job.deepspeed.batch_shape

    def open_held_out() -> None:
        for held_out in open_corpora(job, "validation").values():
            count_validation_samples(held_out, shape.world_size, run.validation_samples)

    return [
        *_problem_of(lambda: job.check_device(has_gpu())),
        *_problem_of(lambda: open_corpora(job, "train")),
        *_problem_of(open_held_out),
        *_problem_of(lambda: Tokenizer(job.tokenizer_path)),
    ]
