"""What the benchmark of training compares: the same samples, the same work."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_bert.data.batches import NO_LABEL, BatchShape, MicroBatch, unpad
from dist_bert.data.reader import SampleReader
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.micro_batches import to_device
from dist_bert.model.published_names import to_published
from dist_bert.tools.benchmark import training
from dist_bert.tools.benchmark.flags import add_train_flags
from dist_bert.tools.benchmark.modes import training_inputs
from dist_bert.tools.benchmark.training import (
    MODERN_INPUTS,
    padded_batches,
    padded_inputs,
    transformers_model,
)
from tests.support.synthetic import MODERN_PARTS, TINY_MODEL, write_data_set

MODEL = dataclasses.replace(TINY_MODEL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
MODERN = dataclasses.replace(
    MODEL,
    **MODERN_PARTS,
    num_hidden_layers=4,
    global_attn_every_n_layers=3,
    local_attention=6,
)
SHAPE = BatchShape(accumulation_steps=2, world_size=1, micro_batch_size=3)


@pytest.fixture
def reader(tmp_path: Path) -> SampleReader:
    return SampleReader(tmp_path, write_data_set(tmp_path).manifest, "train")


def test_micro_batches_are_of_samples_also_where_the_json_has_them_found(
    reader: SampleReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    parser = argparse.ArgumentParser()
    add_train_flags(parser)
    flags = ["--shards", str(tmp_path), "--deepspeed_config", "configs/zero1.json"]
    for given, expected in (
        ((), BatchShape(4, 2, 32)),
        (("--micro_batch_size", "8"), BatchShape(16, 2, 8)),
    ):
        _, deepspeed, _ = training_inputs(parser.parse_args([*flags, *given]))
        assert deepspeed.batch_shape == expected


def test_transformers_gets_our_samples(reader: SampleReader) -> None:
    """With our weights, padded inputs have the loss of unpadded ones, mean per kind of label."""
    columns = reader.gather(np.zeros(5, np.int64), np.arange(5))
    batch = unpad(columns)
    num_masked = int((batch["masked_lm_labels"] != NO_LABEL).sum())
    num_pairs = int((batch["next_sentence_label"] != NO_LABEL).sum())
    cpu = torch.device("cpu")
    ours = BertForPreTraining(MODEL).eval()
    loss, _ = ours(**to_device(batch, cpu), num_masked=num_masked, num_samples=num_pairs)
    theirs = transformers_model(MODEL).eval()
    theirs.load_state_dict(to_published(ours.state_dict(), MODEL))
    inputs = padded_inputs(columns)
    assert inputs["input_ids"].shape == (5, columns["num_tokens"].max())
    expected = theirs(**to_device(inputs, cpu)).loss
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_transformers_modern_bert_gets_our_samples(reader: SampleReader, is_sparse: bool) -> None:
    """Its loss is ours without the next-sentence head, which it does not have."""
    columns = reader.gather(np.zeros(5, np.int64), np.arange(5))
    batch = unpad(columns)
    num_masked = int((batch["masked_lm_labels"] != NO_LABEL).sum())
    cpu = torch.device("cpu")
    ours = BertForPreTraining(MODERN).eval()
    _, metrics = ours(**to_device(batch, cpu), num_masked=num_masked, num_samples=5)
    theirs = transformers_model(MODERN, is_sparse=is_sparse).eval()
    theirs.load_state_dict(to_published(ours.state_dict(), MODERN))
    padded = padded_inputs(columns)
    inputs = {name: padded[name] for name in MODERN_INPUTS}
    made = theirs(**to_device(inputs, cpu))
    assert metrics[0].item() == pytest.approx(made.loss.item(), abs=1e-5)
    scored = (num_masked,) if is_sparse else inputs["labels"].shape
    assert made.logits.shape == (*scored, MODERN.vocab_size)


@pytest.mark.parametrize("is_sorted", [False, True])
def test_all_samples_of_the_global_batch_come_once(reader: SampleReader, is_sorted: bool) -> None:
    batches = padded_batches(reader, SHAPE, 0, is_sorted)
    lengths = [batch["attention_mask"].sum(1).tolist() for batch in batches]
    assert [len(batch) for batch in lengths] == [3, 3]
    flat = [length for batch in lengths for length in batch]
    assert is_sorted == (flat == sorted(flat, reverse=True))
    for batch, num_tokens in zip(batches, lengths, strict=True):
        assert batch["input_ids"].shape[1] == max(num_tokens)


def test_flash_attention_3_is_used_in_its_own_turns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(training, "use_flash_attention_3", lambda: calls.append("3"))
    monkeypatch.setattr(
        torch.nn.attention, "restore_flash_attention_impl", lambda: calls.append("2")
    )

    def fail(engine: Any, micro_batches: list[MicroBatch]) -> None:
        calls.append("step")
        raise ValueError("out of memory")

    monkeypatch.setattr(training, "our_step", fail)
    with pytest.raises(ValueError):
        training._flash_attention_3_step(None, [])
    assert calls == ["3", "step", "2"]
