"""Activations by arithmetic against what autograd holds, and the largest micro-batch that fits."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_bert.checkpoint import writer
from dist_bert.common.settings import resolve
from dist_bert.model import bert as model_module
from dist_bert.model import kernels
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.training.memory import (
    LOGITS_AT_ONCE,
    MARGIN,
    NUM_SNAPSHOTS,
    SampleSize,
    activation_bytes,
    checkpoint_bytes,
    largest_micro_batch,
    layer_bytes,
    plan_memory,
    state_bytes,
    update_bytes,
)
from dist_bert.training.zero_layout import ZeroLayout
from tests.support.synthetic import MODERN_PARTS

ROOT = Path(__file__).parents[3]
MODEL = ModelConfig(
    vocab_size=701,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=101,
    max_position_embeddings=53,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
MODERN: dict[str, Any] = {
    **MODERN_PARTS,
    "global_attn_every_n_layers": 2,
    "local_attention": 10,
    "global_rope_theta": 160_000.0,
}
LENGTH, NUM_SAMPLES, NUM_MASKED = 23, 5, 17


def make_layout(model: ModelConfig = MODEL, **values: Any) -> ZeroLayout:
    defaults: dict[str, Any] = {
        "num_ranks": 2,
        "stage": 2,
        "precision": "bf16",
        "accumulation_steps": 1,
        "overlaps": True,
        "num_buffers": 2,
        "bucket_size": 40_000,
        "prefetch_size": 10_000,
        "persistence_threshold": 100,
    }
    return ZeroLayout(model=model, **{**defaults, **values})


def bytes_saved(
    model: ModelConfig,
    dtype: torch.dtype,
    device: str,
    checkpointing: bool,
    length: int = LENGTH,
    num_masked: int = NUM_MASKED,
) -> int:
    """What autograd keeps for the backward pass of one micro-batch, parameters left out."""
    num_tokens = NUM_SAMPLES * length
    kept: dict[int, torch.UntypedStorage] = {}  # holds them, so that no address comes twice
    with torch.device(device):
        bert = BertForPreTraining(model).to(dtype)
        bert.encoder.activation_checkpointing = checkpointing
        parameters = {p.untyped_storage()._cdata for p in bert.parameters()}
        batch = {
            "input_ids": torch.ones(num_tokens, dtype=torch.int64),
            "token_type_ids": torch.zeros(num_tokens, dtype=torch.int64),
            "position_ids": torch.zeros(num_tokens, dtype=torch.int64),
            "cu_seqlens": torch.arange(0, num_tokens + 1, length, dtype=torch.int32),
            "masked_lm_positions": torch.arange(num_masked),
            "masked_lm_labels": torch.ones(num_masked, dtype=torch.int64),
            "next_sentence_label": torch.zeros(NUM_SAMPLES, dtype=torch.int64),
        }

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                kept[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = bert(
                **batch, max_seqlen=length, num_masked=num_masked, num_samples=NUM_SAMPLES
            )
        assert loss.requires_grad
        return sum(storage.nbytes() for storage in kept.values())


def planned_saved(
    model: ModelConfig,
    weight_bytes: int,
    checkpointing: bool,
    length: int = LENGTH,
    num_masked: int = NUM_MASKED,
) -> int:
    """The plan's activations without what is gone again when the forward pass is over."""
    sample = SampleSize(length, num_masked / NUM_SAMPLES)
    items = activation_bytes(model, weight_bytes, sample, NUM_SAMPLES, checkpointing)
    gone = ["the layer computed again", "part of the loss in float32"]
    # What a layer is given to be computed again is kept beside what autograd saves.
    for passing in [*gone, "rotations"] if checkpointing else gone:
        items.pop(passing, None)
    return sum(items.values())


