"""Whole runs through `launch/`: trained, killed, resumed, evaluated, used; and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_bert.checkpoint.format import CheckpointReader
from dist_bert.checkpoint.run_dir import latest_checkpoint
from dist_bert.common.json_lines import read_rows
from dist_bert.data.reader import SampleReader
from dist_bert.data.shard_format import Manifest
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.micro_batches import from_padded
from dist_bert.tokenizer.tokenizer import MASK_ID
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import (
    BIN,
    MODERN_PARTS,
    ROOT,
    TINY_MODEL,
    deepspeed_launcher,
    environment,
    kill_when_printed,
    launcher,
    run_script,
)
from tests.unit.training.test_metrics import curves, rows_as_curves, texts

pytestmark = pytest.mark.trains

RUN = {
    "num_train_steps": 14,
    "warmup_steps": 3,
    "checkpoint_interval": 4,
    "log_interval": 3,
    "validation_interval": 7,
    "validation_samples": 33,
}
DEEPSPEED = {
    "train_batch_size": 36,
    "train_micro_batch_size_per_gpu": 6,
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": 2e-3, "weight_decay": 0.01, "torch_adam": True, "fused": True},
    },
    "gradient_clipping": 1.0,
}


def write_configs(folder: Path, stage: int, precision: str, **changes: Any) -> list[str | Path]:
    """Writes the three JSON files; returns the flags that name them."""
    values = {**DEEPSPEED, "zero_optimization": {"stage": stage}, **changes}
    if precision == "bf16":
        values["bf16"] = {"enabled": True}
    flags: list[str | Path] = []
    for flag, value in (("--model", TINY_MODEL), ("--config", RUN), ("--deepspeed_config", values)):
        path = folder / f"{flag[2:]}.json"
        path.write_text(json.dumps(value))
        flags += [flag, path]
    return flags


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision", "parts"),
    [
        (0, "fp32", {}),
        (0, "bf16", {}),
        (1, "fp32", {}),
        (2, "bf16", {}),
        (3, "bf16", {}),
        (2, "bf16", MODERN_PARTS),
        (3, "fp32", MODERN_PARTS),
    ],
    ids=lambda value: ("modern" if value else "bert") if isinstance(value, dict) else str(value),
)
def test_killed_and_resumed_equals_never_stopped(
    data_set: Path, tmp_path: Path, stage: int, precision: str, parts: dict[str, Any]
) -> None:
    flags = [*write_configs(tmp_path, stage, precision), "--shards", data_set]
    (tmp_path / "model.json").write_text(json.dumps(TINY_MODEL | parts))
    script: list[str | Path] = ["launch/pretrain.py", *flags]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ended = run_script(*launcher(2), *script, "--output_dir", whole)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    killed_with = deepspeed_launcher if stage == 2 else launcher
    output = kill_when_printed("saved step 4 ", *killed_with(2), *script, "--output_dir", broken)
    assert "starting from step 0" in output
    ended = run_script(*launcher(2), *script, "--output_dir", broken)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resumed at step 4 of 14" in ended.stdout

    losses = [
        [(row["step"], row["train/loss"], row["train/grad_norm"]) for row in rows]
        for rows in (
            [row for row in read_metrics(folder) if "train/loss" in row]
            for folder in (whole, broken)
        )
    ]
    assert losses[0] == losses[1]  # bit for bit: JSON keeps every digit of a float
    assert [step for step, *_ in losses[0]] == list(range(1, 15))
    assert len({loss for _, loss, _ in losses[0]}) == 14
    validations = [
        [row for row in read_metrics(folder) if "validation/loss" in row]
        for folder in (whole, broken)
    ]
    assert validations[0] == validations[1] and [r["step"] for r in validations[0]] == [7, 14]
    predictions = [read_rows(folder / "predictions.jsonl") for folder in (whole, broken)]
    assert predictions[0] == predictions[1] and len(predictions[0]) == 12
    assert [row["text"] for row in predictions[0][:6]] == [
        row["text"] for row in predictions[0][6:]
    ]
    assert_each_step_once(broken, starts_at=[0, 4])
    names = set(read_metrics(whole)[0])
    assert "ranks/worst_data_wait_fraction" in names
    assert ("ranks/slowest_share" in names) == (stage < 3), "forward passes hold collectives"
    weights = []
    for folder in (whole, broken):
        checkpoint = latest_checkpoint(folder)
        assert checkpoint is not None and checkpoint.name == "step-000000014"
        weights.append(CheckpointReader(checkpoint).weights())
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    kept = sorted(path.name for path in (broken / "checkpoints").glob("*step-*"))
    assert kept == ["step-000000012", "step-000000014"]


def assert_each_step_once(run_dir: Path, starts_at: list[int]) -> None:
    """TensorBoard and the files of a run tell the same, however often it was started."""
    shown = curves(run_dir)
    restarts = shown.pop("progress/restarts")
    assert restarts == {step + 1: number for number, step in enumerate(starts_at)}
    told = rows_as_curves(run_dir)
    assert shown.keys() == told.keys() and set(shown["train/loss"]) == set(range(1, 15))
    for name, curve in told.items():
        assert shown[name] == pytest.approx(curve, rel=1e-6)  # TensorBoard keeps float32
    starts = read_rows(run_dir / "starts.jsonl")
    assert all(start["changes"] == {} for start in starts)
    assert [start["step"] for start in starts] == starts_at
    told_texts = texts(run_dir)
    first_steps = {step + 1 for step in starts_at}
    assert all(
        told_texts[f"run/{name}"].keys() == first_steps for name in ("config", "starts", "code")
    )
    assert told_texts["predictions"].keys() == {7, 14}
    last = told_texts["run/starts"][starts_at[-1] + 1]
    assert last.count("\n") == len(starts_at) + 1 and starts[-1]["time"] in last
    resolved = json.loads((run_dir / "config.json").read_text())
    assert json.dumps(resolved, indent=2) in told_texts["run/config"][starts_at[-1] + 1]


@pytest.fixture(scope="module")
def trained(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one rank in float32, started without the launcher."""
    folder = tmp_path_factory.mktemp("trained")
    flags = write_configs(folder, stage=1, precision="fp32")
    ended = run_script(
        BIN / "python", "launch/pretrain.py", *flags, "--shards", data_set,
        "--output_dir", folder / "run", "--validation_samples", "0",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "run"


def test_contract_names(trained: Path) -> None:
    rows = read_metrics(trained)
    scores = {"loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"}
    expected = {"step", "progress/samples", "progress/tokens", "memory/peak_gib"}
    expected |= {f"train/{name}" for name in (*scores, "lr", "grad_norm", "skipped_steps")}
    expected |= {
        f"throughput/{name}"
        for name in (
            "tokens_per_second", "samples_per_second", "mfu", "data_wait_fraction", "step_seconds",
        )
    }  # fmt: skip
    assert set(rows[0]) == expected
    assert set(rows[-1]) == {"step", *(f"validation/{name}" for name in scores)}
    training = [row for row in rows if "train/loss" in row]
    assert [row["progress/samples"] for row in training] == [36 * step for step in range(1, 15)]
    assert [row["train/lr"] for row in training[:3]] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3])
    assert training[-1]["train/lr"] == 0.0


