"""Scores a run's latest checkpoint on held-out samples, beside the baselines.

python launch/evaluate.py --checkpoint runs/pretrain --shards data/shards
"""

import argparse
import dataclasses
import json

from dist_bert.cli import Parser, run
from dist_bert.files import write_json
from dist_bert.run_dir import require_checkpoint


def main(arguments: argparse.Namespace) -> None:
    """Evaluates, prints a table and writes it as JSON where asked."""
    if arguments.dry_run:
        checkpoint = str(require_checkpoint(arguments.checkpoint))
        print(json.dumps({**vars(arguments), "checkpoint": checkpoint}, indent=2))
        return
    from dist_bert.evaluate import evaluate
    from dist_bert.inference import TrainedRun

    result = evaluate(
        TrainedRun.load(arguments.checkpoint), arguments.shards, arguments.max_samples
    )
    print(
        f"step {result.step:,}: {result.num_samples:,} samples, {result.num_masked:,} predictions"
    )
    rows = [
        ("MLM loss (nats)", result.mlm_loss, "unigram", result.unigram_loss, ".4f"),
        (
            "MLM accuracy",
            result.mlm_accuracy,
            "most frequent piece",
            result.majority_accuracy,
            ".2%",
        ),
    ]
    if result.nsp_accuracy is not None:
        rows.append(("NSP accuracy", result.nsp_accuracy, "chance", 0.5, ".2%"))
    for name, value, baseline_name, baseline, form in rows:
        print(f"  {name:<16} {value:>8{form}}   {baseline_name}: {baseline:{form}}")
    print(f"  {'MLM perplexity':<16} {result.mlm_perplexity:>8.1f}")
    if arguments.json:
        figures = dataclasses.asdict(result)
        write_json(arguments.json, {n: value for n, value in figures.items() if value is not None})


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="RUN_DIR", help="folder of a run")
    parser.add_argument("--shards", required=True, metavar="DIR", help="folder of prepared shards")
    parser.add_argument(
        "--max_samples", type=int, default=0, help="samples that are scored; 0 = all (default)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--dry_run", action="store_true", help="print what would be scored")
    run(main, parser.parse_args())
