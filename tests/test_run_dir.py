"""The layout of a run's folder."""

from pathlib import Path

import pytest

from dist_bert.errors import UserError
from dist_bert.run_dir import latest_checkpoint


def test_latest_checkpoint_is_there_or_refused(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    folder = tmp_path / "checkpoints"
    for name in ("step-000000003", "step-000000005"):
        (folder / name).mkdir(parents=True)
        (folder / name / "state.json").write_text("{}")
    (folder / "latest").write_text("step-000000005\n")
    assert latest_checkpoint(tmp_path) == folder / "step-000000005"
    (folder / "latest").write_text("step-000000007\n")
    with pytest.raises(UserError, match=r"step-000000007, which is not there.*3, step-000000005\)"):
        latest_checkpoint(tmp_path)
