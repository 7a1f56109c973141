"""What goes from layer to layer, and attention weights that are those of the model's attention."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_bert.common.errors import UserError
from dist_bert.inference.hidden_states import (
    attention_weights,
    hidden_states,
    resolve_layer,
    shares_by_direction,
    shares_on_neighbours,
)
from dist_bert.model.bert import BertEncoder
from dist_bert.model.config import ModelConfig
from dist_bert.model.micro_batches import from_sequences
from tests.support.synthetic import TINY_MODEL

NUM_LAYERS = TINY_MODEL.num_hidden_layers
SEQUENCES = [[2, 41, 17, 17, 60, 3], [2, 30, 3], [2, 77, 5, 100, 3]]


MODERN = dataclasses.replace(
    TINY_MODEL,
    architecture="modern",
    norm="pre",
    positions="rotary",
    feed_forward="geglu",
    bias=False,
    type_vocab_size=0,
    global_attn_every_n_layers=2,
    local_attention=4,  # of texts of six tokens
    global_rope_theta=160_000.0,
)


@pytest.fixture(scope="module")
def encoder() -> BertEncoder:
    return make_encoder(TINY_MODEL)


def make_encoder(config: ModelConfig) -> BertEncoder:
    torch.manual_seed(5)
    encoder = BertEncoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return encoder


def batch_of(sequences: list[list[int]]) -> dict[str, Any]:
    return from_sequences(sequences, torch.device("cpu"))


def test_layers_follow_one_another_from_embeddings_to_output(encoder: BertEncoder) -> None:
    batch = batch_of(SEQUENCES)
    embeddings = encoder.word_embeddings(batch["input_ids"])
    embeddings = embeddings + encoder.token_type_embeddings.weight[0]
    embeddings = encoder.embeddings_norm(
        embeddings + encoder.position_embeddings(batch["position_ids"])
    )
    states = [hidden_states(encoder, batch, layer) for layer in range(NUM_LAYERS + 1)]
    torch.testing.assert_close(states[0], embeddings)
    assert torch.equal(states[-1], encoder(**batch))
    assert not torch.allclose(states[0], states[1]) and not torch.allclose(states[1], states[2])
    cut = BertEncoder(TINY_MODEL).eval()  # without the last layer, the one before is the output
    cut.load_state_dict(encoder.state_dict())
    del cut.layers[-1]
    assert torch.equal(cut(**batch), states[-2])
    assert not any(layer._forward_pre_hooks for layer in encoder.layers), "nothing stays behind"


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
@pytest.mark.parametrize("config", [TINY_MODEL, MODERN], ids=["bert", "modern"])
def test_weights_times_values_are_what_the_models_attention_gives(
    config: ModelConfig, layer: int
) -> None:
    encoder, batch = make_encoder(config), batch_of(SEQUENCES[:1])
    block: Any = encoder.layers[layer]
    contexts: list[Tensor] = []
    hook = block.attention_output.register_forward_pre_hook(
        lambda module, arguments: contexts.append(arguments[0])
    )
    hidden = hidden_states(encoder, batch, layer)
    encoder(**batch)
    hook.remove()
    weights = attention_weights(block, hidden)
    num_heads, length = TINY_MODEL.num_attention_heads, len(SEQUENCES[0])
    assert weights.shape == (num_heads, length, length) and weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(num_heads, length))
    inner = block.attention_norm(hidden) if config.norm == "pre" else hidden
    values = block.qkv(inner)[:, 2 * TINY_MODEL.hidden_size :]  # (S, H)
    heads = values.view(length, num_heads, -1).transpose(0, 1)  # (N, S, D)
    context = (weights @ heads).transpose(0, 1).reshape(length, -1)
    torch.testing.assert_close(context, contexts[-1])
    assert weights.std(-1).min() > 0.01, "uniform weights would hide an error"
    has_window = config.norm == "pre" and layer == 1
    assert (weights[:, 0, 3:] == 0).all() == has_window


def test_shares_by_hand() -> None:
    weights = torch.tensor(
        [
            [1.0, 0.0, 0.0, 0.0],  # [CLS], left out
            [0.1, 0.2, 0.3, 0.4],
            [0.2, 0.5, 0.2, 0.1],
            [0.0, 0.0, 1.0, 0.0],  # [SEP], left out
        ]
    )
    shares = shares_by_direction(weights)
    expected = {"left": 0.25, "itself": 0.2, "right": 0.15, "special": 0.4}
    assert shares == pytest.approx(expected)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_shares_on_neighbours_by_hand() -> None:
    weights = torch.tensor(
        [
            [0.0, 1.0, 0.0, 0.0],  # [CLS], left out
            [0.1, 0.2, 0.3, 0.4],
            [0.2, 0.5, 0.1, 0.2],
            [0.0, 0.0, 1.0, 0.0],  # [SEP], left out
        ]
    )
    even = torch.full((4, 4), 0.25)
    expected = [(0.1 + 0.3 + 0.5 + 0.2) / 2, 2 / 4]
    assert shares_on_neighbours(torch.stack([weights, even])) == pytest.approx(expected)


def test_layers_count_from_both_ends() -> None:
    assert [resolve_layer(layer, 5) for layer in (0, 3, 5, -1, -6)] == [0, 3, 5, 5, 0]
    for layer in (6, -7):
        with pytest.raises(UserError, match=rf"--layer {layer}: 0 = embeddings, 1 to 5 are"):
            resolve_layer(layer, 5)
    for layer in (0, -6):
        with pytest.raises(UserError, match=rf"--layer {layer}: .* attend to nothing: 1 to 5"):
            resolve_layer(layer, 5, lowest=1)
