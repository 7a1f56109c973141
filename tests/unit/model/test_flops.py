"""The count of operations against torch's own, on the real model."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dist_bert.model.attention import SampleLayout, locate_samples
from dist_bert.model.bert import BertEncoder, BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.flops import (
    attention_pairs,
    measured_matmul_flops,
    peak_flops,
    training_flops,
)
from tests.support.synthetic import TINY_MODEL

MODERN: dict[str, Any] = {
    "architecture": "modern",
    "norm": "pre",
    "positions": "rotary",
    "feed_forward": "geglu",
    "bias": False,
    "type_vocab_size": 0,
    "num_hidden_layers": 5,
    "global_attn_every_n_layers": 3,  # layers 0 and 3
}
MODEL = dataclasses.replace(TINY_MODEL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(autouse=True)
def padded_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs without the varlen kernel: on CPU the backward pass computes scores again."""

    def layout(encoder: Any, hidden: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> SampleLayout:
        return locate_samples(cu_seqlens, max_seqlen, len(hidden), False, encoder.window)

    monkeypatch.setattr(BertEncoder, "_layout", layout)


def counted_flops(model: ModelConfig, lengths: list[int], num_masked: int) -> int:
    """What torch counts of the matrix products in forward and backward of one micro-batch."""
    starts = torch.tensor([0, *lengths]).cumsum(0)
    num_tokens = int(starts[-1])
    rng = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(5, model.vocab_size, (num_tokens,), generator=rng),
        "token_type_ids": torch.zeros(num_tokens, dtype=torch.int64),
        "position_ids": torch.cat([torch.arange(length) for length in lengths]),
        "cu_seqlens": starts.int(),
        "max_seqlen": max(lengths),
        "masked_lm_positions": torch.arange(num_masked),
        "masked_lm_labels": torch.full((num_masked,), 7),
        "next_sentence_label": torch.zeros(len(lengths), dtype=torch.int64),
        "num_masked": num_masked,
        "num_samples": len(lengths),
    }
    bert = BertForPreTraining(model)
    # Attention as plain products, which the counter sees; its CPU kernels it does not know.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss, _ = bert(**batch)
        loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "model,lengths,num_masked",
    [
        (MODEL, [13, 13, 13], 5),
        (dataclasses.replace(MODEL, num_hidden_layers=3, hidden_size=32), [7, 7, 7, 7], 11),
        (dataclasses.replace(MODEL, intermediate_size=53, vocab_size=257), [41], 3),
        (dataclasses.replace(MODEL, **MODERN), [13, 13, 13], 5),  # no longer than the window
    ],
)
def test_of_samples_of_equal_length_it_is_the_exact_count(
    model: ModelConfig, lengths: list[int], num_masked: int
) -> None:
    """To the last operation: only matrix products count, in both.

    What neither has: activations, LayerNorms, softmax, biases, the optimizer, some 1 to 2 % of the
    work at BERT's sizes.
    """
    pairs = int(attention_pairs(model, np.array(lengths)).sum())
    expected = training_flops(model, sum(lengths), pairs, num_masked, len(lengths))
    assert expected == counted_flops(model, lengths, num_masked)


def test_of_samples_of_different_lengths_it_leaves_padding_out() -> None:
    """The padded view has 3 x 13 x 13 pairs for 243 real ones."""
    lengths = [13, 7, 5]
    layers = MODEL.num_hidden_layers
    pairs = int(attention_pairs(MODEL, np.array(lengths)).sum())
    padded_pairs = layers * len(lengths) * max(lengths) ** 2
    of_real, of_padded = (
        training_flops(MODEL, sum(lengths), num_pairs, 5, len(lengths))
        for num_pairs in (pairs, padded_pairs)
    )
    assert of_padded == counted_flops(MODEL, lengths, 5)
    wasted = 12 * MODEL.hidden_size * (padded_pairs - pairs)
    assert of_padded - of_real == wasted > 0


