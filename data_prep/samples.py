"""Turns the documents of one shard into the blocks that it stores, and their statistics.

    documents --draw_pairs--> pairs, permuted --assemble--> original ids --draw_masks--> block

A sample's masks are seeded like its pair, by document and place in it; the order of samples is
seeded by the shard's first document. Neither depends on the shard's number or the rank. Numpy only.
Not for: files (`dist_bert.data.shard_format`), or choosing a shard's documents (the caller).

Letters: B samples of a block, S longest sample in tokens, P most predictions of a sample.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.clauses import PieceBorders
from data_prep.documents import Documents
from data_prep.pairs import PairLosses, Pairs, assemble, draw_pairs
from dist_bert.common.hashing import hash64, permuted
from dist_bert.data.masking import (
    NUM_SPECIAL_IDS,
    MaskingVocabulary,
    draw_masks,
    is_maskable,
    num_to_mask,
)
from dist_bert.data.shard_format import FIELD_SHAPES, MAX_BLOCK_SAMPLES, FieldTypes

Block = dict[str, NDArray[Any]]

LENGTH_BIN_TOKENS = 32  # width of a bin of the length histogram


@dataclasses.dataclass(frozen=True, eq=False)
class SampleRecipe:
    """How to make a data set's samples; the same for all its shards."""

    pair_objective: str  # nsp, sop or none
    balance_pairs: bool  # makes next_sentence_label 1 for exactly half of a shard's pairs
    truncate_pairs: bool  # cuts off what exceeds the length
    max_text_tokens: int  # most tokens of a sample, without special tokens; at least 2
    short_sequence_prob: float  # share of chunks with a random shorter target, 0 to 1
    masked_lm_prob: float  # share of the maskable tokens to predict, 0 to 1
    seed: int
    cls_id: int
    sep_id: int
    vocabulary: MaskingVocabulary
    borders: PieceBorders
    types: FieldTypes


