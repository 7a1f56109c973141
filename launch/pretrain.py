"""Pretrains an encoder from prepared shards, going on from the run's latest checkpoint if any.

    deepspeed launch/pretrain.py --deepspeed_config configs/zero2.json

trains configs/model/bert_base.json from data/shards into runs/pretrain. SIGTERM, SIGUSR1, SIGINT
and the end of --max_minutes save and end it with exit code 85: the same command goes on from there.
"""

import argparse
import json
import os

from dist_bert.common.cli import Parser, is_first_rank, run_rank
from dist_bert.common.settings import add_flags, add_switch
from dist_bert.distributed.interrupts import Interrupts
from dist_bert.model.config import ModelConfig
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.training.console import Console
from dist_bert.training.deepspeed_flags import add_deepspeed_flags


def main(arguments: argparse.Namespace) -> int:
    """Resolves the job, then trains; returns the exit code: 0, or 85 if it was interrupted."""
    from dist_bert.pretraining.job import PartialJob

    console = Console()
    console.take_over_warnings()
    examination = PartialJob.of(arguments, int(os.environ.get("WORLD_SIZE", "1")))
    if arguments.check:
        from dist_bert.pretraining.check import check  # takes seconds

        return check(examination, console)
    job = examination.require_job()
    if arguments.dry_run:
        if is_first_rank():
            print(json.dumps(job.resolved(), indent=2))
        return 0
    interrupts = Interrupts(job.run.max_minutes)
    interrupts.catch_signals()
    interrupts.follow_launcher()
    from dist_bert.pretraining.pretrain import pretrain  # takes seconds

    return pretrain(job, interrupts, console)


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--model",
        metavar="FILE",
        help="model JSON (default: configs/model/bert_base.json's values)",
    )
    parser.add_argument("--config", metavar="FILE", help="run JSON (default: the flags' defaults)")
    add_switch(parser, "--dry_run", "print the resolved job and stop")
    add_switch(
        parser,
        "--check",
        "try everything that the run will do, in about a minute, list all problems and stop",
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the launcher passes it
    add_deepspeed_flags(parser, "configs/zero2.json")
    add_flags(parser, PretrainingConfig)
    add_flags(parser, ModelConfig)
    run_rank(main, parser.parse_args())
