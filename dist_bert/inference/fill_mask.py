"""The most direct use of a pretrained encoder: what stands behind [MASK]?"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_bert.common.errors import UserError
from dist_bert.common.pictures import MAX_ROWS, Panel, shortened, write_tables
from dist_bert.inference.text_batches import Ids, Text, check_length, map_in_batches
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.micro_batches import from_sequences
from dist_bert.tokenizer.config import bare_piece
from dist_bert.tokenizer.tokenizer import CLS_ID, MASK_ID, SEP_ID, Tokenizer


@dataclasses.dataclass(frozen=True)
class MaskAnswer:
    """One candidate for one [MASK]."""

    piece: str  # as the tokenizer writes it: "\u2581" is a space before it, "##" none
    probability: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The answers to the single [MASK] of R texts, side by side."""

    pieces: list[str]  # (C,): the likeliest of each text, likeliest first, text after text
    probabilities: NDArray[np.float64]  # (R, C)
    distances: NDArray[np.float64]  # (R, R) total variation: 0 = equal answers, 1 = none in common
    has_same_left_context: bool  # the tokens before [MASK] are the same in all texts


def fill_mask(run: TrainedRun, text: str, top_k: int) -> list[list[MaskAnswer]]:
    """The answers for a single text; see `fill_masks`."""
    ((_, masks),) = fill_masks(run, [Text.given(text)], top_k)
    return masks


def fill_masks(
    run: TrainedRun, texts: Iterable[Text], top_k: int
) -> Iterator[tuple[Text, list[list[MaskAnswer]]]]:
    """Every text with the `top_k` likeliest pieces for each [MASK] in it, in the texts' order.

    Raises:
        UserError: a text has no [MASK] in it, or is longer than the model's positions; `top_k` is
            not positive; or the model has no MLM head.
    """
    _check_use(run, top_k)

    def answer(batch: list[tuple[Text, Ids]]) -> list[tuple[Text, list[list[MaskAnswer]]]]:
        texts, sequences = zip(*batch, strict=True)
        answers = iter(likeliest_pieces(_mask_logits(run, sequences), run.tokenizer, top_k))
        masks = [[next(answers) for _ in range(ids.count(MASK_ID))] for ids in sequences]
        return list(zip(texts, masks, strict=True))

    encoded = ((text, _encode(run, text)) for text in texts)
    return map_in_batches(answer, encoded, lambda item: len(item[1]))


def compare_texts(run: TrainedRun, texts: Sequence[Text], top_k: int) -> Comparison:
    """The probabilities of the same pieces at the [MASK] of each text.

    A model that reads from left to right would answer all texts alike whose tokens before [MASK]
    are the same. A bidirectional encoder answers by what follows, too (Devlin et al. 2019, 3.1).

    Args:
        run: that answers.
        texts: (R,), at least one, few enough to be compared at a glance.
        top_k: pieces that each text contributes; there are fewer where texts share some.

    Raises:
        UserError: a text has several [MASK], and as for `fill_masks`.
    """
    _check_use(run, top_k)
    sequences = [_encode(run, text) for text in texts]
    for text, sequence in zip(texts, sequences, strict=True):
        if (num_masks := sequence.count(MASK_ID)) > 1:
            raise UserError(f"{text.name}: has {num_masks} [MASK]; a comparison takes one a text")

    def distributions(batch: list[Ids]) -> Iterator[Tensor]:
        yield from _mask_logits(run, batch).double().softmax(-1).cpu()

    likelihoods = torch.stack(list(map_in_batches(distributions, sequences, len)))  # (R, V)
    vocab_size = run.tokenizer.vocab_size
    best = likelihoods[:, :vocab_size].topk(min(top_k, vocab_size)).indices
    ids = list(dict.fromkeys(best.flatten().tolist()))
    return Comparison(
        [run.tokenizer.piece(index) for index in ids],
        likelihoods[:, ids].numpy(),
        (torch.cdist(likelihoods, likelihoods, p=1) / 2).numpy(),
        len({tuple(sequence[: sequence.index(MASK_ID)]) for sequence in sequences}) == 1,
    )


def draw_comparison(
    run: TrainedRun, texts: Iterable[Text], top_k: int, path: str
) -> tuple[list[Text], str]:
    """Draws the answers to texts, a row for each text and a column for each piece.

    Args:
        run: that answers.
        texts: as for `compare_texts`, and at most as many as a picture has rows.
        top_k: pieces that each text contributes.
        path: of the PNG file.

    Returns:
        The texts, and how much the answers differ; empty where the words before [MASK] do, too.

    Raises:
        UserError: there are too many texts for a picture, and as for `compare_texts`.
    """
    compared = list(itertools.islice(texts, MAX_ROWS + 1))
    if len(compared) > MAX_ROWS:
        raise UserError(f"--picture: compares at most {MAX_ROWS} texts; give fewer")
    comparison = compare_texts(run, compared, top_k)
    labels = []
    for text in compared:
        before, mask, _ = text.text.partition("[MASK]")
        labels.append(shortened(text.text, len(before), len(before + mask)))
    pieces = [bare_piece(piece) for piece in comparison.pieces]
    write_tables(
        path,
        "probabilities of the likeliest answers to [MASK]",
        labels,
        [Panel("", comparison.probabilities, pieces)],
        low=0.0,
        high=float(comparison.probabilities.max()),
        bar_label="probability",
        form=".1%",
    )
    if not comparison.has_same_left_context or len(compared) == 1:
        return compared, ""
    return compared, (
        f"the {len(compared)} texts are the same up to [MASK]: a model that reads from left to"
        " right would answer them alike; here the answers differ by up to"
        f" {comparison.distances.max():.1%} (total variation distance)"
    )


def _check_use(run: TrainedRun, top_k: int) -> None:
    if top_k < 1:
        raise UserError(f"--top_k {top_k}: must be at least 1")
    run.require_mlm_head()


def _encode(run: TrainedRun, text: Text) -> Ids:
    """The ids of a text with at least one [MASK]."""
    ids = [CLS_ID, *run.tokenizer.encode_with_mask(text.text), SEP_ID]
    if MASK_ID not in ids:
        raise UserError(f"{text.name}: has no [MASK]; write one where a word is to be guessed")
    return check_length(ids, run.config.max_position_embeddings, text.name)


@torch.no_grad()
def _mask_logits(run: TrainedRun, sequences: Sequence[Ids]) -> Tensor:
    """Logits at each [MASK] of each text of one batch, (P, V)."""
    batch = from_sequences(sequences, run.device)
    return run.model.mlm_logits(run.model.encoder(**batch)[batch["input_ids"] == MASK_ID])


def likeliest_pieces(logits: Tensor, tokenizer: Tokenizer, top_k: int) -> list[list[MaskAnswer]]:
    """The `top_k` likeliest pieces of each row of MLM logits, (P, V)."""
    probabilities = logits.float().softmax(-1)
    # Rows of the table that no piece of this tokenizer owns cannot be answers.
    best = probabilities[:, : tokenizer.vocab_size].topk(min(top_k, tokenizer.vocab_size))
    return [
        [MaskAnswer(tokenizer.piece(index), share) for share, index in zip(*row, strict=True)]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
