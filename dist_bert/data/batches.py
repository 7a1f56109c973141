"""A global batch, its division, and the unpadded micro-batches that the model takes.

Numpy only: tensors are made where the device is known.

Letters: K steps planned at once, G samples of a global batch, A micro-steps, W ranks, M samples of
a micro-batch, S longest sample, P most predictions of a sample, T tokens of a micro-batch.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.data.reader import Columns

MicroBatch = dict[str, Any]
# Shapes of micro-batches are rounded up: matrix kernels are prepared again for every new shape,
# which made bf16 products on CPU 2.8 times slower, and compiled code recompiles.
TOKEN_MULTIPLE = 64  # of T and P
LENGTH_MULTIPLE = 8  # of max_seqlen
TO_BE_FOUND = -1  # `micro_batch_tokens` of a division before the device has been tried
NO_LABEL = -100  # of a padding position, of a sample without B; ignored by losses


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """Division of a global batch: `global_batch_size` = accumulation * world size * micro-batch.

    By tokens, micro-batches hold as many samples as fit, and a step has as many as it needs.
    """

    accumulation_steps: int  # A, micro-steps of an optimizer step
    world_size: int  # W, data-parallel ranks
    micro_batch_size: int  # M, samples of one rank in one micro-step; 1 where it is by tokens
    micro_batch_tokens: int = 0  # most tokens of one rank in one micro-step; 0 = by samples

    @property
    def global_batch_size(self) -> int:
        """G, samples of one optimizer step over all ranks."""
        return self.accumulation_steps * self.world_size * self.micro_batch_size


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """One optimizer step: this rank's micro-batches, and the size of the whole global batch."""

    micro_batches: list[MicroBatch]  # A of this rank
    num_samples: int  # G
    num_tokens: int  # real tokens of the global batch
    lengths: NDArray[np.int64]  # (G,) tokens of each sample of the global batch
    num_masked: int = 0  # masked positions of the global batch


def deal(num_tokens: NDArray[np.int64], shape: BatchShape) -> NDArray[np.int64]:
    """Distributes every global batch over micro-steps and ranks, equally computed on every rank.

    Sorted by length and dealt back and forth, so that a micro-batch has samples of similar length,
    and the ranks of one micro-step have almost equal numbers of tokens.

    Args:
        num_tokens: (K, G) lengths of the samples of K global batches.
        shape: division of each.

    Returns:
        (K, A, W, M) indices into G.
    """
    longest_first = np.argsort(-num_tokens, axis=1, kind="stable")
    rounds = longest_first.reshape(
        -1, shape.accumulation_steps, shape.micro_batch_size, shape.world_size
    ).copy()
    rounds[:, :, 1::2] = rounds[:, :, 1::2, ::-1]
    return rounds.swapaxes(2, 3)


