"""Which of the runs in a folder is used: the best of the command that ended last."""

from pathlib import Path

from dist_bert.common.files import write_json
from dist_bert.finetuning.results import best_run, summarize


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
