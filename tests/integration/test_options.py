"""The shipped DeepSpeed configurations and the options of a run, on two real ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_bert.checkpoint.run_dir import latest_checkpoint
from dist_bert.inference.trained_run import read_weights
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import BIN, ROOT, launcher, run_script

pytestmark = pytest.mark.trains

Steps = list[list[float]]  # loss and gradient norm
# Losses of 4 steps relative to plain data parallelism in float32 (seen: 1e-7, 3e-5, 2e-3). Float32
# differs by the order of its sums alone; bf16 keeps 8 bits of every weight and activation, and at
# ZeRO 0 DeepSpeed counts one step too many for Adam's bias correction.
TOLERANCES = {"fp32": 2e-6, "bf16": 4e-4, "fp16": 1e-3}
SHIPPED = sorted(path.stem for path in (ROOT / "configs").glob("zero*.json"))
ON_CPU = [name for name in SHIPPED if "fp16" not in name]


def shipped(name: str) -> dict[str, Any]:
    """A shipped configuration with a batch that the small data set has, and a lr that shows."""
    values: dict[str, Any] = json.loads((ROOT / f"configs/{name}.json").read_text())
    values["optimizer"]["params"]["lr"] = 2e-3
    return values | {"train_batch_size": 24, "train_micro_batch_size_per_gpu": 6}


def case(deepspeed: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"deepspeed": deepspeed, "dropout": 0.0, "activation_checkpointing": False, **changes}


def in_float32(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ("bf16", "fp16")}


def all_partitioned(stage: int) -> dict[str, Any]:
    """In float32, and every parameter of this small model as those of a large one are at ZeRO 3."""
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    return in_float32(shipped("zero0")) | {"zero_optimization": zero}


def train(
    folder: Path, data_set: Path, cases: dict[str, Any], *launched_by: str | Path
) -> dict[str, Steps]:
    (folder / "cases.json").write_text(json.dumps(cases))
    ended = run_script(
        *launched_by, "tests/integration/options_worker.py", "--shards", data_set,
        "--cases", folder / "cases.json", "--results", folder / "results.json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results: dict[str, Steps] = json.loads((folder / "results.json").read_text())
    return results


@pytest.fixture(scope="module")
def results(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Steps]:
    """All cases, in two processes that are started once."""
    cases = {"plain": case(in_float32(shipped("zero0")))}
    for name in ON_CPU:
        cases[name] = case(shipped(name))
        cases[f"{name} fp32"] = case(in_float32(shipped(name)))
    for stage in range(4):
        for on in (False, True):
            cases[f"checkpointing {stage} {on}"] = case(
                all_partitioned(stage), dropout=0.1, activation_checkpointing=on
            )
    return train(tmp_path_factory.mktemp("options"), data_set, cases, *launcher(2))


def assert_close(found: Steps, expected: Steps, kind: str) -> None:
    assert expected[-1][0] < expected[0][0] - 0.05, "it learns, so that a wrong update would show"
    losses, norms = ([step[i] for step in found] for i in (0, 1))
    assert losses == pytest.approx([loss for loss, _ in expected], rel=TOLERANCES[kind])
    norm_tolerance = 1e-5 if kind == "fp32" else 2e-2  # seen: 5e-7, 9e-3
    assert norms == pytest.approx([norm for _, norm in expected], rel=norm_tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ON_CPU, *(f"{name} fp32" for name in ON_CPU)])
def test_a_shipped_configuration_trains_as_plain_float32_does(
    results: dict[str, Steps], name: str
) -> None:
    kind = "fp32" if name.endswith("fp32") else "bf16"
    assert_close(results[name], results["plain"], kind)


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_activation_checkpointing_changes_no_bit(results: dict[str, Steps], stage: int) -> None:
    """Losses and gradient norms, with dropout: the layers' second pass draws the same masks."""
    with_it, without = (results[f"checkpointing {stage} {on}"] for on in (True, False))
    assert with_it == without
    assert without[0] != results["plain"][0], "dropout is on"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp16_trains_as_float32_does(data_set: Path, tmp_path: Path) -> None:
    """With a loss scale that starts low enough for the first step to count."""
    half = shipped("zero2_fp16")
    half["fp16"]["initial_scale_power"] = 8
    cases = {"plain": case(in_float32(shipped("zero0"))), "fp16": case(half)}
    results = train(tmp_path, data_set, cases, "env", "DS_ACCELERATOR=cuda", *launcher(1))
    assert_close(results["fp16"], results["plain"], "fp16")


MODEL = {
    "vocab_size": 701,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 53,
}


