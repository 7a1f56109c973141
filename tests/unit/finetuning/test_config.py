"""Settings of fine-tuning, what the loop is told, and the table of several runs."""

import json
from pathlib import Path

import pytest

from dist_bert.common.errors import UserError
from dist_bert.finetuning.config import FinetuneConfig
from dist_bert.finetuning.results import best_run, summarize


def test_steps_follow_from_epochs() -> None:
    config = FinetuneConfig(train="f", num_train_epochs=2.5, evals_per_epoch=2)
    run = config.run("out", seed=3, num_samples=107, global_batch_size=8)
    assert run.num_train_steps == 34  # 267.5 samples by 8
    assert run.warmup_steps == 3
    assert run.validation_interval == run.checkpoint_interval == 7  # 5 scores
    assert (run.seed, run.output_dir, run.keep_checkpoints) == (3, "out", 1)
    tiny = FinetuneConfig(train="f", num_train_epochs=0.1).run("out", 1, 3, 32)
    assert (tiny.num_train_steps, tiny.validation_interval) == (1, 1)


@pytest.mark.parametrize("is_on", [False, True])
def test_the_loop_is_told_how_to_compute(is_on: bool) -> None:
    config = FinetuneConfig(train="f", deterministic=is_on, activation_checkpointing=is_on)
    run = config.run("out", 1, 3, 32)
    assert run.deterministic == run.activation_checkpointing == is_on


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as told:
        FinetuneConfig(seeds=0, eval_share=1.0, num_train_epochs=0.0, learning_rates="1e-4,x,-1")
    text = str(told.value)
    for part in ("train: give", "seeds = 0", "eval_share = 1.0", "num_train_epochs = 0.0"):
        assert part in text
    assert "'x' is not a number above 0" in text and "'-1' is not a number above 0" in text


def write_run(folder: Path, lr: float, seed: int, f1: float) -> str:
    folder.mkdir(parents=True)
    contents = {"main": "f1", "values": {"f1": f1, "loss": 1 - f1}, "per_class": [], "lr": lr}
    (folder / "results.json").write_text(json.dumps({**contents, "seed": seed, "step": 7}))
    return str(folder)


def test_runs_of_a_rate_are_told_by_mean_and_deviation(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"lr-{lr:g}/seed-{seed}", lr, seed, f1)
        for lr, seed, f1 in ((1e-4, 1, 0.5), (1e-4, 2, 0.7), (1e-3, 1, 0.9), (1e-3, 2, 0.1))
    ]
    text = summarize(tmp_path, runs)
    assert text.splitlines()[1].split() == ["0.0001", "2", "0.6000", "0.1414"]
    assert text.splitlines()[2].split() == ["0.001", "2", "0.5000", "0.5657"]
    assert text.splitlines()[3] == f"best: f1 0.9000, in {runs[2]}"
    assert best_run(tmp_path) == Path(runs[2])
    assert best_run(Path(runs[0])) == Path(runs[0])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["learning_rates"][0]["mean"]["loss"] == pytest.approx(0.4)