@dataclasses.dataclass
class SampleStatistics:
    """Counts over samples. Integers only: sums are exact and the same in any order."""

    num_samples: int = 0
    num_random_next: int = 0  # next_sentence_label 1; for sop: swapped
    num_tokens: int = 0  # with special tokens, without padding
    num_maskable_tokens: int = 0
    num_masked: int = 0
    num_replaced_by_mask: int = 0
    num_replaced_by_random: int = 0  # by a piece other than the original
    num_kept: int = 0  # kept, or replaced by the same piece by chance
    num_document_tokens: int = 0  # of the documents, in all copies
    num_truncated_tokens: int = 0
    num_dropped_sentences: int = 0
    num_dropped_tokens: int = 0
    num_cuts_in_sentences: int = 0
    length_histogram: list[int] = dataclasses.field(
        default_factory=list
    )  # samples by length in bins

    def add(self, other: "SampleStatistics") -> None:
        """Adds the counts of other samples to these."""
        for name, count in vars(other).items():
            if name != "length_histogram":
                setattr(self, name, getattr(self, name) + count)
        self.length_histogram = [
            mine + others
            for mine, others in zip_longest(
                self.length_histogram, other.length_histogram, fillvalue=0
            )
        ]

    @property
    def num_lost_tokens(self) -> int:
        """Tokens of the documents that are in none of their samples."""
        return self.num_truncated_tokens + self.num_dropped_tokens

    def to_json(self) -> dict[str, Any]:
        """The counts and the shares derived from them, as a JSON object."""
        shares = {
            "masked": _share(self.num_masked, self.num_maskable_tokens),
            "replaced_by_mask": _share(self.num_replaced_by_mask, self.num_masked),
            "replaced_by_random": _share(self.num_replaced_by_random, self.num_masked),
            "kept": _share(self.num_kept, self.num_masked),
            "random_next": _share(self.num_random_next, self.num_samples),
            "lost": _share(self.num_lost_tokens, self.num_document_tokens),
            "tokens_per_sample": _share(self.num_tokens, self.num_samples),
        }
        return {
            **dataclasses.asdict(self),
            "length_bin_tokens": LENGTH_BIN_TOKENS,
            "shares": shares,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "SampleStatistics":
        """Inverse of `to_json`."""
        return cls(**{field.name: value[field.name] for field in dataclasses.fields(cls)})


def build_blocks(
    documents: Documents, recipe: SampleRecipe, *, copy: int, statistics: SampleStatistics
) -> Iterator[Block]:
    """Makes the samples of one shard, as the blocks that `shard_format.write_shard` takes.

    Args:
        documents: of the shard, in the caller's order, with their ids in the corpus.
        recipe: of the data set.
        copy: number of the pass over the corpus; each has different pairs and masks.
        statistics: the counts of every block are added to it before the block is yielded.

    Yields:
        Blocks of `MAX_BLOCK_SAMPLES` samples, the last possibly smaller, in the format's dtypes.
    """
    pairs, losses = draw_pairs(
        documents,
        objective=recipe.pair_objective,
        max_tokens=recipe.max_text_tokens,
        short_sequence_prob=recipe.short_sequence_prob,
        balance=recipe.balance_pairs,
        truncate=recipe.truncate_pairs,
        borders=recipe.borders,
        seed=recipe.seed,
        copy=copy,
    )
    statistics.add(_of_losses(losses, documents.tokens.size))
    if not len(pairs):
        return
    shard_name = int(documents.document_ids[0])
    order = permuted(
        np.arange(len(pairs)), len(pairs), "sample order", recipe.seed, copy, shard_name
    )
    for begin in range(0, len(pairs), MAX_BLOCK_SAMPLES):
        chosen = pairs.take(order[begin : begin + MAX_BLOCK_SAMPLES])
        block = _build_block(documents, chosen, recipe)
        statistics.add(measure(block, recipe.vocabulary.mask_id))
        yield block


def measure(block: Mapping[str, NDArray[Any]], mask_id: int) -> SampleStatistics:
    """Counts the samples of a finished block, from its stored arrays alone."""
    input_ids, num_masked = block["input_ids"], block["num_masked"]
    positions, labels = block["masked_lm_positions"], block["masked_lm_labels"]
    is_prediction = np.arange(positions.shape[1]) < num_masked[:, None]  # (B, P)
    rows = np.repeat(np.arange(num_masked.size), num_masked)
    # Indexing the flat block takes half the time of pairs of indices.
    places = rows * input_ids.shape[1] + positions[is_prediction]
    replacements = input_ids.reshape(-1)[places]
    num_replaced_by_mask = int(np.count_nonzero(replacements == mask_id))
    num_kept = int(np.count_nonzero(replacements == labels[is_prediction]))
    return SampleStatistics(
        num_samples=num_masked.size,
        num_random_next=int(np.count_nonzero(block["next_sentence_label"])),
        num_tokens=int(block["num_tokens"].sum(dtype=np.int64)),
        num_maskable_tokens=int(np.count_nonzero(input_ids >= NUM_SPECIAL_IDS))
        + num_replaced_by_mask,
        num_masked=rows.size,
        num_replaced_by_mask=num_replaced_by_mask,
        num_replaced_by_random=rows.size - num_replaced_by_mask - num_kept,
        num_kept=num_kept,
        length_histogram=np.bincount(block["num_tokens"] // LENGTH_BIN_TOKENS).tolist(),
    )


def _build_block(documents: Documents, pairs: Pairs, recipe: SampleRecipe) -> Block:
    """One block of the pairs, in their order."""
    original_ids, num_tokens, segment_b_start = assemble(
        documents, pairs, recipe.cls_id, recipe.sep_id
    )
    document_a = documents.document_ids[pairs.document_a]
    document_b = documents.document_ids[pairs.document_b]
    sample_keys = hash64("mask", pairs.name)
    num_maskable = np.count_nonzero(is_maskable(original_ids, num_tokens), axis=1)
    num_masked = num_to_mask(num_maskable, recipe.masked_lm_prob, sample_keys)
    input_ids, positions, labels = draw_masks(
        original_ids, num_tokens, num_masked, sample_keys, recipe.vocabulary
    )
    block = {
        "input_ids": input_ids,
        "num_tokens": num_tokens,
        "segment_b_start": segment_b_start,
        "masked_lm_positions": positions,
        "masked_lm_labels": labels,
        "num_masked": num_masked,
        "next_sentence_label": pairs.next_sentence_label,
        "document_ids": np.stack((document_a, document_b), axis=1),
    }
    return {
        field: block[field].astype(recipe.types.of(field), copy=False) for field in FIELD_SHAPES
    }


def _of_losses(losses: PairLosses, num_document_tokens: int) -> SampleStatistics:
    return SampleStatistics(num_document_tokens=num_document_tokens, **dataclasses.asdict(losses))


def _share(count: int, total: int) -> float:
    """A share rounded to six digits."""
    return round(count / total, 6) if total else 0.0
