"""The doctor on this machine, and on one that lacks things: real processes, faked surroundings."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common import machine
from dist_bert.tools.doctor import doctor, trials
from dist_bert.tools.doctor.doctor import examine
from dist_bert.tools.doctor.findings import Finding, report, works
from tests.integration.conftest import BIN, ROOT, run_script, small_disk
from tests.support.processes import LIMIT_SECONDS

FINE = Finding("limits", "memory", "8 GiB")
WARNING = Finding("limits", "open files", "3", problem="too few", remedy="ulimit")
FATAL = Finding("trials", "gloo", "failed", problem="no route", remedy="export", is_fatal=True)


# launch/doctor.py, whose trials may take as long as a slow or busy machine needs.
PATIENT = f"""
import runpy, sys
from dist_bert.tools.doctor import trials
trials.TIME_LIMIT_SECONDS = {LIMIT_SECONDS}
sys.argv[0] = {str(ROOT / "launch/doctor.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def diagnose(
    tmp_path: Path, **variables: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, Any]]]:
    """Runs the script; returns it and its findings by name."""
    figures = tmp_path / "doctor.json"
    environment = {**os.environ, "PATH": f"{BIN}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    ended = run_script(
        sys.executable, "-c", PATIENT,
        "--output_dir", tmp_path / "runs/new", "--json", figures,
        env={**environment, **variables}, cwd=tmp_path,
    )  # fmt: skip
    assert figures.exists(), ended.stderr
    told = json.loads(figures.read_text())
    assert told["works"] == (ended.returncode == 0)
    return ended, {finding["name"]: finding for finding in told["findings"]}


@pytest.mark.slow
def test_a_machine_on_which_all_works(tmp_path: Path) -> None:
    ended, findings = diagnose(tmp_path, TMPDIR=str(tmp_path))
    assert ended.returncode == 0, ended.stdout
    assert "preparing, training and resuming will work here" in ended.stdout
    assert not any(finding["is_fatal"] for finding in findings.values())
    for name in ("torch", "MPI, 2 ranks", "gloo, 2 ranks", "deepspeed", "imports", "memory"):
        assert findings[name]["problem"] == "" and findings[name]["value"]
    assert "MPI" in findings["MPI, 2 ranks"]["value"]
    assert findings["TMPDIR"]["value"] == str(tmp_path)
    output = next(f for name, f in findings.items() if name.startswith("--output_dir"))
    assert output["value"].endswith(f"on the disk of {tmp_path}"), "the nearest one that is there"


