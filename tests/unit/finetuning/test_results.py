"""What a run's results are, and which of the runs in a folder is used."""

import json
import math
from pathlib import Path

import pytest

from dist_bert.common.files import write_json
from dist_bert.finetuning.results import best_run, read_results, summarize, write_results
from dist_bert.finetuning.scores import Scores


def write_results_of(run_dir: Path, f1: float, seed: int) -> str:
    run_dir.mkdir(exist_ok=True)
    facts = {"main": "f1", "values": {"f1": f1}, "per_class": [], "lr": 1e-3}
    write_json(run_dir / "results.json", {**facts, "step": 5, "seed": seed})
    return str(run_dir)


def test_the_last_command_says_which_run_is_used(tmp_path: Path) -> None:
    searched = [write_results_of(tmp_path / f"seed-{i}", 0.5 + 0.1 * i, i) for i in range(2)]
    alone = write_results_of(tmp_path, 0.4, seed=3)
    assert "best: f1 0.6000" in summarize(tmp_path, searched)
    assert best_run(tmp_path) == tmp_path / "seed-1"
    assert "done: f1 0.4000" in summarize(tmp_path, [alone])
    assert best_run(tmp_path) == tmp_path
    summarize(tmp_path, searched)
    assert best_run(tmp_path) == tmp_path / "seed-1"


@pytest.mark.parametrize("loss", [0.25, math.nan])
def test_a_loss_of_no_example_is_null_which_every_reader_of_json_takes(
    tmp_path: Path, loss: float
) -> None:
    """As where no held-out answer has a known place: the scores are there, the loss is not."""
    scores = Scores({"f1": 0.5}, [], None, "f1")
    write_results(tmp_path, scores, {"step": 5, "lr": 1e-3, "seed": 1, "loss": loss})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "results.json").read_text()
    found = json.loads(text, parse_constant=refuse)
    assert found["loss"] == (None if math.isnan(loss) else loss)
    assert read_results(tmp_path)["values"] == {"f1": 0.5}
