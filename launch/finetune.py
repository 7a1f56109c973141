"""Fine-tunes a pretrained encoder on labelled examples, and scores it on held-out ones.

    deepspeed launch/finetune.py --task pair_classification --checkpoint runs/pretrain
        --train train.tsv --eval dev.tsv --output_dir runs/pairs

Tasks: pair_classification, sentence_classification, pair_regression, sentence_regression,
question_answering, token_classification; layouts of files: docs/finetuning.md. With several --seeds
or --learning_rates each pair is a run of its own, and the best by held-out score is named. Signals
and --max_minutes save and end it with exit code 85, as in pretraining: the same command goes on
from there.
"""

import argparse
import json
import os

from dist_bert.common.cli import Parser, is_first_rank, run_rank
from dist_bert.common.settings import add_flags, add_switch
from dist_bert.distributed.interrupts import Interrupts
from dist_bert.finetuning.config import FinetuneConfig
from dist_bert.finetuning.readers import ReadConfig
from dist_bert.training.console import Console
from dist_bert.training.deepspeed_flags import add_deepspeed_flags


def main(arguments: argparse.Namespace) -> int:
    """Resolves the jobs, then does them; returns the exit code: 0, or 85 if interrupted."""
    from dist_bert.finetuning.job import FinetunePlan

    console = Console()
    console.take_over_warnings()
    plan = FinetunePlan.of(arguments, int(os.environ.get("WORLD_SIZE", "1")))
    if arguments.dry_run:
        if is_first_rank():
            for note in plan.notes:
                print(note)
            print(json.dumps([job.resolved() for job in plan.jobs], indent=2, ensure_ascii=False))
        return 0
    interrupts = Interrupts(plan.jobs[0].run.max_minutes)
    interrupts.catch_signals()
    interrupts.follow_launcher()
    from dist_bert.finetuning.finetune import finetune  # takes seconds

    return finetune(plan, interrupts, console)


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("--config", metavar="FILE", help="JSON of a FinetuneConfig's fields")
    add_switch(parser, "--dry_run", "print the resolved jobs and stop")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the launcher passes it
    add_deepspeed_flags(parser, "configs/finetune_zero1.json")
    add_flags(parser, FinetuneConfig)
    add_flags(parser, ReadConfig)
    run_rank(main, parser.parse_args())