def deal_by_tokens(
    num_tokens: NDArray[np.int64], world_size: int, most_tokens: int
) -> list[NDArray[np.int64]]:
    """Distributes samples over the fewest micro-steps in which no rank has too many tokens.

    Sorted by length and dealt back and forth over all ranks and micro-steps, so that all of them
    have almost equal numbers of tokens and lengths. Equally computed on every rank.

    Args:
        num_tokens: (G,) lengths, at least one sample a rank.
        world_size: W.
        most_tokens: of a micro-batch; no sample is longer.

    Returns:
        A * W index arrays into G, none empty: of the ranks in the first micro-step, and so on.
    """
    assert most_tokens > 0, "it has not been found"
    longest_first = np.argsort(-num_tokens, kind="stable")
    least = max(1, math.ceil(num_tokens.sum() / (world_size * most_tokens)))
    for num_micro_steps in range(least, num_tokens.size // world_size + 1):
        num_parts = num_micro_steps * world_size
        place = np.arange(num_tokens.size)
        part, is_back = place % num_parts, place // num_parts % 2 == 1
        part = np.where(is_back, num_parts - 1 - part, part)
        if np.bincount(part, num_tokens[longest_first]).max() <= most_tokens:
            break
    return np.split(
        longest_first[np.argsort(part, kind="stable")], np.cumsum(np.bincount(part))[:-1]
    )


def trial_micro_batch(lengths: NDArray[np.int64], masked_share: float) -> MicroBatch:
    """A micro-batch of [PAD] tokens, for what depends on sizes alone; complete with its totals.

    Args:
        lengths: (M,) tokens of each sample.
        masked_share: of the tokens, to be predicted.
    """
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
    position_ids = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
    ids = np.zeros_like(position_ids)
    masked = np.arange(math.ceil(masked_share * ids.size))
    return {
        **encoder_input(ids, ids, position_ids, cu_seqlens),
        "masked_lm_positions": round_up(masked),
        "masked_lm_labels": round_up(np.zeros_like(masked), NO_LABEL),
        "next_sentence_label": np.zeros(lengths.size, np.int64),
        "num_masked": masked.size,
        "num_samples": lengths.size,
    }


def unpad(columns: Columns) -> MicroBatch:
    """Converts the padded columns of a micro-batch to the unpadded arguments of the model.

    T is rounded up by samples of [PAD] tokens after the M real ones, without next-sentence label; P
    by positions whose label is `NO_LABEL`. That is also the next-sentence label of samples without
    a segment B.

    Returns:
        The result of `encoder_input`, and as int64 `masked_lm_positions` (into T),
        `masked_lm_labels`, and `next_sentence_label` (M,).
    """
    num_tokens = columns["num_tokens"].astype(np.int64)
    cu_seqlens = np.concatenate(([0], np.cumsum(num_tokens)))
    position = np.arange(columns["input_ids"].shape[1])
    is_token = position < num_tokens[:, None]
    prediction = np.arange(columns["masked_lm_positions"].shape[1])
    is_masked = prediction < columns["num_masked"][:, None]
    in_segment_b = position >= columns["segment_b_start"][:, None]
    has_b = columns["segment_b_start"] < num_tokens
    next_sentence_label = np.where(has_b, columns["next_sentence_label"].astype(np.int64), NO_LABEL)
    masked_lm_positions = columns["masked_lm_positions"] + cu_seqlens[:-1, None]
    positions = np.broadcast_to(position, is_token.shape)
    return {
        **encoder_input(
            columns["input_ids"][is_token], in_segment_b[is_token], positions[is_token], cu_seqlens
        ),
        "masked_lm_positions": round_up(masked_lm_positions[is_masked]),
        "masked_lm_labels": round_up(columns["masked_lm_labels"][is_masked], NO_LABEL),
        "next_sentence_label": next_sentence_label,
    }


def encoder_input(
    input_ids: NDArray[Any],
    token_type_ids: NDArray[Any],
    position_ids: NDArray[Any],
    cu_seqlens: NDArray[np.int64],
) -> MicroBatch:
    """The arguments of the encoder: tokens (T,) each, rounded up by samples of [PAD] tokens.

    Args:
        input_ids: of all samples, concatenated.
        token_type_ids: of the same tokens.
        position_ids: of the same tokens.
        cu_seqlens: (M + 1,) where each sample begins, and the end; no sample is empty.

    Returns:
        `input_ids`, `token_type_ids`, `position_ids` as int64, `cu_seqlens` (M + 1 and one for each
        sample of padding, each at most as long as the longest of the M) as int32, `max_seqlen` as
        int.
    """
    longest = int(np.diff(cu_seqlens).max())
    stop = -(-cu_seqlens[-1] // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    padding_bounds = np.append(np.arange(cu_seqlens[-1], stop, longest), stop)
    return {
        "input_ids": round_up(input_ids),
        "token_type_ids": round_up(token_type_ids),
        "position_ids": round_up(position_ids),
        "cu_seqlens": np.union1d(cu_seqlens, padding_bounds).astype(np.int32),
        "max_seqlen": -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE,
    }


def round_up(values: NDArray[Any], filler: int = 0) -> NDArray[np.int64]:
    """Values as int64, followed by filler up to a multiple of `TOKEN_MULTIPLE`."""
    missing = -values.size % TOKEN_MULTIPLE
    return np.pad(values.astype(np.int64), (0, missing), constant_values=filler)
