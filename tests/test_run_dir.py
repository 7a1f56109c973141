"""The layout of a run's folder."""

from pathlib import Path

import pytest

from dist_bert.errors import UserError
from dist_bert.run_dir import checkpoints_newest_first, latest_checkpoint


def test_latest_checkpoint_is_there_or_refused(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    folder = tmp_path / "checkpoints"
    for name in ("step-000000003", "step-000000005"):
        (folder / name).mkdir(parents=True)
        (folder / name / "state.json").write_text("{}")
    (folder / "latest").write_text("step-000000005\n")
    assert latest_checkpoint(tmp_path) == folder / "step-000000005"
    (folder / "latest").write_text("step-000000007\n")
    with pytest.raises(UserError, match=r"step-000000007, which is not there.*5, step-000000003\)"):
        latest_checkpoint(tmp_path)


def test_checkpoints_come_newest_first_but_the_latest_before_all(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (3, 9, 5):
        (folder / f"step-{step:09d}").mkdir(parents=True)
        (folder / f"step-{step:09d}" / "state.json").write_text("{}")
    (folder / "step-000000011").mkdir()  # half removed
    steps = [int(path.name[5:]) for path in checkpoints_newest_first(tmp_path)]
    assert steps == [9, 5, 3]
    (folder / "latest").write_text("step-000000005\n")
    steps = [int(path.name[5:]) for path in checkpoints_newest_first(tmp_path)]
    assert steps == [5, 9, 3], "a user may go back by hand"