@pytest.mark.slow
def test_many_faults_at_once_are_all_named(tmp_path: Path) -> None:
    """No mpiexec, a package that does not load, a full disk, a wrong interface, a stale rank."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "deepspeed").symlink_to(BIN / "deepspeed")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sentencepiece.py").write_text("raise ImportError('libfoo.so is missing')\n")
    with small_disk(tmp_path / "small", "1m"):
        ended, findings = diagnose(
            tmp_path,
            PATH=str(tools),
            PYTHONPATH=f"{modules}{os.pathsep}{ROOT}",
            TMPDIR=str(tmp_path / "small"),
            GLOO_SOCKET_IFNAME="nowhere0",
            WORLD_SIZE="4",
            MPI4PY_MPIABI="",
            SLURM_JWT="not to be shown",
        )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    mpi = findings["MPI, 2 ranks"]
    assert mpi["is_fatal"] and mpi["problem"] == "the command mpiexec is not on PATH"
    assert "activate" in mpi["remedy"]
    assert findings["imports"]["is_fatal"]
    assert "sentencepiece: ImportError: libfoo.so is missing" in findings["imports"]["problem"]
    assert "less than 2 GiB" in findings["temporary files"]["problem"]
    assert not findings["temporary files"]["is_fatal"]
    assert "no such network interface" in findings["GLOO_SOCKET_IFNAME"]["problem"]
    assert findings["gloo, 2 ranks"]["is_fatal"], "gloo takes the interface at its word"
    for name in ("WORLD_SIZE", "MPI4PY_MPIABI"):
        assert findings[name]["remedy"] == f"unset {name}"
    assert "SLURM_JWT" not in findings and "not to be shown" not in ended.stdout
    assert findings["c++"]["value"].startswith("not found; needed only by")
    fatal = [line for line in ended.stdout.splitlines() if line.startswith("does not work: ")]
    assert len(fatal) == 3 and "will work here" not in ended.stdout


def test_a_check_that_fails_is_a_finding_and_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> Iterator[Finding]:
        yield FINE
        raise OSError("no /proc here")

    monkeypatch.setattr(doctor, "_limits", broken)
    monkeypatch.setattr(doctor, "_TRIALS", {"nothing": lambda: ("seen", "", "")})
    findings = examine(str(tmp_path))
    assert FINE in findings and works(findings)
    (failed,) = [f for f in findings if f.section == "checks that failed"]
    assert failed.value == "OSError: no /proc here" and failed.problem
    assert {f.section for f in findings} >= {"versions", "devices", "disks", "tools", "trials"}


def test_the_report_ends_with_what_does_not_work() -> None:
    text = report([FINE, WARNING, FATAL])
    assert text.splitlines() == [
        "limits",
        "    memory      8 GiB",
        " !  open files  3",
        "trials",
        " !! gloo        failed",
        "",
        "does not work: gloo: no route",
        "    remedy: export",
        "warning: open files: too few",
        "    remedy: ulimit",
    ]
    assert report([FINE, WARNING]).endswith("will work here, but for the warnings")
    assert report([FINE]).endswith(
        "no problem found: preparing, training and resuming will work here"
    )


@pytest.mark.parametrize(
    "program,problem",
    [
        ("raise ValueError('why')", "ValueError: why"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("import sys; sys.exit(3)", "ended with exit code 3"),
        ("import time; time.sleep(1_000_000)", "no answer within 1 s"),
    ],
)
def test_a_trial_may_fail_crash_or_hang(
    program: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 1.0 if "within" in problem else LIMIT_SECONDS
    monkeypatch.setattr(trials, "TIME_LIMIT_SECONDS", seconds)
    _, answer = trials._answer([sys.executable, "-c", program])
    assert answer == problem
    (finding,) = doctor._trial("program", lambda: ("failed", str(answer), "install it"))
    assert finding.is_fatal and finding.remedy.endswith("install it")
    assert ("less busy" in finding.remedy) == ("within" in problem)


def test_an_mpiexec_of_another_library_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank is then a world of its own, and nothing fails by itself."""
    (tmp_path / "mpiexec").write_text(f'#!/bin/sh\nshift 2\nexec "{BIN}/mpiexec" -n 1 "$@"\n')
    (tmp_path / "mpiexec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    seen, problem, remedy = trials.try_mpi()
    assert seen.startswith(f"{tmp_path}/mpiexec") and "MPICH" in seen.upper()
    assert problem.startswith("two ranks found 1: ") and "PATH" in remedy


def test_limits_of_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.cgroup_memory_bytes() is None and machine.cgroup_cores() is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cgroup_memory_bytes() is None and machine.cgroup_cores() is None
    (tmp_path / "memory.max").write_text("3221225472\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.cgroup_memory_bytes() == 3 << 30 and machine.cgroup_cores() == 1.5
    findings = {finding.name: finding for finding in doctor._limits()}
    assert "3.0 GiB are less" in findings["memory"].problem


def test_limits_of_older_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    for folder in ("memory", "cpu"):
        (tmp_path / folder).mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert machine.cgroup_memory_bytes() is None and machine.cgroup_cores() is None
    (tmp_path / "memory/memory.limit_in_bytes").write_text("2147483648\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    assert machine.cgroup_memory_bytes() == 2 << 30 and machine.cgroup_cores() == 0.5


@pytest.mark.parametrize(
    ("answer", "seen", "problem"),
    [
        (
            {"fp32": 1e11, "bf16": 9e11, "converts": False},
            "0.1 TFLOP/s in float32, 0.9 in bf16,",
            "",
        ),
        ({"fp32": 1e11, "bf16": 1e9, "converts": True}, "0.001 in bf16 (emulated; runs use", ""),
        ({"fp32": 1e11, "bf16": 1e9, "converts": False}, "0.001 in bf16,", "100 times slower"),
        ("torch: no such module", "failed", "no such module"),
    ],
)
def test_slow_products_are_a_problem_only_where_runs_use_them(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, object] | str, seen: str, problem: str
) -> None:
    if isinstance(answer, dict):
        answer["device"] = "2 CPU threads"
    monkeypatch.setattr(trials, "_python", lambda program: (1.0, answer))
    value, found, remedy = trials.try_products()
    assert seen in value
    assert problem in found and bool(found) == bool(problem) == bool(remedy)
