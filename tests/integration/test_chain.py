"""The whole way through `launch/`: from text to models that transformers loads, in one go.

Each script takes what the one before it left. Text, tokenizer and shards are those of `data_set`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.micro_batches import from_padded
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import TINY_MODEL, kill_when_printed, launcher, run_script
from tests.support import labelled

pytestmark = [pytest.mark.trains, pytest.mark.slow]

NUM_STEPS = 8
MODEL = {**TINY_MODEL, "initializer_range": 0.2}  # so that answers differ after a few steps
DEEPSPEED = {
    "train_batch_size": 24,
    "train_micro_batch_size_per_gpu": 6,
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-3, "torch_adam": True}},
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
}
RUN = {
    "num_train_steps": NUM_STEPS,
    "warmup_steps": 2,
    "checkpoint_interval": 4,
    "validation_interval": NUM_STEPS,
    "validation_samples": 0,
}


def run(*command: object) -> str:
    """Runs a script that must end well; returns what it printed."""
    ended = run_script(*command)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_from_text_to_transformers(data_set: Path, tmp_path: Path) -> None:
    deepspeed = tmp_path / "deepspeed.json"
    deepspeed.write_text(json.dumps(DEEPSPEED))
    pretrained = pretrain(data_set, deepspeed, tmp_path)
    evaluate(pretrained, data_set, tmp_path / "scores.json")

    examples = labelled.pairs(40)
    labelled.write_pairs(tmp_path / "pairs.tsv", examples)
    finetuned, answers = tmp_path / "finetuned", tmp_path / "answers.jsonl"
    run(
        sys.executable, "launch/finetune.py", "--deepspeed_config", deepspeed,
        "--checkpoint", pretrained, "--task", "pair_classification", "--num_train_epochs", "2",
        "--train", tmp_path / "pairs.tsv", "--output_dir", finetuned,
    )  # fmt: skip
    encoder = json.loads((finetuned / "config.json").read_text())["encoder"]
    assert Path(encoder["path"]).name == pretrained.name
    assert encoder["checkpoint"] == f"step-{NUM_STEPS:09d}"
    run(
        sys.executable, "launch/predict.py", "--checkpoint", finetuned,
        "--input", tmp_path / "pairs.tsv", "--output", answers,
    )  # fmt: skip

    for run_dir in (pretrained, finetuned):
        run(
            sys.executable, "launch/export_model.py", "--checkpoint", run_dir,
            "--output_dir", tmp_path / f"exported-{run_dir.name}",
        )  # fmt: skip
    texts = [(example.text_a, example.text_b or "") for example in examples]
    assert_same_vectors(pretrained, tmp_path / "exported-pretrained", texts)
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert_same_answers(rows, tmp_path / "exported-finetuned", texts)


def pretrain(shards: Path, deepspeed: Path, folder: Path) -> Path:
    """On two ranks until it is killed, then on one; returns the run's folder."""
    for name, values in (("model", MODEL), ("run", RUN)):
        (folder / f"{name}.json").write_text(json.dumps(values))
    command = [
        "launch/pretrain.py", "--shards", shards, "--deepspeed_config", deepspeed,
        "--model", folder / "model.json", "--config", folder / "run.json",
        "--output_dir", folder / "pretrained",
    ]  # fmt: skip
    kill_when_printed("saved step 4 ", *launcher(2), *command)
    assert f"resumed at step 4 of {NUM_STEPS}" in run(sys.executable, *command)
    rows = [row for row in read_metrics(folder / "pretrained") if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    return folder / "pretrained"


def evaluate(run_dir: Path, shards: Path, scores: Path) -> None:
    """Scores the held-out samples as the last validation did."""
    run(
        sys.executable, "launch/evaluate.py", "--checkpoint", run_dir, "--shards", shards,
        "--json", scores,
    )  # fmt: skip
    found, last = json.loads(scores.read_text()), read_metrics(run_dir)[-1]
    assert found["step"] == last["step"] == NUM_STEPS
    for name in ("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"):
        assert found[name] == pytest.approx(last[f"validation/{name}"], rel=1e-5)


def load(auto_class: Any, folder: Path, texts: list[tuple[str, str]]) -> tuple[Any, Any]:
    """An exported model and, as its tokenizer makes it, a padded batch of pairs."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, told = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    firsts, seconds = zip(*texts, strict=True)
    batch = tokenizer(
        list(firsts), list(seconds), padding=True, truncation=True, return_tensors="pt"
    )
    return model.eval(), batch


def assert_same_vectors(run_dir: Path, folder: Path, texts: list[tuple[str, str]]) -> None:
    """Hidden and pooled vectors of the export are those of the run."""
    model, batch = load(transformers.AutoModel, folder, texts)
    ours = TrainedRun.load(run_dir).model
    names = ("input_ids", "attention_mask", "token_type_ids")
    unpadded: Any = from_padded(*(batch[name] for name in names))
    with torch.no_grad():
        theirs = model(**batch)
        hidden = ours.encoder(**unpadded)
        pooled = ours.pool(hidden[unpadded["cu_seqlens"][: len(texts)].long()])
    found = theirs.last_hidden_state[batch["attention_mask"].bool()]
    torch.testing.assert_close(found, hidden[: len(found)], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs.pooler_output, pooled, rtol=1e-4, atol=1e-5)


def assert_same_answers(
    answers: list[dict[str, Any]], folder: Path, texts: list[tuple[str, str]]
) -> None:
    """Labels and probabilities of the export are those that launch/predict.py wrote."""
    model, batch = load(transformers.AutoModelForSequenceClassification, folder, texts)
    with torch.no_grad():
        probabilities = model(**batch).logits.softmax(-1)
    assert len(answers) == len(texts)
    assert probabilities[:, 0].std() > 0.01, "else any text would have the same answer"
    for answer, row in zip(answers, probabilities, strict=True):
        assert answer["label"] == model.config.id2label[int(row.argmax())]
        found = {model.config.id2label[i]: float(p) for i, p in enumerate(row)}
        assert found == pytest.approx(answer["probabilities"], abs=1e-5)
