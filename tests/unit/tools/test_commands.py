"""The commands of quickstart and speed run: found from any folder, as in a wheel."""

from pathlib import Path

import pytest

from dist_bert.common.errors import UserError
from dist_bert.tools.commands import call


def test_scripts_are_found_from_anywhere_but_own_ones_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    call("python launch/save_weights.py --help")
    assert "usage: save_weights.py" in capsys.readouterr().out
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/save_weights.py").write_text("raise SystemExit(7)")
    with pytest.raises(UserError, match="ended with exit code 7: python launch"):
        call("python launch/save_weights.py --help")
