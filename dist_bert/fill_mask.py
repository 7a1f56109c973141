"""The most direct use of a pretrained encoder: what stands behind [MASK]?"""

import dataclasses

import torch

from dist_bert.errors import UserError
from dist_bert.inference import TrainedRun
from dist_bert.model import unpad
from dist_bert.tokenizer import CLS_ID, MASK_ID, SEP_ID


@dataclasses.dataclass(frozen=True)
class Answer:
    """One candidate for one [MASK]."""

    piece: str  # as the tokenizer writes it: "\u2581" is a space before it
    probability: float


def fill_mask(run: TrainedRun, text: str, top_k: int) -> list[list[Answer]]:
    """The `top_k` likeliest pieces for every [MASK] of a text, in the text's order.

    Raises:
        UserError: there is no [MASK] in it, or it is longer than the model's positions.
    """
    ids = [CLS_ID, *run.tokenizer.encode_with_mask(text), SEP_ID]
    if MASK_ID not in ids:
        raise UserError(f"text {text!r}: has no [MASK]; write one where a word is to be guessed")
    if len(ids) > run.config.max_position_embeddings:
        raise UserError(
            f"text {text[:40]!r}...: has {len(ids)} tokens, the model takes at most"
            f" {run.config.max_position_embeddings}; shorten it"
        )
    input_ids = torch.tensor([ids], device=run.device)
    batch = unpad(input_ids, torch.ones_like(input_ids), torch.zeros_like(input_ids))
    with torch.no_grad():
        hidden = run.model.encoder(**batch)[input_ids[0] == MASK_ID]
        probabilities = run.model.mlm_logits(hidden).float().softmax(-1)  # (P, V)
    # Rows of the table that no piece of this tokenizer owns cannot be answers.
    best = probabilities[:, : run.tokenizer.vocab_size].topk(min(top_k, run.tokenizer.vocab_size))
    return [
        [Answer(run.tokenizer.piece(i), p) for p, i in zip(*row, strict=True)]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
