"""The layout of a run's folder."""

import json
from pathlib import Path

import pytest

from dist_bert.checkpoint.run_dir import (
    checkpoints_newest_first,
    latest_checkpoint,
    require_checkpoint,
    run_folder,
)
from dist_bert.common.errors import UserError


def write_checkpoints(run_dir: Path, *steps: int, **losses: float) -> Path:
    """Checkpoints that hold nothing but their validation losses, given as s5=1.25."""
    folder = run_dir / "checkpoints"
    for step in steps:
        (folder / f"step-{step:09d}").mkdir(parents=True)
        state = {"validation_loss": losses.get(f"s{step}")}
        (folder / f"step-{step:09d}" / "state.json").write_text(json.dumps(state))
    return folder


def steps_of(run_dir: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoints_newest_first(run_dir)]


def test_checkpoints_come_newest_first_but_the_latest_before_all(tmp_path: Path) -> None:
    folder = write_checkpoints(tmp_path, 3, 9, 5)
    (folder / "step-000000011").mkdir()  # half removed
    for other in ("aside-step-000000012", "step-twelve"):
        (folder / other).mkdir()
        (folder / other / "state.json").write_text("{}")
    assert steps_of(tmp_path) == [9, 5, 3]
    (folder / "latest").write_text("step-000000005\n")
    assert steps_of(tmp_path) == [5, 3, 9], "a user may go back by hand, away from step 9"


@pytest.mark.parametrize(
    "pointer", [b"", b"step-000000007\n", b"\xff\x00", b"../checkpoints/step-000000003", b"none"]
)
def test_where_latest_names_nothing_the_newest_is_taken(
    tmp_path: Path, pointer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert latest_checkpoint(tmp_path) is None
    folder = write_checkpoints(tmp_path, 3, 5)
    (folder / "latest").write_bytes(b"step-000000003\n")
    assert latest_checkpoint(tmp_path) == folder / "step-000000003"
    (folder / "latest").write_bytes(pointer)
    assert latest_checkpoint(tmp_path) == folder / "step-000000005"
    assert not caplog.records
    assert require_checkpoint(tmp_path) == folder / "step-000000005"
    (record,) = caplog.records
    told = f"{folder / 'latest'}: names no checkpoint that is there; step-000000005 is used"
    assert record.getMessage() == told


def test_a_run_whose_checkpoints_are_gone_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    folder = write_checkpoints(tmp_path, 3)
    (folder / "latest").write_text("step-000000003\n")
    (folder / "step-000000003" / "state.json").unlink()
    with pytest.raises(UserError, match=r"latest: names a checkpoint, and there is none"):
        latest_checkpoint(tmp_path)


def test_where_best_names_nothing_the_lowest_loss_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_checkpoints(tmp_path, 3, 5, 9, 11, s3=1.5, s5=1.25, s9=1.375)
    (folder / "step-000000011" / "state.json").write_bytes(b"\x00")
    with pytest.raises(UserError, match="has no best checkpoint"):
        require_checkpoint(tmp_path, "best")
    (folder / "best").write_text("step-000000007")
    assert require_checkpoint(tmp_path, "best") == folder / "step-000000005"
    assert "best: names no checkpoint that is there; step-000000005" in caplog.text


def test_the_best_is_of_the_newest_samples(tmp_path: Path) -> None:
    folder = write_checkpoints(tmp_path, 3, 5, 9, 11)
    for step, since, loss in ((3, 0, 1.0), (5, 4, 3.0), (9, 4, 2.0), (11, 4, 2.5)):
        state = {"validation_loss": loss, "comparable_since": since}
        (folder / f"step-{step:09d}" / "state.json").write_text(json.dumps(state))
    (folder / "best").write_text("gone")
    assert require_checkpoint(tmp_path, "best") == folder / "step-000000009"


def test_a_checkpoint_may_be_given_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoints(tmp_path, 3, 40, 50)
    for given in (folder / "step-000000040", folder / "step-40"):
        assert require_checkpoint(given) == folder / "step-000000040"
        assert run_folder(given) == tmp_path
    assert run_folder(tmp_path) == tmp_path
    monkeypatch.chdir(folder / "step-000000003")
    assert require_checkpoint(".") == folder / "step-000000003"
    with pytest.raises(UserError, match=r"step-41: is not there; the run has step-000000050, step"):
        require_checkpoint(folder / "step-41")
    with pytest.raises(UserError, match="is one checkpoint; give the run's folder for its best"):
        require_checkpoint(folder / "step-40", "best")