def test_evaluate_repeats_the_last_validation(
    trained: Path, data_set: Path, tmp_path: Path
) -> None:
    ended = run_script(
        BIN / "python", "launch/evaluate.py", "--checkpoint", trained, "--shards", data_set,
        "--json", tmp_path / "scores.json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    last = read_metrics(trained)[-1]
    for name in ("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"):
        assert scores[name] == pytest.approx(last[f"validation/{name}"], rel=1e-5)
    assert scores["step"] == 14 and f"{scores['mlm_loss']:.4f}" in ended.stdout


def test_fill_mask_answers(trained: Path) -> None:
    ended = run_script(
        BIN / "python", "launch/fill_mask.py", "--checkpoint", trained, "--json", "--top_k", "3",
        "The [MASK] lamp [MASK] the window.",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    answers = json.loads(ended.stdout)["answers"]
    assert [len(mask) for mask in answers] == [3, 3]
    for mask in answers:
        probabilities = [answer["probability"] for answer in mask]
        assert probabilities == sorted(probabilities, reverse=True) and probabilities[0] < 1


def test_the_answers_to_fixed_sentences_are_the_models(trained: Path, data_set: Path) -> None:
    """Those of the last step, by another way: from the checkpoint, a sample at a time, padded."""
    run = TrainedRun.load(trained)
    reader = SampleReader(data_set, Manifest.load(data_set), "validation")
    size = reader.block_sizes[0]
    columns = reader.gather(np.zeros(size, np.int64), np.arange(size))
    told = {}
    for row in range(len(columns["num_tokens"])):
        ids = columns["input_ids"][row, : columns["num_tokens"][row]].astype(np.int64)
        count = columns["num_masked"][row]
        positions = columns["masked_lm_positions"][row, :count].astype(np.int64)
        labels = columns["masked_lm_labels"][row, :count]
        ids[positions] = MASK_ID
        types = np.arange(ids.size) >= columns["segment_b_start"][row]
        batch = from_padded(
            torch.from_numpy(ids)[None],
            torch.ones(1, ids.size),
            torch.from_numpy(types.astype(np.int64))[None],
        )
        with torch.no_grad():
            hidden = run.model.encoder(**batch)[torch.from_numpy(positions)]
            best = run.model.mlm_logits(hidden).softmax(-1).topk(3)
        pieces = [[run.tokenizer.piece(i) for i in indices] for indices in best.indices.tolist()]
        expected = tuple(run.tokenizer.piece(int(label)) for label in labels)
        told[expected] = (ids.size, pieces, best.values.flatten().tolist())
    rows = [row for row in read_rows(trained / "predictions.jsonl") if row["step"] == 14]
    assert len(rows) == 6
    lengths = []
    for asked in rows:
        assert asked["text"].count("[MASK]") == len(asked["expected"]) == len(asked["answers"])
        length, pieces, probabilities = told[tuple(asked["expected"])]
        lengths.append(length)
        assert [[answer["piece"] for answer in mask] for mask in asked["answers"]] == pieces
        found = [answer["probability"] for mask in asked["answers"] for answer in mask]
        assert found == pytest.approx(probabilities, abs=2e-6)
    assert lengths == sorted(lengths) and 16 <= lengths[0] < lengths[-1] < 30


@pytest.mark.parametrize("script", ["evaluate", "fill_mask"])
def test_dry_runs_name_the_checkpoint(trained: Path, data_set: Path, script: str) -> None:
    rest = ["--shards", data_set] if script == "evaluate" else ["The [MASK]."]
    command = [BIN / "python", f"launch/{script}.py", *rest, "--dry_run", "--checkpoint"]
    ended = run_script(*command, trained)
    assert ended.returncode == 0, ended.stderr
    checkpoint = trained / "checkpoints" / "step-000000014"
    assert json.loads(ended.stdout)["checkpoint"] == str(checkpoint)
    ended = run_script(*command, trained / "nowhere")
    assert ended.returncode == 2 and ended.stderr.startswith("error: --checkpoint ")
    assert ended.stderr.count("\n") == 1


def test_finished_run_stays_as_it_is(trained: Path, data_set: Path) -> None:
    flags = [part for name in ("model", "config", "deepspeed_config")
             for part in (f"--{name}", trained.parent / f"{name}.json")]  # fmt: skip
    before = read_metrics(trained)
    ended = run_script(
        BIN / "python", "launch/pretrain.py", *flags, "--shards", data_set,
        "--output_dir", trained, "--validation_samples", "0",
    )  # fmt: skip
    assert ended.returncode == 0 and "done: 14 steps" in ended.stdout, ended.stderr
    assert read_metrics(trained) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", "7"], "seed is 7, the checkpoint has 42"),
        (["--num_hidden_layers", "1"], "model num_hidden_layers is 1, the checkpoint has 2"),
        (["--num_train_steps", "13"], "num_train_steps = 13 is below the step of"),
    ],
)
def test_another_run_is_not_resumed(
    trained: Path, data_set: Path, change: list[str], message: str
) -> None:
    flags = [part for name in ("model", "config", "deepspeed_config")
             for part in (f"--{name}", trained.parent / f"{name}.json")]  # fmt: skip
    ended = run_script(
        BIN / "python", "launch/pretrain.py", *flags, "--shards", data_set,
        "--output_dir", trained, *change,
    )  # fmt: skip
    assert ended.returncode == 2
    assert [line for line in ended.stderr.splitlines() if "error:" in line and message in line]
    assert "Traceback" not in ended.stderr


