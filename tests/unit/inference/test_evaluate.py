"""Scores on held-out samples against sums made one sample at a time, and baselines by hand."""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_bert.common.errors import UserError
from dist_bert.data.pretraining_batches import piece_counts
from dist_bert.data.reader import SampleReader
from dist_bert.inference import evaluate as evaluate_module
from dist_bert.inference.confidence import Estimate, student_t
from dist_bert.inference.evaluate import (
    KINDS,
    Scores,
    evaluate,
    kinds_of,
    pair_baseline,
    unigram_baseline,
)
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.config import ModelConfig
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import train_tokenizer
from tests.support.corpus import english_sentences
from tests.support.synthetic import TINY_MODEL, DataSet, write_data_set, write_run

NUM_PIECES = 151
MODEL = dataclasses.replace(TINY_MODEL, vocab_size=NUM_PIECES + 2)  # it may have more pieces
FP32: dict[str, Any] = {"bf16": {"enabled": False}}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run folder, the shards that fit it, and the model that was saved."""

    run_dir: Path
    data_set: DataSet
    model: Any


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TokenizerConfig(vocab_size=NUM_PIECES)
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(english_sentences(500, seed=1), folder, config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    data_set = write_data_set(
        folder / "shards", vocab_size=NUM_PIECES, tokenizer=tokenizer.read_bytes()
    )
    return Trained(folder / "run", data_set, write_run(folder / "run", tokenizer, MODEL, FP32))


def scored_one_by_one(trained: Trained, num_samples: int) -> list[dict[str, Any]]:
    """The first validation samples, each alone, through log_softmax; a row for each prediction."""
    samples = [
        {field: values[row] for field, values in block.items()}
        for block in trained.data_set.blocks["validation"]
        for row in range(block["num_tokens"].size)
    ]
    scored = []
    for sample in samples[:num_samples]:
        length, num_masked = int(sample["num_tokens"]), int(sample["num_masked"])
        positions = torch.from_numpy(sample["masked_lm_positions"][:num_masked].astype(np.int64))
        labels = torch.from_numpy(sample["masked_lm_labels"][:num_masked].astype(np.int64))
        with torch.no_grad():
            hidden = trained.model.encoder(
                input_ids=torch.from_numpy(sample["input_ids"][:length].astype(np.int64)),
                token_type_ids=(torch.arange(length) >= int(sample["segment_b_start"])).long(),
                position_ids=torch.arange(length),
                cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
                max_seqlen=length,
            )
            mlm = trained.model.mlm_logits(hidden[positions]).double().log_softmax(-1)
            nsp = trained.model.nsp_logits(hidden[:1]).double().log_softmax(-1)[0]
        label = int(sample["next_sentence_label"])
        standing = [int(sample["input_ids"][position]) for position in positions]
        predictions = [
            {
                "kind": "mask" if there == 4 else "kept" if there == original else "random",
                "mlm_loss": -float(mlm[row, original]),
                "mlm_accuracy": int(mlm[row].argmax()) == original,
            }
            for row, (there, original) in enumerate(zip(standing, labels.tolist(), strict=True))
        ]
        scored.append(
            {
                "document": int(sample["document_ids"][0]),
                "length": length,
                "predictions": predictions,
                "nsp_loss": -float(nsp[label]),
                "nsp_accuracy": int(nsp.argmax()) == label,
            }
        )
    return scored


def means(samples: list[dict[str, Any]], kind: str | None = None) -> dict[str, float]:
    """Mean scores of samples, or of their predictions of one kind."""
    chosen = [[p for p in sample["predictions"] if kind in (None, p["kind"])] for sample in samples]
    predictions = [prediction for of_sample in chosen for prediction in of_sample]
    found: dict[str, float] = {
        "num_samples": sum(map(bool, chosen)) if kind else len(samples),
        "num_masked": len(predictions),
    }
    for name in ("mlm_loss", "mlm_accuracy"):
        found[name] = sum(p[name] for p in predictions) / len(predictions)
    for name in ("nsp_loss", "nsp_accuracy") if kind is None else ():
        found[name] = sum(sample[name] for sample in samples) / len(samples)
    return found


def agrees(figures: dict[str, Any], expected: dict[str, float]) -> bool:
    return {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("max_samples", [0, 5])
def test_scores_are_those_of_the_samples_one_by_one(
    trained: Trained, max_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "_BATCH_SAMPLES", 4)  # several batches, and a remainder
    run = TrainedRun.load(trained.run_dir)
    assert (run.step, run.precision, run.config) == (17, "fp32", MODEL)
    result = evaluate(run, trained.data_set.folder, max_samples)
    samples = scored_one_by_one(trained, max_samples or 19)
    figures = result.figures()
    assert agrees(figures, means(samples))
    assert figures["step"] == 17
    assert figures["num_documents"] == len({sample["document"] for sample in samples})
    assert figures["mlm_perplexity"] == math.exp(figures["mlm_loss"])
    for name, estimate in result.scores.estimates().items():
        low, high = figures["confidence_95"][name]
        assert (low, high) == (estimate.low, estimate.high) and low <= figures[name] <= high


def test_scores_by_length_and_kind_are_those_of_their_predictions(trained: Trained) -> None:
    figures = evaluate(TrainedRun.load(trained.run_dir), trained.data_set.folder).figures()
    samples = scored_one_by_one(trained, 19)
    lengths = [(group["min_tokens"], group["max_tokens"]) for group in figures["by_length"]]
    assert lengths == [(1, 16), (17, 32)]
    for group, (fewest, most) in zip(figures["by_length"], lengths, strict=True):
        assert agrees(group, means([s for s in samples if fewest <= s["length"] <= most]))
    assert tuple(figures["by_kind"]) == KINDS  # all occur
    for kind, group in figures["by_kind"].items():
        assert agrees(group, means(samples, kind)), kind
        assert "nsp_loss" not in group
    assert (
        sum(group["num_masked"] for group in figures["by_kind"].values()) == figures["num_masked"]
    )


def test_the_kind_of_a_prediction_is_what_stands_there() -> None:
    input_ids, labels = np.array([4, 70, 71, 4]), np.array([70, 70, 70, 71])
    assert [KINDS[kind] for kind in kinds_of(input_ids, labels)] == [
        "mask", "kept", "random", "mask",
    ]  # fmt: skip


def test_intervals_are_over_documents_not_tokens(trained: Trained) -> None:
    result = evaluate(TrainedRun.load(trained.run_dir), trained.data_set.folder)
    samples = scored_one_by_one(trained, 19)
    by_document: dict[int, list[float]] = {}
    for sample in samples:
        losses = by_document.setdefault(sample["document"], [])
        losses += [prediction["mlm_loss"] for prediction in sample["predictions"]]
    loss = means(samples)["mlm_loss"]
    residuals = [sum(losses) - loss * len(losses) for losses in by_document.values()]
    num_masked, count = sum(map(len, by_document.values())), len(residuals)
    variance = count / (count - 1) * sum(r * r for r in residuals) / num_masked**2
    margin = student_t(count - 1) * math.sqrt(variance)
    estimate = result.scores.mlm_loss
    assert estimate.low == pytest.approx(loss - margin, rel=1e-5)
    assert estimate.high == pytest.approx(loss + margin, rel=1e-5)


def test_baselines_are_those_of_the_training_pieces_on_the_same_positions(trained: Trained) -> None:
    result = evaluate(TrainedRun.load(trained.run_dir), trained.data_set.folder)
    counts = Counter(
        int(piece)
        for block in trained.data_set.originals["train"]
        for piece in block.reshape(-1)
        if piece >= 5
    )
    total = sum(counts.values()) + NUM_PIECES  # one more of each
    labels = [
        int(label)
        for block in trained.data_set.blocks["validation"]
        for row, count in zip(block["masked_lm_labels"], block["num_masked"], strict=True)
        for label in row[:count]
    ]
    loss = -sum(math.log((counts[label] + 1) / total) for label in labels) / len(labels)
    assert result.unigram_loss == pytest.approx(loss, rel=1e-12)
    most = max(counts.values())
    commonest = min(piece for piece, count in counts.items() if count == most)
    assert result.majority_accuracy == labels.count(commonest) / len(labels)
    pairs = [
        int(label)
        for block in trained.data_set.blocks["validation"]
        for label in block["next_sentence_label"]
    ]
    share = sum(pairs) / len(pairs)
    assert share not in (0.0, 0.5, 1.0)
    figures = result.figures()
    assert figures["nsp_majority_accuracy"] == max(share, 1 - share)
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert figures["nsp_entropy"] == pytest.approx(entropy, rel=1e-12)


def test_the_pair_baseline_by_hand() -> None:
    entropy, majority = pair_baseline(np.array([1, 0, 1, 1, 1], np.uint8))
    assert majority == 0.8
    assert entropy == pytest.approx(-(0.2 * math.log(0.2) + 0.8 * math.log(0.8)), rel=1e-12)
    assert pair_baseline(np.array([1, 1])) == (0.0, 1.0)


def test_a_data_set_of_single_segments_has_no_next_sentence_scores(
    tmp_path: Path, trained: Trained
) -> None:
    tokenizer = (trained.run_dir / "tokenizer.model").read_bytes()
    single = write_data_set(
        tmp_path, vocab_size=NUM_PIECES, tokenizer=tokenizer, pair_objective="none"
    )
    result = evaluate(TrainedRun.load(trained.run_dir), tmp_path)
    expected = means(scored_one_by_one(dataclasses.replace(trained, data_set=single), 19))
    assert result.scores.mlm_loss.value == pytest.approx(expected["mlm_loss"], rel=1e-5)
    assert result.scores.nsp_loss is None and result.scores.nsp_accuracy is None
    assert not any(name.startswith("nsp_") for name in result.figures())


def test_evaluation_uses_the_precision_of_training(tmp_path: Path, trained: Trained) -> None:
    tokenizer = trained.run_dir / "tokenizer.model"
    write_run(tmp_path / "run", tokenizer, MODEL, {"bf16": {"enabled": True}})
    run = TrainedRun.load(tmp_path / "run")
    assert run.precision == "bf16"
    in_bf16 = evaluate(run, trained.data_set.folder).scores.mlm_loss.value
    in_fp32 = evaluate(TrainedRun.load(trained.run_dir), trained.data_set.folder)
    assert in_bf16 != in_fp32.scores.mlm_loss.value
    assert in_bf16 == pytest.approx(in_fp32.scores.mlm_loss.value, rel=0.02)  # 8 bits of mantissa


def test_piece_counts_are_those_of_the_originals(trained: Trained) -> None:
    data_set = trained.data_set
    reader = SampleReader(data_set.folder, data_set.manifest, "train")
    originals = data_set.originals["train"]

    def counted(num_blocks: int) -> list[int]:
        pieces = [piece for block in originals[:num_blocks] for piece in block.reshape(-1)]
        return [0] * 5 + [pieces.count(piece) for piece in range(5, NUM_PIECES)]

    for max_blocks in (2, 6, 7):
        counts = piece_counts(reader, NUM_PIECES, max_blocks)
        assert counts.tolist() == counted(max_blocks)


def test_the_unigram_baseline_by_hand() -> None:
    counts = np.array([0, 5, 2, 0])
    loss, accuracy = unigram_baseline(counts, np.array([1, 1, 2, 3]))
    shares = [6 / 11, 6 / 11, 3 / 11, 1 / 11]  # each counted once more, 7 + 4 in all
    assert loss == pytest.approx(-sum(map(math.log, shares)) / 4, rel=1e-12)
    assert accuracy == 0.5


def test_perplexity_is_the_number_of_equally_likely_pieces() -> None:
    loss = Estimate(math.log(37), math.log(31), math.log(41))
    perplexity = Scores(3, 5, mlm_loss=loss, mlm_accuracy=Estimate(0.5, 0.25, 0.75)).mlm_perplexity
    assert dataclasses.astuple(perplexity) == pytest.approx((37, 31, 41))


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path, trained: Trained) -> None:
    write_data_set(tmp_path, vocab_size=NUM_PIECES, tokenizer=b"another one")
    with pytest.raises(UserError, match=rf"--shards {tmp_path}: were made with another tokenizer"):
        evaluate(TrainedRun.load(trained.run_dir), tmp_path)


def test_a_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"--checkpoint {folder}: has no latest checkpoint"):
            TrainedRun.load(folder)


def test_the_best_checkpoint_is_taken_where_it_is_asked_for(
    tmp_path: Path, tokenizer: Path
) -> None:
    write_run(tmp_path, tokenizer, MODEL, FP32, step=23)
    with pytest.raises(UserError, match="has no best checkpoint"):
        TrainedRun.load(tmp_path, "best")
    (tmp_path / "checkpoints/best").write_text("step-000000023")
    write_run(tmp_path, tokenizer, MODEL, FP32, step=29)
    assert TrainedRun.load(tmp_path, "best").step == 23
    assert TrainedRun.load(tmp_path).step == 29


def test_a_run_of_another_programs_config_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    write_run(tmp_path, tokenizer, MODEL, FP32)
    (tmp_path / "config.json").write_text('{"model": {"depth": 3}, "deepspeed": {}}')
    with pytest.raises(UserError, match=r"config\.json: unknown key depth; known: vocab_size"):
        TrainedRun.load(tmp_path)


def test_the_model_is_the_saved_one(trained: Trained) -> None:
    model = TrainedRun.load(trained.run_dir).model
    assert not model.training
    assert isinstance(MODEL, ModelConfig)
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(model.state_dict()[name].cpu(), weight)
