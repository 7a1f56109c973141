"""Looks into the encoder from outside: what goes from layer to layer, and who attends to whom.

By hooks, so that nothing of it stands in the path of training. Layer 0 is the embeddings, layer n
what the n-th layer of the stack gives out; the last one's is after the final norm, where there is
one.

Shapes: T tokens of the batch, S tokens of one text, H hidden, N heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor

from dist_bert.common.errors import UserError
from dist_bert.model.bert import BertEncoder, BertLayer
from dist_bert.model.rotary import rotation


def resolve_layer(layer: int, num_layers: int, lowest: int = 0) -> int:
    """A layer's number from 0; negative ones count from the end, -1 is the last.

    Raises:
        UserError: there is no such layer, or it is below `lowest`.
    """
    number = layer if layer >= 0 else num_layers + 1 + layer
    if not lowest <= number <= num_layers:
        meaning = "0 = embeddings, " if lowest == 0 else "the embeddings attend to nothing: "
        raise UserError(
            f"--layer {layer}: {meaning}{max(lowest, 1)} to {num_layers} are this model's layers,"
            f" -1 the last one"
        )
    return number


@torch.no_grad()
def hidden_states(encoder: BertEncoder, batch: dict[str, Any], layer: int) -> Tensor:
    """What a layer gives out, (T, H); `batch` has the arguments of `encoder.forward`."""
    if layer == len(encoder.layers):
        output: Tensor = encoder(**batch)
        return output
    inputs: list[Tensor] = []
    hook = encoder.layers[layer].register_forward_pre_hook(
        lambda module, arguments: inputs.append(arguments[0])
    )
    try:
        encoder(**batch)
    finally:
        hook.remove()
    return inputs[0]


@torch.no_grad()
def attention_weights(layer: BertLayer, hidden: Tensor) -> Tensor:
    """How much each token of one text takes from each; the fast kernels do not keep it.

    Args:
        layer: whose attention.
        hidden: (S, H), what goes into the layer.

    Returns:
        (N, S, S) in float32: head, token that attends, token attended to. Rows sum to 1.
    """
    places = torch.arange(len(hidden), device=hidden.device)
    turn = None
    if layer.rope_theta is not None:
        turn = rotation(places, hidden.shape[1] // layer.num_heads, layer.rope_theta)
    inner = layer.attention_norm(hidden) if layer.is_pre_norm else hidden
    qkv = layer.queries_keys_values(inner, turn).float()
    q, k, _ = qkv.view(len(hidden), 3, layer.num_heads, -1).permute(1, 2, 0, 3)  # (N, S, D) each
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    if layer.window is not None:
        is_far = (places[:, None] - places).abs() > layer.window
        scores = scores.masked_fill(is_far, -torch.inf)
    return torch.softmax(scores, dim=-1)


def shares_by_direction(weights: Tensor) -> dict[str, float]:
    """Where the attention of a text's tokens goes, on average.

    [CLS] and [SEP], which many heads use as a place to look at nothing, are counted apart, and how
    they attend themselves is left out.

    Args:
        weights: (S, S), rows sum to 1; [CLS] is the first token and [SEP] the last.

    Returns:
        Shares of 1: `left`, `itself`, `right`, `special`.
    """
    text = weights[1:-1, 1:-1]
    left, right = text.tril(-1).sum(1).mean(), text.triu(1).sum(1).mean()
    itself = text.diagonal().mean()
    special = weights[1:-1, [0, -1]].sum(1).mean()
    named = {"left": left, "itself": itself, "right": right, "special": special}
    return {name: float(share) for name, share in named.items()}


def shares_on_neighbours(weights: Tensor) -> list[float]:
    """How much of the attention of a text's tokens goes to the tokens beside them, in each head.

    The masked LM stays on the plateau of its beginning until some heads look there.

    Args:
        weights: (N, S, S), rows sum to 1; [CLS] is the first token and [SEP] the last.

    Returns:
        N shares of 1, means over the tokens without [CLS] and [SEP]; an even spread gives 2 / S.
    """
    after = weights.diagonal(1, 1, 2)[:, 1:]  # (N, S-2): from each token to the next
    before = weights.diagonal(-1, 1, 2)[:, :-1]
    shares: list[float] = (after + before).mean(1).tolist()
    return shares
