"""What a fine-tuning run leaves in its folder, and the table of several runs. No torch."""

import importlib.util
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_bert.checkpoint.run_dir import read_whole
from dist_bert.common import files
from dist_bert.finetuning.scores import Scores, scores_as_text, write_confusion

RESULTS_NAME = "results.json"
SUMMARY_NAME = "summary.json"
CONFUSION_NAME = "confusion.png"


def write_results(run_dir: Path, scores: Scores, facts: dict[str, Any]) -> str:
    """Writes RUN/results.json, and RUN/confusion.png where there is matplotlib to draw it.

    Args:
        run_dir: of the run.
        scores: of the best checkpoint on the held-out examples.
        facts: what else is kept: step, lr, seed, loss; a loss of no example is NaN, kept as null.

    Returns:
        Lines for the console.
    """
    lines = [f"best checkpoint: step {facts['step']:,}", scores_as_text(scores)]
    if scores.confusion is not None and importlib.util.find_spec("matplotlib"):
        lines += write_confusion(run_dir / CONFUSION_NAME, f"{run_dir}", scores)
    if math.isnan(facts["loss"]):  # JSON has no NaN
        facts = {**facts, "loss": None}
    files.write_json(run_dir / RESULTS_NAME, {**scores.figures(), **facts})  # last: it is done
    return "\n".join(lines)


def read_results(run_dir: Path) -> dict[str, Any]:
    """What `write_results` wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    kinds = {"main": str, "values": dict, "per_class": list, "step": int, "lr": float, "seed": int}
    return read_whole(run_dir / RESULTS_NAME, kinds)


def summarize(output_dir: Path, run_dirs: Sequence[str]) -> str:
    """A table of several runs, written to OUTPUT_DIR/summary.json too; one run must have none.

    A learning rate's runs differ in their seed alone: their mean and standard deviation are told.
    """
    results = [{"run": run, **read_results(Path(run))} for run in run_dirs]
    main = results[0]["main"]
    best = max(results, key=lambda result: result["values"][main])
    if len(results) == 1:
        (output_dir / SUMMARY_NAME).unlink(missing_ok=True)  # of an earlier search: not the best
        return f"done: {main} {best['values'][main]:.4f}, in {run_dirs[0]}"
    rows = []
    for lr in dict.fromkeys(result["lr"] for result in results):
        own = [result["values"] for result in results if result["lr"] == lr]
        rows.append(
            {
                "lr": lr,
                "seeds": len(own),
                "mean": {name: statistics.fmean(s[name] for s in own) for name in own[0]},
                "standard_deviation": {
                    name: statistics.stdev([s[name] for s in own]) if len(own) > 1 else 0.0
                    for name in own[0]
                },
            }
        )
    summary = {
        "main": main,
        "best_run": str(Path(best["run"]).relative_to(output_dir)),
        "best": best["values"],
        "learning_rates": rows,
        "runs": [
            {name: result[name] for name in ("run", "lr", "seed", "step", "values")}
            for result in results
        ],
    }
    files.write_json(output_dir / SUMMARY_NAME, summary)
    lines = [f"{'lr':>8}  {'seeds':>5}  {main} (mean, standard deviation)"]
    lines += [
        f"{row['lr']:>8g}  {row['seeds']:>5}  {row['mean'][main]:.4f}"
        f"  {row['standard_deviation'][main]:.4f}"
        for row in rows
    ]
    return "\n".join([*lines, f"best: {main} {best['values'][main]:.4f}, in {best['run']}"])


def best_run(folder: Path) -> Path:
    """The run of a folder: itself, or the best of the several that it holds."""
    summary = folder / SUMMARY_NAME
    if not summary.exists():
        return folder
    name: str = read_whole(summary, {"best_run": str})["best_run"]
    return folder / name
