"""Which losses are drawn against which minutes, and what is refused."""

import json
from pathlib import Path

import pytest

from dist_bert.common.errors import UserError
from dist_bert.tools.benchmark.loss_picture import earlier_curves


def write_run(folder: Path, num_validated: int) -> Path:
    """Steps of 30 s: two of a first phase, four of a second; each of the last is validated."""
    folder.mkdir()
    phases = {name: {"steps": steps} for name, steps in (("short", 2), ("long", 4))}
    (folder / "config.json").write_text(json.dumps({"run": {}, "phases": phases}))
    rows = []
    for step in range(1, 7):
        phase = 1 if step <= 2 else 2
        rows.append(
            {"step": step, "progress/phase": phase, "throughput/step_seconds": 30.0}
            | {"train/mlm_loss": 9.0}
        )
        if step > 6 - num_validated:
            rows.append({"step": step, "validation/mlm_loss": 8.0 - step})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_is_drawn_over_the_minutes_of_its_steps_as_far_as_losses_compare(
    tmp_path: Path,
) -> None:
    """The validation at step 2 is of the first phase's samples, so it is left out."""
    run = write_run(tmp_path / "ours", 5)
    (curve,) = earlier_curves([str(run)])
    assert curve.title == "ours"
    assert curve.places == pytest.approx([1.5, 2.0, 2.5, 3.0])
    assert curve.values == [5.0, 4.0, 3.0, 2.0]


def test_figures_and_runs_are_drawn_in_the_order_given(tmp_path: Path) -> None:
    rows = {
        f"step {step}": {"minutes": step / 10, "million_tokens": 1.0, "mlm_loss": 7.0 - step}
        for step in (1, 2)
    }
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"machine": {}, "settings": {}, "figures": {"peer": rows}}))
    run = write_run(tmp_path / "ours", 1)
    for paths in ([str(path), str(run)], [str(run), str(path)]):
        curves = {curve.title: curve for curve in earlier_curves(paths)}
        assert list(curves) == (["peer", "ours"] if paths[0] == str(path) else ["ours", "peer"])
        assert curves["peer"].places == [0.1, 0.2] and curves["peer"].values == [6.0, 5.0]
        assert curves["ours"].places == pytest.approx([3.0]) and curves["ours"].values == [2.0]


def test_what_has_no_losses_is_refused_by_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "ours", 0)
    with pytest.raises(UserError, match=r"ours: has no validation .* validation_interval"):
        earlier_curves([str(run)])
    with pytest.raises(UserError, match="is not a run"):
        earlier_curves([str(tmp_path)])
    path = tmp_path / "figures.json"
    others: list[object] = [{"prepare": {"ranks_1": {"seconds": 1.0}}}, [], {"prepare": 3}]
    for figures in others:
        path.write_text(json.dumps({"figures": figures}))
        with pytest.raises(UserError, match=r"figures\.json: has no losses by minutes; give"):
            earlier_curves([str(path)])
    with pytest.raises(UserError, match=r"absent\.json: cannot be read"):
        earlier_curves([str(tmp_path / "absent.json")])
