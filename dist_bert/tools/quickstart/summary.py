"""What came out of a quickstart: scores beside their baselines, and what each step took."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_bert.common.settings import read_json
from dist_bert.data.shard_format import MANIFEST_NAME
from dist_bert.tools.commands import ranks_and_arithmetic
from dist_bert.training.metrics import read_metrics

EVALUATION_NAME = "evaluation.json"  # in the folder of the run


def summarize(
    run_dir: Path, shards: Path, model: str, step_seconds: Mapping[str, float]
) -> dict[str, Any]:
    """What a quickstart has made, for a JSON file.

    Args:
        run_dir: of the last run, with its evaluation.
        shards: that it was trained on.
        model: path of its JSON.
        step_seconds: what each step of the quickstart took.
    """
    manifest = read_json(shards / MANIFEST_NAME)
    scores = read_json(run_dir / EVALUATION_NAME)
    rates = [
        row["throughput/tokens_per_second"]
        for row in read_metrics(run_dir)
        if "throughput/tokens_per_second" in row
    ]
    return {
        "model": model,
        "training": ranks_and_arithmetic(),
        "documents": manifest["totals"]["documents"],
        "train_tokens": manifest["statistics"]["train"]["num_tokens"],
        "samples": manifest["totals"]["samples"],
        "validation_mlm_loss": scores["mlm_loss"],
        "unigram_loss": scores["unigram_loss"],
        "validation_mlm_accuracy": scores["mlm_accuracy"],
        "majority_accuracy": scores["majority_accuracy"],
        "validation_nsp_accuracy": scores["nsp_accuracy"],
        "nsp_majority_accuracy": scores["nsp_majority_accuracy"],
        "tokens_per_second": sum(rates) / len(rates),
        "step_seconds": dict(step_seconds),
    }


def print_summary(summary: Mapping[str, Any], run_dir: Path) -> None:
    """The summary as tables, and where to go on."""
    seconds: dict[str, float] = summary["step_seconds"]
    counts = ("documents", "train_tokens", "samples", "tokens_per_second")
    scores = (
        ("MLM loss (nats)", "validation_mlm_loss", "unigram_loss", "unigram distribution", ".3f"),
        ("MLM accuracy", "validation_mlm_accuracy", "majority_accuracy", "commonest piece", ".1%"),
        (
            "NSP accuracy",
            "validation_nsp_accuracy",
            "nsp_majority_accuracy",
            "commoner label",
            ".1%",
        ),
    )
    print(f"\nmodel    {summary['model']}\ntraining {summary['training']}\n")
    for name in counts:
        print(f"{name.replace('_', ' '):<20}{summary[name]:>12,.0f}")
    print(f"\n{'':<20}{'held out':>12}{'baseline':>12}")
    for title, name, baseline_name, baseline_title, form in scores:
        baseline = f"{summary[baseline_name]:>12{form}}  {baseline_title}"
        print(f"{title:<20}{summary[name]:>12{form}}{baseline}")
    print()
    for name, value in seconds.items():
        print(f"{name.replace('_', ' '):<24}{value:>6.0f} s")
    print(f"{'all':<24}{sum(seconds.values()):>6.0f} s")
    print(f"\nthe curves       {Path(sys.executable).parent}/tensorboard --logdir {run_dir}")
    print(f"the figures      {run_dir}/summary.json")
    print("your own corpus  README.md: the same commands with --input 'text/**/*.txt'")
