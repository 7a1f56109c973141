"""The encoder once more, as plainly as can be: one text and one head after the other, no kernels.

For combinations of parts that no other implementation has.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_bert.model.config import ModelConfig

Weights = Mapping[str, Tensor]


def encode(weights: Weights, config: ModelConfig, batch: dict[str, Any]) -> Tensor:
    """(T, H), differentiable by the weights; the arguments of `BertEncoder.forward` in a batch."""
    bounds = batch["cu_seqlens"].tolist()
    return torch.cat(
        [
            encode_text(
                weights,
                config,
                batch["input_ids"][start:end],
                batch["token_type_ids"][start:end],
                batch["position_ids"][start:end],
            )
            for start, end in itertools.pairwise(bounds)
        ]
    )


def encode_text(
    weights: Weights, config: ModelConfig, ids: Tensor, segments: Tensor, positions: Tensor
) -> Tensor:
    """One text: three times (S,) to (S, H)."""
    is_pre = config.norm == "pre"
    hidden = weights["encoder.word_embeddings.weight"][ids]
    if config.type_vocab_size:
        hidden = hidden + weights["encoder.token_type_embeddings.weight"][segments]
    if config.positions == "learned":
        hidden = hidden + weights["encoder.position_embeddings.weight"][positions]
    hidden = norm(weights, config, "encoder.embeddings_norm", hidden)
    for index in range(config.num_hidden_layers):
        name = f"encoder.layers.{index}"
        if is_pre:
            inner = hidden
            if index > 0:
                inner = norm(weights, config, f"{name}.attention_norm", hidden)
            hidden = hidden + attend(weights, config, index, inner, positions)
            inner = norm(weights, config, f"{name}.feed_forward_norm", hidden)
            hidden = hidden + feed_forward(weights, config, name, inner)
        else:
            hidden = hidden + attend(weights, config, index, hidden, positions)
            hidden = norm(weights, config, f"{name}.attention_norm", hidden)
            hidden = hidden + feed_forward(weights, config, name, hidden)
            hidden = norm(weights, config, f"{name}.output_norm", hidden)
    return norm(weights, config, "encoder.final_norm", hidden) if is_pre else hidden


def linear(weights: Weights, name: str, values: Tensor) -> Tensor:
    product = values @ weights[f"{name}.weight"].T
    return product + weights[f"{name}.bias"] if f"{name}.bias" in weights else product


def norm(weights: Weights, config: ModelConfig, name: str, values: Tensor) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
    scaled = centred / deviation * weights[f"{name}.weight"]
    return scaled + weights[f"{name}.bias"] if f"{name}.bias" in weights else scaled


def feed_forward(weights: Weights, config: ModelConfig, name: str, values: Tensor) -> Tensor:
    inner = linear(weights, f"{name}.intermediate", values)
    if config.feed_forward == "geglu":
        size = config.intermediate_size
        return linear(weights, f"{name}.output", F.gelu(inner[:, :size]) * inner[:, size:])
    return linear(weights, f"{name}.output", F.gelu(inner))


def attend(
    weights: Weights, config: ModelConfig, index: int, values: Tensor, positions: Tensor
) -> Tensor:
    name, size = f"encoder.layers.{index}", config.head_size
    is_global = index % config.global_attn_every_n_layers == 0
    qkv = linear(weights, f"{name}.qkv", values)
    theta = config.global_rope_theta if is_global else config.local_rope_theta
    contexts = []
    for head in range(config.num_attention_heads):
        q, k, v = (qkv[:, part * config.hidden_size + head * size :][:, :size] for part in range(3))
        if config.positions == "rotary":
            q, k = rotated(q, positions, theta), rotated(k, positions, theta)
        scores = q @ k.T / size**0.5
        if not is_global:
            distance = (torch.arange(len(q))[:, None] - torch.arange(len(q))).abs()
            scores = scores.masked_fill(distance > config.local_attention / 2, -torch.inf)
        contexts.append(scores.softmax(-1) @ v)
    return linear(weights, f"{name}.attention_output", torch.cat(contexts, -1))


def rotated(values: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Pairs (i, i + D/2) as complex numbers, each turned by its angle."""
    half = values.shape[1] // 2
    speeds = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = positions[:, None].double() * speeds
    turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
    turned = torch.complex(values[:, :half], values[:, half:]) * turns
    return torch.cat((turned.real, turned.imag), -1)
