"""Fine-tuned runs exported, and loaded by transformers and onnxruntime alone."""

import contextlib
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from dist_bert.common.errors import UserError
from dist_bert.finetuning.examples import TASKS
from dist_bert.finetuning.predict import FineTunedModel
from dist_bert.finetuning.readers import ReadConfig, read_examples
from dist_bert.huggingface.export_finetuned import export_finetuned
from dist_bert.huggingface.onnx_model import check_onnx
from dist_bert.model.config import ModelConfig
from dist_bert.model.micro_batches import from_padded
from tests.integration.conftest import (
    MODERN_PARTS,
    TINY_MODEL,
    assert_one_line_error,
    run_script,
)
from tests.support import labelled
from tests.support.corpus import chinese_sentences
from tests.support.synthetic import write_finetuned_run

SCRIPT = (sys.executable, "launch/export_model.py")
NAMES = ("input_ids", "attention_mask", "token_type_ids")
MODEL = ModelConfig(**{**TINY_MODEL, "mlm_hidden_act": "relu"})  # type: ignore[arg-type]
LENGTH = 47  # below the model's positions
PAIRS = {"classes": ["equal", "other", "unclear"], "has_several_labels": False}
NUMBERS = {"mean": 250.0, "deviation": 30.0}
TAGS = ["O", "B-COUNT", "I-COUNT", "B-PER", "I-PER"]
QUESTIONS = {
    "max_seq_length": LENGTH,
    "doc_stride": 11,
    "max_question_tokens": 13,
    "max_answer_tokens": 7,
    "may_lack_answers": True,
}


