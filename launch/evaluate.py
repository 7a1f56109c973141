"""Scores a run on held-out samples, beside the baselines, with 95 % confidence intervals.

    python launch/evaluate.py --checkpoint runs/pretrain --shards data/shards
    deepspeed launch/evaluate.py --checkpoint runs/pretrain --shards data/shards

The second line divides the samples among all GPUs and prints the same figures. Intervals are over
documents: within which bounds scores on other documents of the same kind would lie.
"""

import argparse
import json
import os
from typing import TYPE_CHECKING

from dist_bert.checkpoint.run_dir import BEST_NAME, LATEST_NAME, require_weights
from dist_bert.common.cli import Parser, add_cache_flags, is_first_rank, run_rank
from dist_bert.common.files import write_json
from dist_bert.common.redaction import redacted_values

if TYPE_CHECKING:
    from dist_bert.inference.confidence import Estimate
    from dist_bert.inference.evaluate import Evaluation, Scores

KIND_TITLES = {"mask": "[MASK]", "random": "a random piece", "kept": "itself, kept"}
GROUP_COLUMNS = {"mlm_loss": "MLM loss", "mlm_accuracy": "MLM accuracy"}
PAIR_COLUMNS = {"nsp_accuracy": "NSP accuracy"}


def main(arguments: argparse.Namespace) -> None:
    """Evaluates, prints tables and writes all figures as JSON where asked."""
    pointer = BEST_NAME if arguments.best else LATEST_NAME
    checkpoint = require_weights(arguments.checkpoint, pointer)
    if arguments.dry_run:
        if is_first_rank():
            settings = {**vars(arguments), "checkpoint": str(checkpoint)}
            print(json.dumps(redacted_values(settings), indent=2))
        return
    is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_launched:
        from dist_bert.distributed.process_group import leave_distributed, start_distributed

        start_distributed()
    from dist_bert.data.shard_source import ShardSource
    from dist_bert.inference.evaluate import evaluate
    from dist_bert.inference.trained_run import TrainedRun

    source = ShardSource(arguments.shards, arguments.local_cache, arguments.local_cache_gib)
    result = evaluate(TrainedRun.load(checkpoint), source, arguments.max_samples)
    if is_first_rank():
        print_result(result)
        if arguments.json:
            write_json(arguments.json, result.figures())
    if is_launched:
        leave_distributed()


def print_result(result: "Evaluation") -> None:
    """The scores of all samples beside the baselines, then those of groups of them."""
    scores = result.scores
    print(
        f"step {result.step:,}: {scores.num_samples:,} held-out samples from"
        f" {result.num_documents:,} documents, {scores.num_masked:,} predictions\n"
    )
    rows = [
        ("MLM loss (nats)", scores.mlm_loss, f"{result.unigram_loss:.4f}  unigram", ".4f"),
        ("MLM perplexity", scores.mlm_perplexity, "", ",.1f"),
        (
            "MLM accuracy",
            scores.mlm_accuracy,
            f"{result.majority_accuracy:.2%}  most frequent piece",
            ".2%",
        ),
    ]
    if scores.nsp_accuracy is not None and scores.nsp_loss is not None:
        entropy, majority = result.nsp_entropy, result.nsp_majority_accuracy
        told = [f"{entropy:.4f}  entropy of the labels", f"{majority:.2%}  more frequent label"]
        rows.append(("NSP loss (nats)", scores.nsp_loss, told[0], ".4f"))
        rows.append(("NSP accuracy", scores.nsp_accuracy, told[1], ".2%"))
    print(f"{'':<17}{'score':>9}   {'95 % interval':<19}  baseline")
    for name, estimate, baseline, form in rows:
        interval = "one document: none"
        if estimate.low is not None:
            interval = f"{estimate.low:{form}} to {estimate.high:{form}}"
        print(f"{name:<17}{estimate.value:>9{form}}   {interval:<19}  {baseline}".rstrip())
    lengths = {f"{few} to {most}": group for (few, most), group in result.by_length.items()}
    print_groups("tokens of the sample", lengths)
    kinds = {KIND_TITLES[kind]: group for kind, group in result.by_kind.items()}
    print_groups("what stands at the place", kinds)


def print_groups(title: str, groups: dict[str, "Scores"]) -> None:
    """A table with a line for each group of predictions."""
    has_pairs = any(group.nsp_accuracy for group in groups.values())
    columns = {**GROUP_COLUMNS, **(PAIR_COLUMNS if has_pairs else {})}
    heads = "".join(f"{head:>18}" for head in columns.values())
    print(f"\n{title:<25}{'samples':>9}{'predictions':>13}{heads}")
    for name, group in groups.items():
        estimates = group.estimates()
        cells = "".join(f"{_cell(estimates.get(name), name):>18}" for name in columns)
        print(f"{name:<25}{group.num_samples:>9,}{group.num_masked:>13,}{cells}".rstrip())


def _cell(estimate: "Estimate | None", name: str) -> str:
    """A score with half the width of its interval, which may be cut off on one side."""
    if estimate is None:
        return ""
    form = ".3f" if name.endswith("_loss") else ".2%"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}}          "
    margin = max(estimate.value - estimate.low, estimate.high - estimate.value)
    return f"{estimate.value:{form}} ± {margin:{form}}"


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN_DIR",
        help="folder of a run or model, or RUN/checkpoints/step-N",
    )
    parser.add_argument(
        "--shards", required=True, metavar="DIR", help="folder or URL of prepared shards"
    )
    add_cache_flags(parser)
    parser.add_argument(
        "--best",
        action="store_true",
        help="use the checkpoint of the lowest validation loss, not the latest",
    )
    parser.add_argument(
        "--max_samples", type=int, default=0, help="samples that are scored; 0 = all (default)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--dry_run", action="store_true", help="print what would be scored")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the launcher passes it
    run_rank(main, parser.parse_args())
