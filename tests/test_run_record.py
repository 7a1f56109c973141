"""The code that a run was started from: commit and changes of a git checkout, or none."""

import subprocess
from pathlib import Path

from dist_bert import run_record
from dist_bert.run_record import code_version


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *names, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def make_checkout(folder: Path) -> str:
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "model.py").write_text("width = 24\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


def test_commit_and_changes_of_a_checkout(tmp_path: Path) -> None:
    commit = make_checkout(tmp_path / "code")
    assert code_version(tmp_path / "code") == (commit, "")
    (tmp_path / "code/model.py").write_text("width = 36\n")
    (tmp_path / "code/new.py").write_text("")
    found, changes = code_version(tmp_path / "code")
    assert found == commit
    for part in (" M model.py\n?? new.py\n", "-width = 24\n+width = 36\n"):
        assert part in changes


def test_without_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert code_version(tmp_path) == (None, "")
    make_checkout(tmp_path / "other")
    (tmp_path / "other/site-packages").mkdir()
    assert code_version(tmp_path / "other/site-packages") == (None, "")
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    assert code_version(tmp_path / "empty") == (None, "")  # nothing is committed


def test_large_changes_are_cut(tmp_path: Path) -> None:
    make_checkout(tmp_path / "code")
    (tmp_path / "code/model.py").write_text("line\n" * 20_000)
    _, changes = code_version(tmp_path / "code")
    assert run_record._MAX_DIFF < len(changes) < run_record._MAX_DIFF + 100
    assert changes.endswith(" characters more\n")