@pytest.fixture(scope="module")
def tokenizer(data_set: Path) -> Path:
    return data_set / "tokenizer.model"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    labelled.write_pairs(folder / "pairs.tsv", labelled.pairs(40))
    labelled.write_rated_pairs(folder / "rated.tsv", labelled.rated_pairs(40))
    labelled.write_texts(folder / "texts.tsv", labelled.texts(40, num_labels=3))
    mixed = labelled.questions(11) + labelled.questions(5, seed=1, is_chinese=True)
    numbered = [dataclasses.replace(question, id=f"{i}") for i, question in enumerate(mixed)]
    labelled.write_questions(folder / "questions.json", numbered)
    rows = [list(e.words) for e in labelled.tagged(20)]
    rows += [[text[i : i + 2] for i in range(0, len(text), 2)] for text in chinese_sentences(12, 5)]
    rows += [["⛄"], ["\u200b", "lamp"]]  # an unknown piece, and a word of which nothing is left
    lines = (json.dumps({"words": row}) + "\n" for row in rows)
    (folder / "words.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def exported(run_dir: Path, folder: Path, with_onnx: bool = False) -> str:
    """Exports in this process; returns what it said."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        export_finetuned(FineTunedModel.load(run_dir), folder, None, False, with_onnx)
    assert "0 differ" in said.getvalue() and "largest difference" in said.getvalue()
    return said.getvalue()


def scores_of_both(head: Any, reference: Any, folder: Path) -> tuple[Any, Any, Any]:
    """Scores by ours and by transformers' model of two samples, one of them padded, and these."""
    fast = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert fast.model_max_length == LENGTH
    batch = fast(["The old lamp.", "昨天"], ["Alice", "灯笼。"], padding=True, return_tensors="pt")
    unpadded: Any = from_padded(*(batch[name] for name in NAMES))
    with torch.no_grad():
        return head(**unpadded, num_real_samples=2), reference.eval()(**batch), batch


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs all code that the card shows, as its reader would; returns what each part prints."""
    monkeypatch.chdir(folder.parent)
    card = (folder / "README.md").read_text(encoding="utf-8")
    printed = []
    for part in card.split("```python\n")[1:]:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(part.split("```")[0], {"__name__": "card"})
        printed.append(said.getvalue())
    return printed


def test_pairs_by_the_script_with_onnx(tokenizer: Path, sets: Path, tmp_path: Path) -> None:
    facts = {
        "max_seq_length": LENGTH,
        "classes": ["equal", "other", "unclear"],
        "has_several_labels": False,
    }
    runs, folder = tmp_path / "runs", tmp_path / "new"
    run_dir, task = runs / "lr-1/seed-2", "pair_classification"
    head = write_finetuned_run(run_dir, tokenizer, MODEL, task, facts, sets / "pairs.tsv")
    (runs / "summary.json").write_text('{"best_run": "lr-1/seed-2"}')
    made = run_script(*SCRIPT, "--checkpoint", runs, "--output_dir", folder, "--onnx", "true")
    assert made.returncode == 0 and made.stderr == "", made.stdout + made.stderr
    assert "pipeline agrees on 32 of 32 examples" in made.stdout
    assert "logits of onnxruntime: largest difference" in made.stdout
    model, told = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert model.config.id2label == {0: "equal", 1: "other", 2: "unclear"}
    assert model.config.problem_type == "single_label_classification"
    ours, theirs, batch = scores_of_both(head, model, folder)
    torch.testing.assert_close(ours, theirs.logits, rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert {given.name for given in session.get_inputs()} == set(batch)
    (logits,) = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})
    np.testing.assert_allclose(logits, ours.numpy(), rtol=1e-4, atol=1e-5)
    card = (folder / "README.md").read_text(encoding="utf-8")
    for fact in (
        "3 classes: `equal`, `other`, `unclear`", "| f1 | 0.8125 |", "| the_encoder |",
        "| some | 0.5000 | 0.2500 | 0.7500 | 11 |", "pipeline_tag: text-classification",
        '"text_pair"', "ONNX: logits",
    ):  # fmt: skip
        assert fact in card, fact
    assert not list(tmp_path.glob(".*")), "nothing temporary is left"


def test_several_labels(
    tokenizer: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {
        "max_seq_length": LENGTH,
        "classes": list(labelled.LABELS),
        "has_several_labels": True,
    }
    run_dir, task = tmp_path / "run", "sentence_classification"
    write_finetuned_run(
        run_dir, tokenizer, MODEL, task, facts, sets / "texts.tsv", label_separator=","
    )
    folder = tmp_path / "new"
    assert "pipeline agrees on 32 of 32 examples" in exported(run_dir, folder)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert config.problem_type == "multi_label_classification"
    (printed,) = run_card(folder, monkeypatch)
    assert all(name in printed for name in labelled.LABELS)


@pytest.mark.parametrize("task", ["pair_regression", "sentence_regression"])
def test_numbers(
    tokenizer: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """The scale of the training set is in the last layer that is exported."""
    facts = {"max_seq_length": LENGTH, "mean": 250.0, "deviation": 30.0}
    examples = sets / ("rated.tsv" if task == "pair_regression" else "texts.tsv")
    run_dir, folder = tmp_path / "run", tmp_path / "new"
    head = write_finetuned_run(run_dir, tokenizer, MODEL, task, facts, examples)
    assert "pipeline agrees on 32 of 32 examples" in exported(run_dir, folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=False
    )
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)
    assert model.config.id2label == {0: "score"}
    ours, theirs, _ = scores_of_both(head, model, folder)
    torch.testing.assert_close(ours, theirs.logits, rtol=1e-4, atol=1e-3)
    assert ours.std() > 1.0, "on the scale of the set"
    (printed,) = run_card(folder, monkeypatch)
    assert "'score'" in printed
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "mean 250, standard deviation 30" in card and "classes" not in card


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_tags(tokenizer: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"max_seq_length": LENGTH, "classes": TAGS}
    run_dir, task = tmp_path / "run", "token_classification"
    head = write_finetuned_run(run_dir, tokenizer, MODEL, task, facts, sets / "words.jsonl")
    folder = tmp_path / "new"
    said = exported(run_dir, folder)
    assert "tag_words agrees on 32 of 32 examples" in said
    assert "pipeline answers 32 of 32" not in said and " here, [('" in said, "as the card says"
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        folder, trust_remote_code=False
    )
    assert [model.config.id2label[i] for i in range(5)] == TAGS
    ours, theirs, batch = scores_of_both(head, model, folder)
    is_token = batch["attention_mask"].bool()
    torch.testing.assert_close(
        ours[: is_token.sum()], theirs.logits[is_token], rtol=1e-4, atol=1e-5
    )
    assert run_card(folder, monkeypatch)[1].count("'") == 2 * 5, "a tag for each word"


@pytest.mark.parametrize("as_token_classes", [False, True])
def test_questions(
    tokenizer: Path,
    sets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_token_classes: bool,
) -> None:
    facts = {**QUESTIONS, "as_token_classes": as_token_classes}
    run_dir, task = tmp_path / "run", "question_answering"
    head = write_finetuned_run(run_dir, tokenizer, MODEL, task, facts, sets / "questions.json")
    results = json.loads((run_dir / "results.json").read_text())
    threshold = -9.9 if as_token_classes else -1.1  # so that it says of some that they have none
    (run_dir / "results.json").write_text(
        json.dumps({**results, "null_score_threshold": threshold})
    )
    examples = read_examples(task, str(sets / "questions.json"), ReadConfig()).examples
    answers = [told["answer"] for told in FineTunedModel.load(run_dir).answers(examples)]
    assert 3 < answers.count("") < 13 and len(set(answers)) > 3
    folder = tmp_path / "new"
    assert "find_answer agrees on 16 of 16 examples" in exported(run_dir, folder)
    kind = "TokenClassification" if as_token_classes else "QuestionAnswering"
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
        folder, trust_remote_code=False
    )
    ours, theirs, batch = scores_of_both(head, model, folder)
    found = (
        theirs.logits
        if as_token_classes
        else torch.stack([theirs.start_logits, theirs.end_logits], 2)
    )[batch["attention_mask"].bool()]
    torch.testing.assert_close(ours[: len(found)], found, rtol=1e-4, atol=1e-5)
    if as_token_classes:
        assert model.config.label2id == {"OTHER": 0, "START": 1, "END": 2}
    (printed,) = run_card(folder, monkeypatch)
    assert printed.strip() in "Alice came. Bob did not."


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize(
    ("task", "examples", "facts", "kind"),
    [
        ("pair_classification", "pairs.tsv", PAIRS, "SequenceClassification"),
        ("pair_regression", "rated.tsv", NUMBERS, "SequenceClassification"),
        ("token_classification", "words.jsonl", {"classes": TAGS}, "TokenClassification"),
        (
            "question_answering", "questions.json", {**QUESTIONS, "as_token_classes": False},
            "QuestionAnswering",
        ),
        (
            "question_answering", "questions.json", {**QUESTIONS, "as_token_classes": True},
            "TokenClassification",
        ),
    ],
    ids=["pairs", "numbers", "tags", "spans", "token classes"],
)  # fmt: skip
def test_modern(
    tokenizer: Path,
    sets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    examples: str,
    facts: dict[str, Any],
    kind: str,
) -> None:
    """Without segments, and with samples that are longer than a window."""
    model = ModelConfig(**{**TINY_MODEL, **MODERN_PARTS})
    run_dir, folder = tmp_path / "run", tmp_path / "new"
    facts = {"max_seq_length": LENGTH, **facts}
    head = write_finetuned_run(run_dir, tokenizer, model, task, facts, sets / examples)
    said = exported(run_dir, folder, with_onnx=task == "pair_classification")
    name = {"token_classification": "tag_words", "question_answering": "find_answer"}
    num = 16 if task == "question_answering" else 32
    assert f"{name.get(task, 'pipeline')} agrees on {num} of {num} examples" in said
    loaded, told = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False
    )
    assert type(loaded).__name__ == f"ModernBertFor{kind}"
    assert not told["missing_keys"] and not told["unexpected_keys"]
    config = loaded.config
    assert (config.classifier_pooling, config.classifier_bias, config.norm_bias) == (
        "cls", False, False,
    )  # fmt: skip
    fast = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    batch = fast(
        ["The old lamp. " * 4, "昨天"], ["Alice", "灯笼。"], padding=True, return_tensors="pt"
    )
    assert set(batch) == {"input_ids", "attention_mask"} and batch["input_ids"].shape[1] > 9
    is_token = batch["attention_mask"].bool()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    unpadded: Any = from_padded(ids, mask, torch.zeros_like(ids))
    with torch.no_grad():
        ours = head(**unpadded, num_real_samples=2)
        theirs = loaded.eval()(**batch)
    scores = [theirs[n] for n in ("start_logits", "end_logits") if n in theirs]
    expected = torch.stack(scores, 2) if scores else theirs.logits
    expected = expected[is_token] if expected.ndim == 3 else expected
    torch.testing.assert_close(ours[: len(expected)], expected, rtol=1e-5, atol=1e-5)
    assert run_card(folder, monkeypatch)
    assert "A ModernBERT encoder fine-tuned for" in (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize("task", TASKS)
def test_odd_texts_where_the_examples_are_gone(task: str, tokenizer: Path, tmp_path: Path) -> None:
    facts: dict[str, Any] = {"max_seq_length": LENGTH, "classes": TAGS}
    if task.endswith("regression"):
        facts = {"max_seq_length": LENGTH, "mean": 2.5, "deviation": 1.25}
    elif task.endswith("e_classification") or task.startswith("pair"):
        facts["has_several_labels"] = False
    elif task == "question_answering":
        facts = {**QUESTIONS, "as_token_classes": False}
    write_finetuned_run(tmp_path / "run", tokenizer, MODEL, task, facts, tmp_path / "gone")
    said = exported(tmp_path / "run", tmp_path / "new")
    assert "examples   those of the run cannot be read" in said and "odd texts" in said
    assert "answers" in said


def test_refusals(
    tokenizer: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"max_seq_length": LENGTH, "classes": TAGS}
    run_dir, task = tmp_path / "run", "token_classification"
    write_finetuned_run(run_dir, tokenizer, MODEL, task, facts, sets / "words.jsonl")
    model = FineTunedModel.load(run_dir)
    relu = dataclasses.replace(model, config=dataclasses.replace(MODEL, hidden_act="relu"))
    with pytest.raises(UserError, match="logits of transformers differ from ours"):
        export_finetuned(relu, tmp_path / "new", None, False, False)
    rotary = dataclasses.replace(
        model,
        config=dataclasses.replace(
            MODEL, positions="rotary", feed_forward="geglu", bias=False, hidden_act="relu"
        ),
    )
    with pytest.raises(UserError, match="with positions = rotary, which is exported as a pretrain"):
        export_finetuned(rotary, tmp_path / "new", None, False, False)
    (run_dir / "model.safetensors").unlink()
    made = run_script(*SCRIPT, "--checkpoint", run_dir, "--output_dir", tmp_path / "new")
    assert_one_line_error(made, "has no model.safetensors; give the --output_dir of a run of")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is not installed: pip .*'\.\[onnx,"):
        check_onnx()