@contextlib.contextmanager
def gpu_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The GPU's attention kernel on tensors without contents, where there is no GPU."""
    with monkeypatch.context() as patch:
        patch.setattr(model_module, "can_use_varlen_kernel", lambda *arguments: True)
        yield


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"attention_probs_dropout_prob": 0.1},  # the noise is drawn again, not kept
        {"hidden_act": "relu"},
        {"mlm_hidden_act": "relu", "intermediate_size": 307},
        {"norm": "pre"},
        {"positions": "rotary"},
        {"feed_forward": "geglu", "intermediate_size": 307},
        {"feed_forward": "geglu", "hidden_act": "relu"},
        MODERN,
    ],
    ids=str,
)
def test_on_a_gpu_autograd_keeps_what_is_planned(
    change: dict[str, Any], checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dataclasses.replace(MODEL, **change)
    with gpu_attention(monkeypatch):
        saved = bytes_saved(model, torch.bfloat16, "meta", checkpointing)
    assert saved == pytest.approx(planned_saved(model, 2, checkpointing), rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["modern_base", "modern_large"])
def test_of_samples_of_8192_tokens_autograd_keeps_what_is_planned(
    name: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the published sizes, on tensors without contents."""
    model = resolve(ModelConfig, ROOT / f"configs/model/{name}.json")
    size = (8_192, NUM_SAMPLES * 1_228)  # 15 % of the tokens
    with gpu_attention(monkeypatch):
        saved = bytes_saved(model, torch.bfloat16, "meta", checkpointing, *size)
    assert saved == pytest.approx(planned_saved(model, 2, checkpointing, *size), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cpu_autograd_keeps_the_same_without_statistics_of_softmax(dtype: torch.dtype) -> None:
    saved = bytes_saved(MODEL, dtype, "cpu", checkpointing=False)
    statistics = MODEL.num_hidden_layers * 4 * MODEL.num_attention_heads * NUM_SAMPLES * LENGTH
    planned = planned_saved(MODEL, dtype.itemsize, checkpointing=False) - statistics
    assert saved == pytest.approx(planned, rel=0.01)


def test_the_part_of_the_loss_in_float32_is_the_kernels() -> None:
    assert LOGITS_AT_ONCE == kernels._LOGITS_AT_ONCE


def test_as_many_copies_are_planned_as_saves_may_be_pending() -> None:
    assert NUM_SNAPSHOTS == writer.MAX_PENDING


def test_dropout_keeps_a_mask_of_each_output() -> None:
    """On CPU it is of the weights' type; on a GPU of one byte, which is what is planned."""
    dropping = dataclasses.replace(MODEL, hidden_dropout_prob=0.1)
    plain, dropped = (
        bytes_saved(model, torch.float32, "cpu", checkpointing=False) for model in (MODEL, dropping)
    )
    num_masks = (dropped - plain) / (4 * NUM_SAMPLES * LENGTH * MODEL.hidden_size)
    assert num_masks == 2 * MODEL.num_hidden_layers + 1
    added = planned_saved(dropping, 2, False) - planned_saved(MODEL, 2, False)
    assert added == num_masks * NUM_SAMPLES * LENGTH * MODEL.hidden_size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_kernels_themselves_keep_what_is_planned() -> None:
    model = dataclasses.replace(MODEL, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    saved = bytes_saved(model, torch.bfloat16, "cuda", checkpointing=False)
    assert saved == pytest.approx(planned_saved(model, 2, checkpointing=False), rel=0.02)


def test_a_layer_of_bert_base_is_24_kb_a_token() -> None:
    base = dataclasses.replace(ModelConfig(), hidden_dropout_prob=0.0)
    assert layer_bytes(base, 2) == 2 * (8 * 768 + 2 * 3_072) + 16 + 4 * 12 == 24_640


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_largest_micro_batch_fits_and_one_more_does_not(checkpointing: bool) -> None:
    layout = make_layout(ModelConfig())
    sample = SampleSize(128, 19.0)
    memory = 24e9
    size = largest_micro_batch(layout, sample, checkpointing, memory)
    peaks = [plan_memory(layout, sample, n, checkpointing).peak for n in (size, size + 1)]
    assert peaks[0] <= memory * (1 - MARGIN) < peaks[1]
    assert largest_micro_batch(layout, sample, checkpointing, 3e9) == 0
    without = largest_micro_batch(layout, sample, False, memory)
    assert size == without if not checkpointing else size > 2 * without


def test_the_peak_is_the_backward_pass_or_the_update() -> None:
    sample = SampleSize(LENGTH, 3.0)
    layout = make_layout(stage=0, num_buffers=0)
    small, large = (plan_memory(layout, sample, size, False) for size in (0, 1_000))
    assert sum(small.activations.values()) == 0
    assert small.peak - sum(small.states.values()) == 2 * 2**30 + 4 * layout.num_parameters
    assert large.peak - small.peak == sum(large.activations.values()) - 4 * layout.num_parameters


def test_memory_of_an_optimizer_of_ours() -> None:
    """A checkpoint does not depend on ranks; Muon keeps one moment of the layers' matrices."""
    adamw, muon = (make_layout(num_ranks=4, optimizer=name) for name in ("AdamW", "Muon"))
    assert checkpoint_bytes(adamw) == 12 * adamw.num_parameters
    assert checkpoint_bytes(muon) == 12 * muon.num_parameters - 4 * sum(muon.groups[0])
    averaged = make_layout(num_ranks=4, has_average=True)
    assert checkpoint_bytes(averaged) == 16 * adamw.num_parameters
    assert state_bytes(muon)["Muon moments"] == 4 * muon.num_moments
    assert state_bytes(adamw)["AdamW moments"] == 8 * adamw.num_owned
    stable = make_layout(num_ranks=4, optimizer="StableAdamW")
    assert update_bytes(stable)["updates"] == 12 * stable.num_in_largest_group
    assert "updates" not in update_bytes(adamw)
