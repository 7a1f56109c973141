"""launch/finetune.py and launch/predict.py as processes: two ranks, killed, resumed, searched."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.config import ModelConfig
from dist_bert.training.metrics import read_metrics
from dist_bert.training.run_lock import RunLock
from tests.integration.conftest import (
    MODERN_PARTS,
    TINY_MODEL,
    assert_one_line_error,
    kill_when_printed,
    launcher,
    run_script,
)
from tests.support import labelled
from tests.support.synthetic import write_finetuned_run, write_run

pytestmark = pytest.mark.trains

SCRIPT = "launch/finetune.py"
DEEPSPEED: dict[str, Any] = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-3, "torch_adam": True}},
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled sets of all tasks, and the DeepSpeed JSON."""
    folder = tmp_path_factory.mktemp("sets")
    labelled.write_pairs(folder / "pairs.tsv", labelled.pairs(40))
    labelled.write_rated_pairs(folder / "rated.tsv", labelled.rated_pairs(40))
    labelled.write_texts(folder / "texts.tsv", labelled.texts(40, num_labels=3))
    labelled.write_tagged(folder / "words.conll", labelled.tagged(40))
    labelled.write_questions(folder / "questions.json", labelled.questions(20))
    (folder / "deepspeed.json").write_text(json.dumps(DEEPSPEED))
    return folder


def command(encoder: Path, files: Path, task: str, name: str, *flags: str | Path) -> list[Any]:
    return [
        SCRIPT, "--deepspeed_config", files / "deepspeed.json", "--checkpoint", encoder,
        "--task", task, "--train", files / name, "--log_interval", "1", *flags,
    ]  # fmt: skip