def test_a_local_layer_counts_the_pairs_of_its_window_alone() -> None:
    """By counting them: samples below, at and above the window of 4 tokens on each side."""
    model = dataclasses.replace(MODEL, **MODERN, local_attention=8)
    lengths = np.array([1, 3, 4, 5, 6, 17, 41])
    num_near = [int((abs(np.subtract.outer(p, p)) <= 4).sum()) for p in map(np.arange, lengths)]
    found = attention_pairs(model, lengths)
    assert found.tolist() == (2 * lengths**2 + 3 * np.array(num_near)).tolist()
    assert attention_pairs(model, lengths.astype(float)).tolist() == found.tolist()
    all_global = dataclasses.replace(model, global_attn_every_n_layers=1)
    assert attention_pairs(all_global, lengths).tolist() == (5 * lengths**2).tolist()


def test_it_is_near_6_per_weight_and_token_for_bert_base() -> None:
    # The rule of thumb for dense models; the rest is attention, and the MLM head on 15 % only.
    encoder_weights = 12 * 12 * 768**2
    flops = training_flops(ModelConfig(), 512 * 10, 12 * 512**2 * 10, 76 * 10, 10)
    assert 1.0 < flops / (6 * encoder_weights * 512 * 10) < 1.2


def test_the_measured_speed_is_a_possible_one() -> None:
    speed = measured_matmul_flops(torch.device("cpu"), torch.float32, (64, 256))
    assert 1e8 < speed < 1e14  # from a slow core under load to the largest servers


def test_sizes_that_would_pass_the_limit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without bf16 instructions: 2,048 wide, a product would take half a minute."""
    clock, asked = [0.0], []

    class Matrix:
        def __init__(self, size: int, device: object = None) -> None:
            self.size = size

        def to(self, dtype: torch.dtype) -> "Matrix":
            return self

        def __matmul__(self, other: "Matrix") -> None:
            asked.append(self.size)
            clock[0] += 2.0 * self.size**3 / 1e9  # 1 GFLOP/s

    monkeypatch.setattr(torch, "randn", lambda *shape, device: Matrix(shape[0]))
    monkeypatch.setattr("dist_bert.model.flops.time.perf_counter", lambda: clock[0])
    speed = measured_matmul_flops(torch.device("cpu"), torch.bfloat16, (256, 512, 2_048), 1.0)
    assert speed == pytest.approx(1e9)
    assert max(asked) == 256 and clock[0] < 0.5
    asked.clear()
    measured_matmul_flops(torch.device("cpu"), torch.bfloat16, (256, 512, 2_048), 3.0)
    assert max(asked) == 512


@pytest.mark.parametrize(
    "name,peak",
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA B200", 2_250e12),
    ],
)
def test_known_devices_have_the_peak_of_their_data_sheet(
    name: str, peak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0), "bf16") == peak


@pytest.mark.parametrize(
    ("device", "name", "precision", "has_bf16", "expected"),
    [
        ("cuda", "Some Card 9000", "bf16", False, {torch.float32, torch.bfloat16}),
        ("cuda", "NVIDIA RTX A1000", "bf16", False, {torch.float32, torch.bfloat16}),  # no A100
        ("cuda", "NVIDIA L40", "fp16", False, {torch.float32, torch.float16}),  # no L4
        ("cuda", "NVIDIA H200", "fp32", False, {torch.float32}),
        ("cpu", "", "bf16", True, {torch.float32, torch.bfloat16}),
        ("cpu", "", "bf16", False, {torch.float32}),
        ("cpu", "", "fp32", True, {torch.float32}),
    ],
)
def test_others_are_measured_in_every_type_that_a_run_uses(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    name: str,
    precision: str,
    has_bf16: bool,
    expected: set[torch.dtype],
) -> None:
    speeds = {torch.float32: 5e9, torch.bfloat16: 7e9, torch.float16: 7e9}
    asked = []

    def measure(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...]) -> float:
        asked.append(dtype)
        return speeds[dtype]

    monkeypatch.setattr("dist_bert.model.flops.measured_matmul_flops", measure)
    monkeypatch.setattr("dist_bert.model.flops.has_bf16_instructions", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device(device), precision) == max(speeds[d] for d in expected)
    assert set(asked) == expected
