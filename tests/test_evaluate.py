"""Scores on held-out samples against sums made one sample at a time, and baselines by hand."""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_bert import evaluate as evaluate_module
from dist_bert.config import ModelConfig
from dist_bert.data import piece_counts
from dist_bert.errors import UserError
from dist_bert.evaluate import Evaluation, evaluate, unigram_baseline
from dist_bert.inference import TrainedRun
from dist_bert.reader import SampleReader
from dist_bert.tokenizer import train_tokenizer
from dist_bert.tokenizer_config import TokenizerConfig
from tests.corpus import english_sentences
from tests.synthetic import TINY_MODEL, DataSet, write_data_set, write_run

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


def scored_one_by_one(trained: Trained, num_samples: int) -> dict[str, float]:
    """Sums over the first validation samples, each alone, through log_softmax."""
    samples = [
        {field: values[row] for field, values in block.items()}
        for block in trained.data_set.blocks["validation"]
        for row in range(block["num_tokens"].size)
    ]
    sums: Counter[str] = Counter()
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
        sums["num_masked"] += num_masked
        sums["mlm_loss"] -= float(mlm[torch.arange(num_masked), labels].sum())  # type: ignore[assignment]
        sums["mlm_accuracy"] += int((mlm.argmax(-1) == labels).sum())
        sums["nsp_loss"] -= float(nsp[label])  # type: ignore[assignment]
        sums["nsp_accuracy"] += int(nsp.argmax() == label)
    count = min(num_samples, len(samples))
    means = {"num_samples": float(count), "num_masked": float(sums["num_masked"])}
    for name in ("mlm_loss", "mlm_accuracy"):
        means[name] = sums[name] / sums["num_masked"]
    for name in ("nsp_loss", "nsp_accuracy"):
        means[name] = sums[name] / count
    return means


@pytest.mark.parametrize("max_samples", [0, 5])
def test_scores_are_those_of_the_samples_one_by_one(
    trained: Trained, max_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = dataclasses.replace(evaluate_module._SHAPE, micro_batch_size=4)  # several batches
    monkeypatch.setattr(evaluate_module, "_SHAPE", shape)
    run = TrainedRun.load(trained.run_dir)
    assert (run.step, run.precision, run.config) == (17, "fp32", MODEL)
    result = evaluate(run, trained.data_set.folder, max_samples)
    expected = scored_one_by_one(trained, max_samples or 19)
    got = dataclasses.asdict(result)
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert result.step == 17
    assert result.mlm_perplexity == math.exp(result.mlm_loss)


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


def test_a_data_set_of_single_segments_has_no_next_sentence_scores(
    tmp_path: Path, trained: Trained
) -> None:
    tokenizer = (trained.run_dir / "tokenizer.model").read_bytes()
    single = write_data_set(
        tmp_path, vocab_size=NUM_PIECES, tokenizer=tokenizer, pair_objective="none"
    )
    result = evaluate(TrainedRun.load(trained.run_dir), tmp_path)
    expected = scored_one_by_one(dataclasses.replace(trained, data_set=single), 19)
    assert result.mlm_loss == pytest.approx(expected["mlm_loss"], rel=1e-5)
    assert result.nsp_loss is None and result.nsp_accuracy is None


def test_evaluation_uses_the_precision_of_training(tmp_path: Path, trained: Trained) -> None:
    tokenizer = trained.run_dir / "tokenizer.model"
    write_run(tmp_path / "run", tokenizer, MODEL, {"bf16": {"enabled": True}})
    run = TrainedRun.load(tmp_path / "run")
    assert run.precision == "bf16"
    in_bf16 = evaluate(run, trained.data_set.folder)
    in_fp32 = evaluate(TrainedRun.load(trained.run_dir), trained.data_set.folder)
    assert in_bf16.mlm_loss != in_fp32.mlm_loss
    assert in_bf16.mlm_loss == pytest.approx(in_fp32.mlm_loss, rel=0.02)  # 8 bits of mantissa


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
    values = {field.name: 0.0 for field in dataclasses.fields(Evaluation)}
    evaluation = Evaluation(**{**values, "mlm_loss": math.log(37)})  # type: ignore[arg-type]
    assert evaluation.mlm_perplexity == pytest.approx(37)


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path, trained: Trained) -> None:
    write_data_set(tmp_path, vocab_size=NUM_PIECES, tokenizer=b"another one")
    with pytest.raises(UserError, match=rf"--shards {tmp_path}: were made with another tokenizer"):
        evaluate(TrainedRun.load(trained.run_dir), tmp_path)


def test_a_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"--checkpoint {folder}: has no latest checkpoint"):
            TrainedRun.load(folder)


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
