"""Who attends to whom in a sentence: a picture, and the direction in numbers."""

from collections.abc import Sequence

from dist_bert.common.errors import UserError
from dist_bert.common.pictures import Panel, write_tables
from dist_bert.inference.embed import attention_of
from dist_bert.inference.hidden_states import (
    resolve_layer,
    shares_by_direction,
    shares_on_neighbours,
)
from dist_bert.inference.text_batches import Text
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.tokenizer.config import bare_piece

AXIS = "attends to (left of the diagonal: tokens before it; right: tokens after it)"


def show_attention(
    trained: TrainedRun, texts: Sequence[Text], layer: int, head: int | None, path: str
) -> None:
    """Draws who attends to whom in one sentence, and prints in which direction.

    Args:
        trained: the encoder.
        texts: the sentence, and no other.
        layer: 1 = first; negative from the end.
        head: from 1; None = the mean of all.
        path: of the PNG file.

    Raises:
        UserError: there are several sentences, or no such layer or head.
    """
    if len(texts) != 1:
        raise UserError("--attention: is drawn for one sentence; give just that one")
    num_layers, num_heads = trained.config.num_hidden_layers, trained.config.num_attention_heads
    layer = resolve_layer(layer, num_layers, lowest=1)
    if head is not None and not 1 <= head <= num_heads:
        raise UserError(f"--head {head}: this model's heads are 1 to {num_heads}")
    tokens, weights = attention_of(trained, texts[0], layer)
    if head is None:
        chosen, which = weights.mean(0), f"mean of {num_heads} heads"
    else:
        chosen, which = weights[head - 1], f"head {head} of {num_heads}"
    where = f"layer {layer} of {num_layers}, {which}"
    shares = shares_by_direction(chosen)
    directions = (
        f"{shares['left']:.1%} to the left, {shares['itself']:.1%} to itself,"
        f" {shares['right']:.1%} to the right, {shares['special']:.1%} to [CLS] and [SEP]"
    )
    print(f"attention, {where}: {directions}")
    on_neighbours = " ".join(f"{share:.1%}" for share in shares_on_neighbours(weights))
    even = f"an even spread gives {2 / len(tokens):.1%}"
    print(f"to the two neighbours, head by head: {on_neighbours} ({even})")
    tokens = [bare_piece(token) for token in tokens]
    write_tables(
        path,
        f"who attends to whom: {where}\n{directions}",
        tokens,
        [Panel("", chosen.numpy(), tokens, "this token", AXIS)],
        low=0.0,
        high=float(chosen.quantile(0.99)),  # a single strong one would leave all others dark
        bar_label="attention weight (a row sums to 1)",
    )
