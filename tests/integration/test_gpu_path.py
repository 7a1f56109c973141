"""What runs on a GPU, from the engine to an export; and on the CPU, by a plain kernel.

Both take their attention to FlashAttention's operator, with dropout. Nothing of it has been
measured on a GPU.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from dist_bert.checkpoint.format import CheckpointReader
from dist_bert.checkpoint.run_dir import latest_checkpoint
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import BIN, TINY_MODEL, kill_when_printed, launcher, run_script
from tests.integration.test_pretrain import write_configs
from tests.support.devices import DEVICES, ON_GPU

pytestmark = [pytest.mark.trains, pytest.mark.slow]

RUN = {
    "num_train_steps": 7,
    "warmup_steps": 2,
    "checkpoint_interval": 3,
    "log_interval": 2,
    "validation_interval": 7,
    "validation_samples": 33,
}


def on(device: str) -> list[str | Path]:
    """How a process is started there."""
    return ["env", f"DS_ACCELERATOR={device}"]


@pytest.fixture(scope="module", params=DEVICES)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Losses and waits by case, from one process."""
    path = tmp_path_factory.mktemp("gpu_path") / "results.json"
    worker = "tests/integration/gpu_path_worker.py"
    ended = run_script(*on(request.param), *launcher(1), worker, path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["bert", "modern"])
def test_all_zero_stages_train_alike_compiled_or_not(results: Any, name: str) -> None:
    """In bf16, with dropout, in a micro-batch of 4,551 tokens; and the same again, bit for bit."""
    plain = results[f"{name}-0-False"]["losses"]
    assert plain[-1] < plain[0] - 0.05, "it learns, so that a wrong update would show"
    own = [case for case in results if case.startswith(name)]
    assert len(own) == 7
    for case in own:
        # On a GPU, compiled layers draw other dropout masks.
        limit = 0.02 if case.endswith("True") else 2e-3
        assert results[case]["losses"] == pytest.approx(plain, rel=limit), case
    assert results["again"]["losses"] == results["bert-0-False"]["losses"]


def test_an_update_hardly_waits_for_the_device(results: Any) -> None:
    """Counted on a GPU by torch.cuda.set_sync_debug_mode, on the CPU by what the host reads."""
    for case, found in results.items():
        assert "-3-" in case or found["waits"] <= 4, case


@pytest.mark.parametrize(
    ("device", "is_compiled"),
    [
        ("cpu", False),
        pytest.param("cuda", False, marks=ON_GPU),
        pytest.param("cuda", True, marks=ON_GPU),
    ],
)
def test_a_deterministic_run_is_killed_resumed_and_exported(
    data_set: Path, tmp_path: Path, device: str, is_compiled: bool
) -> None:
    """Bit for bit what a run is that never stopped; on the CPU, of one without the setting."""
    flags = [*write_configs(tmp_path, stage=2, precision="bf16"), "--shards", data_set]
    (tmp_path / "model.json").write_text(json.dumps(TINY_MODEL))  # dropout 0.1, heads of 16
    (tmp_path / "config.json").write_text(json.dumps(RUN | {"compile_layers": is_compiled}))
    script = "launch/pretrain.py" if device == "cuda" else "tests/integration/flash_pretrain.py"
    deterministic = ["--deterministic", "true"]

    def command(output_dir: Path, *more: str) -> list[str | Path]:
        return [*on(device), *launcher(1), script, *flags, *more, "--output_dir", output_dir]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ended = run_script(*command(whole, *(deterministic if device == "cuda" else [])))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    if device == "cpu":
        assert "'dropout_p': 0.1, 'window': (-1, -1)}" in ended.stdout
    kill_when_printed("saved step 3 ", *command(broken, *deterministic))
    ended = run_script(*command(broken, *deterministic))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resumed at step 3 of 7" in ended.stdout
    weights = []
    for folder in (whole, broken):
        checkpoint = latest_checkpoint(folder)
        assert checkpoint is not None and checkpoint.name == "step-000000007"
        weights.append(CheckpointReader(checkpoint).weights())
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    losses = [
        [row["train/loss"] for row in read_metrics(folder) if "train/loss" in row]
        for folder in (whole, broken)
    ]
    assert losses[0] == losses[1] and len(set(losses[0])) == 7
    ended = run_script(
        *on(device), BIN / "python", "launch/export_model.py", "--checkpoint", broken,
        "--output_dir", tmp_path / "exported",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "exported/model.safetensors").exists()


@pytest.mark.parametrize("device", DEVICES)
def test_micro_batches_of_as_many_tokens_as_fit_train_as_those_of_samples(
    data_set: Path, tmp_path: Path, device: str
) -> None:
    """All of a step at once, 36 x 53 tokens, where the other run has nine micro-steps."""
    flags = [*write_configs(tmp_path, stage=2, precision="bf16"), "--shards", data_set]
    (tmp_path / "config.json").write_text(json.dumps(RUN | {"log_interval": 1}))
    without_dropout = ["--hidden_dropout_prob", "0", "--attention_probs_dropout_prob", "0"]
    losses = []
    for size in ("auto", "4"):
        ended = run_script(
            *on(device), *launcher(1), "launch/pretrain.py", *flags, *without_dropout,
            "--train_micro_batch_size_per_gpu", size, "--output_dir", tmp_path / size,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ("micro_batch_tokens auto: 1,908 tokens (planned" in ended.stdout) == (
            size == "auto"
        )
        rows = read_metrics(tmp_path / size)
        losses.append([row["train/loss"] for row in rows if "train/loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3) and len(losses[0]) == 7
    assert losses[0][-1] < losses[0][0]


def test_deterministic_and_another_cublas_workspace_are_refused_in_a_line(
    data_set: Path, tmp_path: Path
) -> None:
    flags = [*write_configs(tmp_path, stage=2, precision="bf16"), "--shards", data_set]
    ended = run_script(
        "env", "CUBLAS_WORKSPACE_CONFIG=:4096:2", *launcher(1), "launch/pretrain.py", *flags,
        "--deterministic", "true", "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert ended.returncode != 0 and "Traceback" not in ended.stderr
    (error,) = [line for line in ended.stderr.splitlines() if "error: " in line]
    assert "deterministic = True: CUBLAS_WORKSPACE_CONFIG = :4096:2" in error
    assert not (tmp_path / "run").exists()
