"""The code that a run was started from: commit and changes of a git checkout, or none."""

import re
from pathlib import Path

import pytest

from dist_bert.common import code_version as code_version_module
from dist_bert.common.code_version import code_fingerprint, code_version, commit_of
from tests.support.processes import run_script


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *names, *arguments]
    made = run_script(*command)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


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
    assert commit_of(tmp_path / "code") == commit
    (tmp_path / "code/model.py").write_text("width = 36\n")
    (tmp_path / "code/new.py").write_text("")
    found, changes = code_version(tmp_path / "code")
    assert found == commit
    for part in (" M model.py\n?? new.py\n", "-width = 24\n+width = 36\n"):
        assert part in changes


def test_without_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert code_version(tmp_path) == (None, "") and commit_of(tmp_path) is None
    make_checkout(tmp_path / "other")
    (tmp_path / "other/site-packages").mkdir()
    assert code_version(tmp_path / "other/site-packages") == (None, "")
    assert commit_of(tmp_path / "other/site-packages") is None
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    assert code_version(tmp_path / "empty") == (None, "")  # nothing is committed


def test_large_changes_are_cut(tmp_path: Path) -> None:
    make_checkout(tmp_path / "code")
    (tmp_path / "code/model.py").write_text("line\n" * 20_000)
    _, changes = code_version(tmp_path / "code")
    assert code_version_module._MAX_DIFF < len(changes) < code_version_module._MAX_DIFF + 100
    assert changes.endswith(" characters more\n")


def test_the_fingerprint_tells_changed_sources_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_version_module, "__file__", str(tmp_path / "code_version.py"))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/model.py").write_text("width = 24\n")
    found = [code_fingerprint(), code_fingerprint()]
    (tmp_path / "notes.txt").write_text("of no importance")
    found.append(code_fingerprint())
    assert len(set(found)) == 1 and re.fullmatch("[0-9a-f]{12}", found[0])
    (tmp_path / "tasks/model.py").write_text("width = 36\n")
    found.append(code_fingerprint())
    (tmp_path / "tasks/model.py").rename(tmp_path / "model.py")
    found.append(code_fingerprint())
    assert len(set(found)) == 3