def results(run_dir: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((run_dir / "results.json").read_text())
    return contents


@pytest.mark.slow
def test_killed_and_resumed_on_two_ranks_scores_the_same(
    encoder: Path, files: Path, tmp_path: Path
) -> None:
    """Every row of metrics, the final scores and answers are those of a run never stopped."""
    flags = ("--eval", files / "pairs.tsv", "--num_train_epochs", "3")
    arguments = command(encoder, files, "pair_classification", "pairs.tsv", *flags)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = run_script(*launcher(2), *arguments, "--output_dir", whole)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    kill_when_printed("saved step 10 ", *launcher(2), *arguments, "--output_dir", killed)
    assert not (killed / "results.json").exists()
    ended = run_script(*launcher(2), *arguments, "--output_dir", killed)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resumed at step 10 of 15" in ended.stdout
    names = ("train/loss", "train/accuracy", "train/grad_norm", "validation/accuracy")
    rows = [
        [(row["step"], *(row.get(name) for name in names)) for row in read_metrics(run_dir)]
        for run_dir in (whole, killed)
    ]
    assert rows[0] == rows[1] and [row[0] for row in rows[0]].count(15) == 2
    assert results(whole) == results(killed)
    assert (whole / "answers.jsonl").read_bytes() == (killed / "answers.jsonl").read_bytes()
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    assert not (whole / "checkpoints").exists()
    assert (whole / "confusion.png").exists()
    again = run_script(*launcher(2), *arguments, "--output_dir", killed)
    assert again.returncode == 0 and "not run again" in again.stdout
    lock = RunLock(killed)  # as another training has it
    other = run_script(*launcher(2), *arguments, "--output_dir", killed)
    assert other.returncode != 0 and "another training is writing there" in other.stderr
    lock.release()
    other = run_script(
        sys.executable, *arguments, "--output_dir", killed, "--learning_rates", "1e-3"
    )
    assert_one_line_error(other, "peak lr is 0.001, the checkpoint has 0.002")

    # What the model answered to the held-out examples, it answers to them as new ones.
    predicted = tmp_path / "predicted.jsonl"
    ended = run_script(
        sys.executable, "launch/predict.py", "--checkpoint", whole,
        "--input", files / "pairs.tsv", "--output", predicted,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for line, kept in zip(
        predicted.read_text().splitlines(),
        (whole / "answers.jsonl").read_text().splitlines(),
        strict=True,
    ):
        new, old = json.loads(line), json.loads(kept)
        assert new["label"] == old["label"]
        assert new["probabilities"] == pytest.approx(old["probabilities"], abs=1e-4)


@pytest.mark.slow
def test_seeds_and_learning_rates_are_runs_and_the_best_is_named(
    encoder: Path, files: Path, tmp_path: Path
) -> None:
    """Of words, with early stopping; the held-out part is taken from the training file."""
    flags = (
        "--num_train_epochs", "4", "--seeds", "2", "--learning_rates", "1e-2,1e-9",
        "--evals_per_epoch", "2", "--early_stopping", "2", "--output_dir", tmp_path,
    )  # fmt: skip
    arguments = command(encoder, files, "token_classification", "words.conll", *flags)
    ended = run_script(sys.executable, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [run["lr"] for run in summary["runs"]] == [1e-2, 1e-2, 1e-9, 1e-9]
    assert [run["seed"] for run in summary["runs"]] == [42, 43, 42, 43]
    f1s = [run["values"]["f1"] for run in summary["runs"]]
    row = summary["learning_rates"][0]
    assert row["mean"]["f1"] == pytest.approx((f1s[0] + f1s[1]) / 2)
    assert row["standard_deviation"]["f1"] == pytest.approx(abs(f1s[0] - f1s[1]) / math.sqrt(2))
    assert summary["best"]["f1"] == max(f1s)
    assert results(tmp_path / summary["best_run"])["values"]["f1"] == max(f1s)
    # A rate of nothing never gets better: it ends after two more scores of four.
    steps = [row["step"] for row in read_metrics(tmp_path / "lr-1e-09/seed-42")]
    assert max(steps) == 9, "3 steps between scores; the first, and two that are no better"

    new = tmp_path / "new.jsonl"
    words = [["Alice", "sold", "the", "lamp", "."], ["nobody"]]
    new.write_text("".join(json.dumps({"words": row}) + "\n" for row in words))
    ended = run_script(
        sys.executable, "launch/predict.py", "--checkpoint", tmp_path, "--input", new,
        "--output", "-",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [answer["words"] for answer in answers] == words
    assert [len(answer["tags"]) for answer in answers] == [5, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "task,name,flags",
    [
        ("sentence_classification", "texts.tsv", ("--label_separator", ",")),
        ("pair_regression", "rated.tsv", ()),
        (
            "question_answering",
            "questions.json",
            ("--doc_stride", "16", "--max_question_tokens", "16"),
        ),
        (
            "question_answering",
            "questions.json",
            ("--qa_head", "token_classes", "--doc_stride", "16", "--max_question_tokens", "16"),
        ),
    ],
)
def test_other_tasks(
    encoder: Path, files: Path, tmp_path: Path, task: str, name: str, flags: tuple[str, ...]
) -> None:
    arguments = command(
        encoder, files, task, name, *flags, "--num_train_epochs", "1", "--output_dir", tmp_path
    )
    ended = run_script(sys.executable, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    kept = results(tmp_path)
    assert -1.0 <= kept["values"][kept["main"]] <= 1.0 and math.isfinite(kept["loss"])
    if task == "question_answering":
        assert "null_score_threshold" in kept
    ended = run_script(
        sys.executable, "launch/predict.py", "--checkpoint", tmp_path,
        "--input", files / name, *(flags if task == "sentence_classification" else ()),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(answers) == (20 if task == "question_answering" else 40)
    if task == "pair_regression":
        assert kept["main"] == "spearman"
        assert all(isinstance(answer["score"], float) for answer in answers)
        names = {name for row in read_metrics(tmp_path) for name in row}
        assert {"train/mean_absolute_error", "validation/pearson"} <= names


@pytest.mark.slow
def test_a_modern_encoder_is_tuned_applied_and_exported(
    data_set: Path, files: Path, tmp_path: Path
) -> None:
    model = ModelConfig(**{**TINY_MODEL, **MODERN_PARTS})
    write_run(tmp_path / "encoder", data_set / "tokenizer.model", model, {})
    tuned = tmp_path / "tuned"
    arguments = command(
        tmp_path / "encoder", files, "pair_classification", "pairs.tsv", "--num_train_epochs", "1",
        "--output_dir", tuned,
    )  # fmt: skip
    ended = run_script(sys.executable, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "left out: pooler and NSP head, which the heads of a modern" in ended.stdout
    before = TrainedRun.load(tmp_path / "encoder").model.state_dict()
    after = load_file(next(tuned.rglob("model.safetensors")))
    matrices = [name for name in after if "layers." in name and after[name].ndim > 1]
    assert len(matrices) == 2 * 4
    assert not any(torch.equal(after[name], before[name]) for name in matrices)
    ended = run_script(
        sys.executable, "launch/predict.py", "--checkpoint", tuned, "--input", files / "pairs.tsv"
    )
    assert ended.returncode == 0 and len(ended.stdout.splitlines()) == 40, ended.stderr
    ended = run_script(
        sys.executable, "launch/export_model.py", "--checkpoint", tuned,
        "--output_dir", tmp_path / "exported",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "pipeline agrees on 32 of 32 examples" in ended.stdout
    stored = load_file(tmp_path / "exported/model.safetensors")
    assert torch.equal(stored["head.dense.weight"], after["pooler.dense.weight"])


@pytest.mark.slow
def test_a_new_pooler_is_what_starts_anew(encoder: Path, files: Path, tmp_path: Path) -> None:
    """At a learning rate of nothing, one step leaves every other weight of the encoder."""
    arguments = command(
        encoder, files, "pair_classification", "pairs.tsv", "--new_pooler", "true",
        "--learning_rates", "1e-30", "--num_train_epochs", "1", "--output_dir", tmp_path,
    )  # fmt: skip
    ended = run_script(sys.executable, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (weights,) = tmp_path.rglob("model.safetensors")
    tuned, pretrained = load_file(weights), TrainedRun.load(encoder).model.state_dict()
    differing = {  # by more than rounding to bf16
        name
        for name in pretrained
        if name.startswith(("encoder.", "pooler."))
        and not torch.allclose(tuned[name], pretrained[name], rtol=2**-8)
    }
    assert {name.split(".")[0] for name in differing} == {"pooler"}


def test_few_null_windows_are_fewer_steps(encoder: Path, files: Path, tmp_path: Path) -> None:
    def num_steps(*flags: str) -> int:
        arguments = command(
            encoder, files, "question_answering", "questions.json", "--doc_stride", "16",
            "--max_question_tokens", "16", "--dry_run", "--output_dir", tmp_path, *flags,
        )  # fmt: skip
        ended = run_script(sys.executable, *arguments)
        assert ended.returncode == 0, ended.stderr
        printed = ended.stdout[ended.stdout.index("\n[\n") :]
        return int(json.loads(printed)[0]["run"]["num_train_steps"])

    assert 3 <= num_steps("--max_null_windows", "1") < num_steps()


def test_mistakes_are_one_line(encoder: Path, files: Path, tmp_path: Path) -> None:
    def refused(task: str, name: str, problem: str, *flags: str | Path) -> None:
        arguments = command(encoder, files, task, name, "--output_dir", tmp_path / "run", *flags)
        assert_one_line_error(run_script(sys.executable, *arguments), problem)
        assert not (tmp_path / "run").exists()

    labelled.write_pairs(files / "other.tsv", labelled.pairs(3, seed=1))
    text = (files / "other.tsv").read_text().replace("\tequal", "\tsame")
    (files / "other.tsv").write_text(text)
    refused(
        "pair_classification", "pairs.tsv", "'same' (", "--eval", files / "other.tsv"
    )  # fmt: skip
    (files / "empty.tsv").write_text("")
    refused("pair_classification", "empty.tsv", "empty.tsv")
    refused("pair_classification", "pairs.tsv", "too many for classes", "--label_column",
            "sentence1", "--text_column", "label", "--eval", files / "pairs.tsv")  # fmt: skip
    refused("pair_classification", "rated.tsv", "to predict them give --task sentence_regression")
    rows = (files / "rated.tsv").read_text().splitlines()
    same = [row.rpartition("\t")[0] + "\t3.5" for row in rows[1:]]
    (files / "same.tsv").write_text("\n".join([rows[0], *same]))
    refused("pair_regression", "same.tsv", "all numbers to learn from are 3.5")
    refused("token_classification", "words.conll", "max_seq_length = 99", "--max_seq_length", "99")
    refused("question_answering", "questions.json", "max_question_tokens (64)")


def test_an_answer_behind_its_context_is_named(encoder: Path, files: Path, tmp_path: Path) -> None:
    squad = json.loads((files / "questions.json").read_text())
    answer = squad["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]
    answer.update(answer_start=10_000, text="is nowhere")
    (files / "wrong.json").write_text(json.dumps(squad))
    arguments = command(encoder, files, "question_answering", "wrong.json")
    ended = run_script(sys.executable, *arguments, "--max_question_tokens", "16", "--dry_run")
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if ", question q0: answer" in line]
    assert len(lines) == 1, ended.stdout[:3_000]


def test_prediction_loses_no_row_silently(data_set: Path, files: Path, tmp_path: Path) -> None:
    """An answer stands in the line of its row, or there is an error before the work."""
    run_dir, rows = tmp_path / "run", [f"text {i}" if i != 50 else " " for i in range(200)]
    (tmp_path / "new.txt").write_text("\n".join(rows))
    model, task = ModelConfig(**TINY_MODEL), "sentence_classification"  # type: ignore[arg-type]
    facts = {"max_seq_length": 20, "classes": ["a", "b"], "has_several_labels": False}
    tokenizer = data_set / "tokenizer.model"
    write_finetuned_run(run_dir, tokenizer, model, task, facts, files / "texts.tsv")
    command = (
        sys.executable, "launch/predict.py", "--checkpoint", run_dir, "--input",
        tmp_path / "new.txt",
    )  # fmt: skip
    assert_one_line_error(run_script(*command), "new.txt, line 51: empty text (1 of 200 rows")
    ended = run_script(*command, "--max_bad_share", "0.01")
    assert ended.returncode == 0 and len(ended.stdout.splitlines()) == 199, ended.stderr
    nowhere = tmp_path / "nowhere/answers.jsonl"
    assert_one_line_error(
        run_script(*command, "--output", nowhere), "its folder does not exist; make it first"
    )
