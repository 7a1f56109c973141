"""A release of DeepSpeed that computes wrong gradients trains nowhere."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from dist_bert.tools.doctor import doctor
from dist_bert.tools.doctor.findings import works
from dist_bert.training.deepspeed_release import fault_of, require_sound_release

ROOT = Path(__file__).parents[3]
WRONG = ("0.17.6", "0.18.0", "0.18.1", "0.18.2", "0.18.2+cu128", "0.18.1.dev0")
SOUND = ("0.17.5", "0.18.3", "0.18.10", "0.19.8", "1.0.0", "", "unknown")


def test_which_are_wrong() -> None:
    assert all("issue 7718" in fault_of(version) for version in WRONG)
    assert not any(fault_of(version) for version in SOUND)


def test_setup_takes_none_of_them() -> None:
    found = re.search(r'"deepspeed(.+?)"', (ROOT / "setup.py").read_text())
    assert found
    allowed = SpecifierSet(found[1])
    assert not any(allowed.contains(version) for version in WRONG if "+" not in version)
    assert allowed.contains(importlib.metadata.version("deepspeed"))


def test_one_that_is_not_installed_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    require_sound_release()
    monkeypatch.setattr(importlib.metadata, "version", none)
    require_sound_release()


def test_the_doctor_finds_it_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: "0.18.2")
    findings = {finding.name: finding for finding in doctor._versions()}
    assert findings["deepspeed"].is_fatal and "issue 7718" in findings["deepspeed"].problem
    assert findings["deepspeed"].remedy.startswith("pip install -c constraints.txt")
    assert not findings["torch"].problem and not works(list(findings.values()))
    monkeypatch.setattr(doctor, "_version", lambda package: "0.19.8")
    assert works(list(doctor._versions()))


@pytest.mark.parametrize("script", ["pretrain", "finetune", "benchmark"])
def test_a_training_refuses_it_at_once(script: str, tmp_path: Path) -> None:
    """Before torch is imported: there is none on this path that could be."""
    (tmp_path / "deepspeed-0.18.2.dist-info").mkdir()
    (tmp_path / "deepspeed-0.18.2.dist-info/METADATA").write_text(
        "Name: deepspeed\nVersion: 0.18.2\n"
    )
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    arguments = {
        "pretrain": [],
        "finetune": ["--task", "sentence_classification", "--checkpoint", "x", "--train", "y"],
        "benchmark": ["train", "--shards", "x"],
    }[script]
    ended = subprocess.run(
        [sys.executable, ROOT / f"launch/{script}.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert "deepspeed 0.18.2 computes wrong gradients at ZeRO-2" in ended.stderr
