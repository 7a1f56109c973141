"""`launch/pretrain.py --check`: finds problems of every kind, all at once, and touches nothing."""

import importlib.metadata
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import BIN, files_of, launcher, run_script, small_disk
from tests.integration.test_pretrain import write_configs

# As if the second rank's host had another torch.
ANOTHER_TORCH = """
import os, runpy
from dist_bert.training import rank_reports
facts = rank_reports.facts
if os.environ["RANK"] == "1":
    rank_reports.facts = lambda: {**facts(), "host": "node2", "torch": "2.12.0"}
runpy.run_path("launch/pretrain.py", run_name="__main__")
"""


def check(
    folder: Path,
    shards: Path,
    *flags: str | Path,
    ranks: int = 0,
    script: str | Path = "launch/pretrain.py",
    **changes: Any,
) -> subprocess.CompletedProcess[str]:
    """Runs the check, under the launcher if a number of ranks is given."""
    folder.mkdir(exist_ok=True)
    configs = write_configs(folder, stage=1, precision="fp32", **changes)
    start = launcher(ranks) if ranks else [BIN / "python"]
    return run_script(*start, script, *configs, "--shards", shards, "--check", *flags)


def errors(ended: subprocess.CompletedProcess[str]) -> list[str]:
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stdout + ended.stderr
    found = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert f"problems found: {len(found)}\n" in ended.stdout
    return found


@pytest.fixture(scope="module")
def unfinished(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 3 steps, beside its three configurations."""
    folder = tmp_path_factory.mktemp("unfinished")
    configs = write_configs(folder, stage=1, precision="fp32")
    ended = run_script(
        BIN / "python", "launch/pretrain.py", *configs, "--shards", data_set,
        "--output_dir", folder / "run", "--num_train_steps", "3",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return folder / "run"


def test_a_good_run_passes_on_two_ranks_and_stays_as_it_is(
    unfinished: Path, data_set: Path, tmp_path: Path
) -> None:
    before = files_of(unfinished.parent)
    times = {path: path.stat().st_mtime_ns for path in unfinished.rglob("*") if path.is_file()}
    ended = check(tmp_path / "c", data_set, "--output_dir", unfinished, ranks=2)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for part in (
        "checked  versions and code of all nodes (1)\n",
        f"checked  {unfinished}/checkpoints/step-000000003\n",
        "checked  2 steps after step 3: losses ",
        "loaded and compared bit for bit\n",
        "for 11 steps, 1 validations and 3 checkpoints\n",
        "problems found: none\n",
    ):
        assert part in ended.stdout, ended.stdout
    assert "error" not in ended.stderr
    assert files_of(unfinished.parent) == before
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert not list(unfinished.parent.rglob("*.check*"))


def test_a_new_run_leaves_no_folder_and_all_that_goes_wrong_in_training_is_told(
    data_set: Path, tmp_path: Path
) -> None:
    optimizer = {"type": "AdamW", "params": {"lr": 1e30, "torch_adam": True}}
    with small_disk(tmp_path / "disk", "3m"):
        output = tmp_path / "disk/runs/one"
        flags: list[str | Path] = ["--output_dir", output, "--warmup_steps", "0"]
        found = errors(check(tmp_path / "c", data_set, *flags, optimizer=optimizer))
        assert not list((tmp_path / "disk").iterdir())
    assert [line.split(":")[1] for line in found] == [
        " step 2",
        " validation",
        " --output_dir " + str(output),
    ]
    assert "step 2: loss or gradient is not finite" in found[0]
    assert (
        "for checkpoints, 3.0 MiB available: free some space, or lower keep_checkpoints" in found[2]
    )


def test_problems_of_all_configurations_and_shards_come_at_once(
    data_set: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(data_set, shards)
    first, second, third, *_ = sorted(shards.glob("train-*.tar"))
    damage(first, at=2_000)
    os.truncate(second, second.stat().st_size - 1)
    third.unlink()
    (shards / "tokenizer.model").write_bytes(b"another one")
    found = errors(
        check(
            tmp_path / "c", shards, "--output_dir", tmp_path / "run", "--vocab_size", "700",
            "--hidden_size", "49", "--num_train_steps", "2", optimizer={"type": "Lion"},
        )
    )  # fmt: skip
    expected = [
        "warmup_steps = 3 is above num_train_steps = 2",
        "hidden_size = 49 is not divisible",
        "optimizer type Lion",
    ]
    for line, part in zip(found, expected, strict=True):
        assert part in line
    ended = check(tmp_path / "c", shards, "--output_dir", tmp_path / "run", "--vocab_size", "700")
    found = errors(ended)
    expected = [
        "vocab_size = 700 is smaller than the tokenizer's 701",
        f"{first}: block 0 is damaged",
        f"{second}: has {second.stat().st_size} bytes",
        f"{third}: is missing",
    ]
    assert "tokenizer.model is not the tokenizer that made the shards" in found[0]
    for line, part in zip(found, expected, strict=True):
        assert part in line
    assert "left out steps" in ended.stdout and not (tmp_path / "run").exists()


def test_a_checkpoint_that_does_not_fit_and_a_section_that_deepspeed_refuses(
    unfinished: Path, data_set: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(unfinished, run_dir)
    checkpoint = run_dir / "checkpoints/step-000000003"
    damage(checkpoint / "fragments-00000.safetensors", at=20_000)
    before = files_of(run_dir)
    found = errors(
        check(
            tmp_path / "c", data_set, "--output_dir", run_dir, "--seed", "7",
            zero_optimization={"stage": 1, "typo": 1},
        )
    )  # fmt: skip
    expected = [
        f"{checkpoint}: is damaged (fragments-00000.safetensors has changed",
        "cannot resume: seed is 7, the checkpoint has 42",
        "DeepSpeed configuration: ",
    ]
    for line, part in zip(found, expected, strict=True):
        assert part in line
    assert files_of(run_dir) == before


def test_too_few_samples_for_the_ranks_and_nodes_that_differ(
    data_set: Path, tmp_path: Path
) -> None:
    script = tmp_path / "another_torch.py"
    script.write_text(ANOTHER_TORCH)
    flags: list[str | Path] = ["--output_dir", tmp_path / "run", "--validation_samples", "1"]
    differing, line = errors(check(tmp_path / "c", data_set, *flags, ranks=2, script=script))
    version = importlib.metadata.version("torch")
    assert differing == f"error: nodes differ: node2: torch 2.12.0, others {version}"
    assert "validation has 1 samples for 2 ranks" in line


def damage(path: Path, at: int) -> None:
    """Changes one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_the_configuration_is_shown_first(unfinished: Path, data_set: Path, tmp_path: Path) -> None:
    ended = check(tmp_path / "c", data_set, "--output_dir", unfinished, "--num_train_steps", "3")
    assert ended.returncode == 0, ended.stderr
    resolved, end = json.JSONDecoder().raw_decode(ended.stdout)
    assert resolved["run"]["output_dir"] == str(unfinished) and resolved["world_size"] == 1
    assert "checked  no step: all 3 are done\n" in ended.stdout[end:]
