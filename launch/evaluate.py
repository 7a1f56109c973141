"""Scores a run on held-out samples, beside the baselines, with 95 % confidence intervals.

    python launch/evaluate.py --checkpoint runs/pretrain --shards data/shards
    deepspeed launch/evaluate.py --checkpoint runs/pretrain --shards data/shards

The second line divides the samples among all GPUs and prints the same figures. Intervals are over
documents: within which bounds scores on other documents of the same kind would lie.
"""

import argparse
import json
import os

from dist_bert.common.cli import Parser, add_cache_flags, check_output_file, is_first_rank, run_rank
from dist_bert.common.files import write_json
from dist_bert.common.redaction import redacted_values
from dist_bert.common.settings import add_switch
from dist_bert.inference.run_flags import add_run_flags, chosen_weights


def main(arguments: argparse.Namespace) -> None:
    """Evaluates, prints tables and writes all figures as JSON where asked."""
    checkpoint = chosen_weights(arguments)
    if arguments.dry_run:
        if is_first_rank():
            settings = {**vars(arguments), "checkpoint": str(checkpoint)}
            print(json.dumps(redacted_values(settings), indent=2))
        return
    check_output_file(arguments.json, "--json")
    is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_launched:
        from dist_bert.distributed.process_group import leave_distributed, start_distributed

        start_distributed()
    from dist_bert.data.shard_source import ShardSource
    from dist_bert.inference.evaluate import evaluate
    from dist_bert.inference.evaluation_text import evaluation_text
    from dist_bert.inference.trained_run import TrainedRun

    source = ShardSource(arguments.shards, arguments.local_cache, arguments.local_cache_gib)
    result = evaluate(
        TrainedRun.load(checkpoint, is_average=arguments.average), source, arguments.max_samples
    )
    if is_first_rank():
        print(evaluation_text(result))
        if arguments.json:
            write_json(arguments.json, result.figures())
    if is_launched:
        leave_distributed()


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    add_run_flags(parser)
    parser.add_argument(
        "--shards", required=True, metavar="DIR", help="folder or URL of prepared shards"
    )
    add_cache_flags(parser)
    parser.add_argument(
        "--max_samples", type=int, default=0, help="samples that are scored; 0 = all (default)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    add_switch(parser, "--dry_run", "print what would be scored")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the launcher passes it
    run_rank(main, parser.parse_args())