def test_mistakes_end_in_one_line_before_any_step(data_set: Path, tmp_path: Path) -> None:
    configs = write_configs(tmp_path, stage=2, precision="bf16")
    odd_folder = tmp_path / "odd"
    odd_folder.mkdir()
    odd = write_configs(odd_folder, stage=2, precision="bf16", train_batch_size=37)
    cases: list[tuple[list[str | Path], list[str | Path], str]] = [
        (configs, ["--shards", "nowhere"], "make shards with `make quickstart`"),
        (configs, ["--shards", data_set, "--vocab_size", "700"], "set --vocab_size 701 or more"),
        (odd, ["--shards", data_set], "train_batch_size = 37 is not a multiple of"),
        (configs, ["--shards", data_set, "--validation_samples", "1"], "1 samples for 2 ranks"),
    ]
    for flags, change, message in cases:
        ended = run_script(
            *deepspeed_launcher(2),
            "launch/pretrain.py",
            *flags,
            *change,
            "--output_dir",
            tmp_path / "run",
        )
        assert ended.returncode != 0
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0], ended.stderr
        assert "Traceback" not in ended.stderr + ended.stdout
        assert not (tmp_path / "run").exists()


def test_dry_run_prints_the_resolved_job(data_set: Path, tmp_path: Path) -> None:
    flags = write_configs(tmp_path, stage=2, precision="bf16")
    ended = run_script(
        BIN / "python", "launch/pretrain.py", *flags, "--shards", data_set, "--dry_run",
        "--num_train_steps", "99", "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    resolved = json.loads(ended.stdout)
    assert resolved["run"]["num_train_steps"] == 99
    assert resolved["model"]["hidden_size"] == 48 and resolved["model"]["hidden_act"] == "gelu"
    assert resolved["deepspeed"]["gradient_accumulation_steps"] == 6
    assert not (tmp_path / "run").exists()


def test_the_package_starts_behind_the_launcher_as_the_script_does(
    data_set: Path, tmp_path: Path
) -> None:
    """From another folder, with a configuration that comes with the package."""
    ended = run_script(
        *deepspeed_launcher(2), "--module", "dist_bert", "pretrain", "--shards", data_set,
        "--dry_run", "--deepspeed_config", "configs/zero1.json",
        "--model", "configs/model/bert_tiny.json",
        "--lr", "0.25", "--deepspeed", "zero_optimization.stage=2", "--train_batch_size", "36",
        "--train_micro_batch_size_per_gpu", "6", cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    start, end = ended.stdout.index("\n{\n"), ended.stdout.rindex("\n}\n")
    resolved = json.loads(ended.stdout[start : end + 3])
    assert resolved["world_size"] == 2 and resolved["model"]["hidden_size"] == 128
    assert resolved["deepspeed"]["optimizer"]["params"]["lr"] == 0.25
    assert resolved["deepspeed"]["zero_optimization"]["stage"] == 2
    assert resolved["deepspeed"]["gradient_accumulation_steps"] == 3


@pytest.mark.slow
def test_the_line_of_the_readme(data_set: Path, tmp_path: Path) -> None:
    """BERT-base starts from data/shards in the current folder, with nothing else given."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shards").symlink_to(data_set)
    assert "pretrain.py --deepspeed_config configs/zero2.json" in (ROOT / "README.md").read_text()
    output = kill_when_printed(
        "starting from step 0 of 1,000,000", "env", "-C", tmp_path,
        *deepspeed_launcher(1), "launch/pretrain.py", "--deepspeed_config", "configs/zero2.json",
    )  # fmt: skip
    assert "micro_batch_tokens auto: 4,096 tokens (planned for " in output, "the most on CPUs"
    assert "256 samples a step = 1 ranks x micro-steps of 4,096 tokens, ZeRO 2, bf16" in output
    assert (tmp_path / "runs/pretrain/config.json").exists() and environment()["DS_ACCELERATOR"]