def write_flags(folder: Path, deepspeed: dict[str, Any], **run: Any) -> list[str | Path]:
    values = {
        "deepspeed_config": deepspeed,
        "model": MODEL,
        "config": {"warmup_steps": 0, "validation_samples": 17, **run},
    }
    for name, value in values.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return [part for name in values for part in (f"--{name}", folder / f"{name}.json")]


def train_losses(run_dir: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run_dir) if "train/loss" in row]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
def test_fp16_without_a_gpu_is_refused_in_one_line(data_set: Path, tmp_path: Path) -> None:
    flags = write_flags(tmp_path, shipped("zero2_fp16"), num_train_steps=2)
    ended = run_script(
        BIN / "python", "launch/pretrain.py", *flags, "--shards", data_set,
        "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert ended.returncode == 2
    (error,) = [line for line in ended.stderr.splitlines() if "error: " in line]
    assert "fp16 is enabled, which needs a GPU, and there is none here; use bf16" in error
    assert not (tmp_path / "run").exists() and "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_second_phase_starts_from_the_first(data_set: Path, tmp_path: Path) -> None:
    """Longer positions, other ranks, precision, ZeRO and offload; then resumed from itself."""
    first, second = tmp_path / "first", tmp_path / "second"
    script: list[str | Path] = ["launch/pretrain.py", "--shards", data_set]
    flags = write_flags(tmp_path, shipped("zero0"), num_train_steps=12)
    ended = run_script(BIN / "python", *script, *flags, "--output_dir", first)
    assert ended.returncode == 0, ended.stdout + ended.stderr

    (tmp_path / "2").mkdir()
    deepspeed = in_float32(shipped("zero3_offload"))
    deepspeed["optimizer"]["params"]["lr"] = 1e-9  # so that the weights of step 1 stay to be seen
    flags = write_flags(tmp_path / "2", deepspeed, num_train_steps=2)
    flags += ["--max_position_embeddings", "97", "--output_dir", second]
    mistakes: tuple[tuple[list[str | Path], str], ...] = (
        (["--init_from", first], "is above the weights' 53: set --extend_positions true"),
        (["--init_from", tmp_path], "holds neither checkpoints/ of a run nor model.safetensors"),
    )
    for mistake, message in mistakes:
        ended = run_script(BIN / "python", *script, *flags, *mistake, "--dry_run")
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1
        assert message in ended.stderr
    flags += ["--activation_checkpointing", "true"]
    from_first: list[str | Path] = ["--init_from", first, "--extend_positions", "true"]
    ended = run_script(*launcher(2), *script, *flags, *from_first)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (
        f"weights from {first} at step-000000012; positions repeated from 53 to 97" in ended.stdout
    )
    assert "starting from step 0 of 2" in ended.stdout
    assert train_losses(second)[0] < train_losses(first)[0] - 0.05, "on the same first batch"
    checkpoints = latest_checkpoint(first), latest_checkpoint(second)
    assert checkpoints[0] is not None and checkpoints[1] is not None
    before, after = (read_weights(path) for path in checkpoints if path)
    positions = "encoder.position_embeddings.weight"
    before[positions] = before[positions].repeat(2, 1)[:97]
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-7, msg=name)

    ended = run_script(
        *launcher(2), *script, *flags, "--init_from", tmp_path / "gone", "--num_train_steps", "3"
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resumed at step 2 of 3" in ended.stdout and "weights from" not in ended.stdout
    assert len(train_losses(second)) == 3


def test_an_engine_starts_without_torchs_compiler() -> None:
    """Which takes seconds to import; ZeRO knows its optimizer all the same.

    The program is told of a GPU: in float32, its products are TF32.
    """
    program = (
        "import sys, torch\n"
        "from dist_bert.common import device\n"
        "from dist_bert.training.deepspeed_config import DeepSpeedConfig\n"
        "from dist_bert.training.engine import build_engine\n"
        "from dist_bert.distributed import process_group\n"
        "from dist_bert.model.bert import BertForPreTraining\n"
        "from tests.support.synthetic import TINY_MODEL\n"
        "process_group.start_distributed()\n"
        "params = {'lr': 1e-3, 'torch_adam': True}\n"
        "values = {'train_batch_size': 3, 'train_micro_batch_size_per_gpu': 3,\n"
        "  'optimizer': {'type': 'AdamW', 'params': params}, 'zero_optimization': {'stage': 2}}\n"
        "config = DeepSpeedConfig.from_values(values, 'case', 1)\n"
        "device.has_gpu = lambda: True\n"
        "build_engine(BertForPreTraining(TINY_MODEL), config)\n"
        "print(torch.get_float32_matmul_precision())\n"
        "print('compiler' if 'torch._inductor.compile_fx' in sys.modules else 'no compiler')\n"
        "process_group.leave_distributed()\n"
    )
    ended = run_script(BIN / "python", "-c", program)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-2:] == ["high", "no compiler"]
