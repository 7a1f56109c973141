"""The most direct use of a pretrained encoder: what stands behind [MASK]?"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from dist_bert.errors import UserError
from dist_bert.inference import TrainedRun
from dist_bert.text_batches import Ids, Text, check_length, encoder_input, map_in_batches
from dist_bert.tokenizer import CLS_ID, MASK_ID, SEP_ID, Tokenizer


@dataclasses.dataclass(frozen=True)
class Answer:
    """One candidate for one [MASK]."""

    piece: str  # as the tokenizer writes it: "\u2581" is a space before it, "##" none
    probability: float


def fill_mask(run: TrainedRun, text: str, top_k: int) -> list[list[Answer]]:
    """The answers for a single text; see `fill_masks`."""
    ((_, masks),) = fill_masks(run, [Text.given(text)], top_k)
    return masks


def fill_masks(
    run: TrainedRun, texts: Iterable[Text], top_k: int
) -> Iterator[tuple[Text, list[list[Answer]]]]:
    """Every text with the `top_k` likeliest pieces for each [MASK] in it, in the texts' order.

    Raises:
        UserError: a text has no [MASK] in it, or is longer than the model's positions; `top_k` is
            not positive; or the model has no MLM head.
    """
    if top_k < 1:
        raise UserError(f"--top_k {top_k}: must be at least 1")
    run.require_mlm_head()

    def encode(text: Text) -> tuple[Text, Ids]:
        ids = [CLS_ID, *run.tokenizer.encode_with_mask(text.text), SEP_ID]
        if MASK_ID not in ids:
            raise UserError(f"{text.name}: has no [MASK]; write one where a word is to be guessed")
        return text, check_length(ids, run.config.max_position_embeddings, text.name)

    def answer(batch: list[tuple[Text, Ids]]) -> list[tuple[Text, list[list[Answer]]]]:
        texts, sequences = zip(*batch, strict=True)
        return list(zip(texts, _answers(run, sequences, top_k), strict=True))

    return map_in_batches(answer, map(encode, texts), lambda encoded: len(encoded[1]))


@torch.no_grad()
def _answers(run: TrainedRun, sequences: Sequence[Ids], top_k: int) -> list[list[list[Answer]]]:
    """The answers for each [MASK] of each text of one batch."""
    batch = encoder_input(sequences, run.device)
    hidden = run.model.encoder(**batch)[batch["input_ids"] == MASK_ID]
    masks = iter(likeliest_pieces(run.model.mlm_logits(hidden), run.tokenizer, top_k))
    return [[next(masks) for _ in range(ids.count(MASK_ID))] for ids in sequences]


def likeliest_pieces(logits: Tensor, tokenizer: Tokenizer, top_k: int) -> list[list[Answer]]:
    """The `top_k` likeliest pieces of each row of MLM logits, (P, V)."""
    probabilities = logits.float().softmax(-1)
    # Rows of the table that no piece of this tokenizer owns cannot be answers.
    best = probabilities[:, : tokenizer.vocab_size].topk(min(top_k, tokenizer.vocab_size))
    return [
        [Answer(tokenizer.piece(index), share) for share, index in zip(*row, strict=True)]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
