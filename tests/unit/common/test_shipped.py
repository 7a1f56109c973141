"""What comes with the package: scripts by name, configurations, in a checkout and in a wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dist_bert import __version__
from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json
from dist_bert.common.shipped import found, shipped
from dist_bert.pretraining.recipe import resolve_run

ROOT = Path(__file__).parents[3]
NAMES = sorted(path.stem for path in (ROOT / "launch").glob("*.py"))


def run_command(*arguments: str | Path, cwd: Path, path: Path = ROOT) -> tuple[int, str, str]:
    made = subprocess.run(
        [sys.executable, "-m", "dist_bert", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return made.returncode, made.stdout, made.stderr


def test_every_script_is_a_command(tmp_path: Path) -> None:
    code, told, _ = run_command(cwd=tmp_path)
    assert code == 0 and told == run_command("--help", cwd=tmp_path)[1]
    lines = [line.split()[0] for line in told.splitlines() if line[:2] == "  " != line[2:4]]
    assert lines == sorted([*NAMES, "copy"])
    code, told, error = run_command("pretrain", "--help", cwd=tmp_path)
    assert code == 0 and told.startswith("usage: pretrain.py ") and "--lr LR" in told
    assert run_command("--local_rank=0", "pretrain", "--help", cwd=tmp_path) == (code, told, error)
    assert run_command("--version", cwd=tmp_path)[1] == f"{__version__}\n"
    code, _, error = run_command("pretraining", cwd=tmp_path)
    assert code == 2 and error.startswith("error: pretraining: is no command; known: baselines, ")
    assert error.count("\n") == 1


def test_configurations_are_found_from_anywhere_but_own_ones_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert found("configs/zero2.json") == ROOT / "configs" / "zero2.json"
    assert found("launch/plan.py") == ROOT / "launch" / "plan.py"
    assert read_json("configs/model/bert_tiny.json")["hidden_size"] == 128
    assert resolve_run(None, {"recipe": "configs/recipes/bert.json"})[1][0].steps == 900_000
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "zero2.json").write_text('{"own": 1}')
    assert read_json("configs/zero2.json") == {"own": 1}
    for missing in ("configs/none.json", "zero2.json"):
        with pytest.raises(UserError, match=f"{missing}: cannot be read"):
            read_json(missing)


def test_copies_are_whole_and_replace_nothing(tmp_path: Path) -> None:
    code, told, _ = run_command("copy", "new", cwd=tmp_path)
    assert (code, told) == (0, "new: has launch/ and configs/ now\n")
    for name in ("launch", "configs"):
        for path in (path for path in shipped(name).rglob("*") if path.is_file()):
            if "__pycache__" not in path.parts:
                copy = tmp_path / "new" / name / path.relative_to(shipped(name))
                assert copy.read_bytes() == path.read_bytes()
                assert copy.stat().st_mode == path.stat().st_mode
    code, _, error = run_command("copy", "new", cwd=tmp_path)
    assert (code, error) == (2, "error: new: has launch/ already; give another folder\n")


def test_a_wheel_has_scripts_and_configurations(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("dist_bert", "data_prep", "launch", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    made = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    names = {str(path.relative_to(installed)) for path in installed.rglob("*")}
    assert names >= {f"dist_bert/launch/{name}.py" for name in NAMES}
    assert "dist_bert/launch/slurm/pretrain.sbatch" in names
    assert "dist_bert/configs/model/bert_base.json" in names
    recipes = ("bert", "decay_on_better_data", "short_first", "small_budget")
    assert names >= {f"dist_bert/configs/recipes/{name}.json" for name in recipes}
    assert not any("__pycache__" in name for name in names)
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "dist-bert = dist_bert.__main__:main" in entry.read_text()
    code, told, error = run_command(
        "plan", "--gpus", "8", "--gpu", "H200", "--sequence_length", "128", "--dry_run",
        "--deepspeed_config", "configs/zero3.json", cwd=tmp_path, path=installed,
    )  # fmt: skip
    assert code == 0 and '"stage": 3' in told, error
