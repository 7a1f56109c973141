"""Blocks: the contract's shapes and types, the text of the pairs, statistics that add up."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.clauses import PieceBorders
from data_prep.documents import Documents
from data_prep.pairs import PairLosses, Pairs, draw_pairs
from data_prep.samples import (
    LENGTH_BIN_TOKENS,
    Block,
    SampleRecipe,
    SampleStatistics,
    build_blocks,
    measure,
)
from dist_bert.common.hashing import below
from dist_bert.data.masking import MaskingVocabulary, restore
from dist_bert.data.shard_format import FIELD_SHAPES, FieldTypes, ShardFile, write_shard

VOCAB_SIZE, NUM_RESERVED, NUM_DOCUMENTS = 101, 11, 157
MASK = 4
RECIPE = SampleRecipe(
    pair_objective="nsp",
    balance_pairs=False,
    truncate_pairs=False,
    max_text_tokens=44,
    short_sequence_prob=0.1,
    masked_lm_prob=0.15,
    seed=5,
    cls_id=2,
    sep_id=3,
    vocabulary=MaskingVocabulary(
        vocab_size=VOCAB_SIZE,
        num_reserved_pieces=NUM_RESERVED,
        word_starts=np.arange(VOCAB_SIZE) % 3 > 0,
    ),
    borders=PieceBorders(np.zeros(VOCAB_SIZE, np.uint8), np.ones(VOCAB_SIZE, np.uint8)),
    types=FieldTypes.fitting(VOCAB_SIZE, 10_000),
)


def make_documents(num_documents: int = NUM_DOCUMENTS, seed: int = 0) -> Documents:
    rng = np.random.default_rng(seed)
    num_sentences = rng.integers(1, 60, num_documents)
    lengths = rng.integers(1, 23, num_sentences.sum())
    return Documents(
        tokens=rng.integers(5, VOCAB_SIZE, lengths.sum()).astype(np.uint16),
        sentence_offsets=np.cumsum([0, *lengths]),
        document_offsets=np.cumsum([0, *num_sentences]),
        document_ids=rng.permutation(10_000)[:num_documents],
    )


def subset(documents: Documents, indices: list[int]) -> Documents:
    """The documents of these indices, as another shard would hold them."""
    parts: list[NDArray[Any]] = []
    sentence_lengths: list[int] = []
    num_sentences: list[int] = []
    for index in indices:
        first, stop = documents.document_offsets[index : index + 2]
        offsets = documents.sentence_offsets[first : stop + 1]
        parts.append(documents.tokens[offsets[0] : offsets[-1]])
        sentence_lengths += np.diff(offsets).tolist()
        num_sentences.append(stop - first)
    return Documents(
        np.concatenate(parts),
        np.cumsum([0, *sentence_lengths]),
        np.cumsum([0, *num_sentences]),
        documents.document_ids[indices],
    )


def build(
    documents: Documents, recipe: SampleRecipe = RECIPE, copy: int = 0
) -> tuple[list[Block], SampleStatistics]:
    statistics = SampleStatistics()
    blocks = list(build_blocks(documents, recipe, copy=copy, statistics=statistics))
    return blocks, statistics


def drawn(documents: Documents, truncate: bool = False) -> tuple[Pairs, PairLosses]:
    """The pairs of `RECIPE`, copy 0."""
    return draw_pairs(
        documents,
        objective="nsp",
        max_tokens=44,
        short_sequence_prob=0.1,
        balance=False,
        truncate=truncate,
        borders=RECIPE.borders,
        seed=5,
        copy=0,
    )


def originals(block: Block) -> NDArray[Any]:
    return restore(
        block["input_ids"],
        block["masked_lm_positions"],
        block["masked_lm_labels"],
        block["num_masked"],
    )


def samples_of(blocks: list[Block]) -> Iterator[dict[str, Any]]:
    """Every sample as plain numbers: field -> value, cut to its real length."""
    for block in blocks:
        texts = originals(block)
        for row, length in enumerate(block["num_tokens"].tolist()):
            num_masked = int(block["num_masked"][row])
            yield {
                "ids": block["input_ids"][row, :length].tolist(),
                "text": texts[row, :length].tolist(),
                "b": int(block["segment_b_start"][row]),
                "positions": block["masked_lm_positions"][row, :num_masked].tolist(),
                "is_random": int(block["next_sentence_label"][row]),
                "documents": tuple(block["document_ids"][row].tolist()),
            }


def test_blocks_keep_the_contract_and_survive_the_shard(tmp_path: Path) -> None:
    blocks, statistics = build(make_documents())
    sizes = [block["num_tokens"].size for block in blocks]
    assert len(sizes) == 3 and sizes[:2] == [1_024] * 2 and 0 < sizes[2] < 1_024
    for block in blocks:
        letters = {
            "B": block["num_tokens"].size,
            "S": block["num_tokens"].max(),
            "P": block["num_masked"].max(),
            "2": 2,
        }
        assert list(block) == list(FIELD_SHAPES)
        for field, shape in FIELD_SHAPES.items():
            assert block[field].shape == tuple(letters[s] for s in shape)
            assert block[field].dtype == RECIPE.types.of(field)
        assert block["num_tokens"].max() <= RECIPE.max_text_tokens + 3
    record = write_shard(tmp_path / "s.tar", {}, blocks)
    assert record.num_samples == statistics.num_samples == sum(sizes)
    shard = ShardFile(tmp_path, record, RECIPE.types)
    for index, block in enumerate(blocks):
        read = shard.block(index)
        assert all(np.array_equal(read[field], block[field]) for field in FIELD_SHAPES)


def test_samples_are_the_pairs_of_the_text_with_masks_upon() -> None:
    documents = make_documents()
    blocks, _ = build(documents)
    pairs, _ = drawn(documents)
    ids, tokens = documents.document_ids, documents.tokens
    expected = collections.Counter(
        (
            (2, *tokens[pairs.a_start[n] : pairs.a_stop[n]], 3),
            (*tokens[pairs.b_start[n] : pairs.b_stop[n]], 3),
            int(pairs.next_sentence_label[n]),
            (ids[pairs.document_a[n]], ids[pairs.document_b[n]]),
        )
        for n in range(len(pairs))
    )
    found: collections.Counter[Any] = collections.Counter()
    for sample in samples_of(blocks):
        text, b = sample["text"], sample["b"]
        found[tuple(text[:b]), tuple(text[b:]), sample["is_random"], sample["documents"]] += 1
        assert sample["positions"] == sorted(set(sample["positions"]))
        assert min(text[p] for p in sample["positions"]) >= 5
        unmasked = set(range(len(text))) - set(sample["positions"])
        assert all(sample["ids"][p] == text[p] for p in unmasked)
    assert found == expected
    order = [d[0] for d in (s["documents"] for s in samples_of(blocks))]
    changes = np.count_nonzero(np.diff(order))
    assert changes > 0.95 * len(order)  # permuted: neighbours come from different documents


def test_the_classic_recipe_is_frozen() -> None:
    """The bytes of two copies, made as the published script makes them."""
    classic = dataclasses.replace(RECIPE, truncate_pairs=True)
    num_sentences = 1 + below(40, "sentences", np.arange(61))
    lengths = 1 + below(22, "lengths", np.arange(num_sentences.sum()))
    documents = Documents(
        tokens=(5 + below(96, "tokens", np.arange(lengths.sum()))).astype(np.uint16),
        sentence_offsets=np.cumsum([0, *lengths]),
        document_offsets=np.cumsum([0, *num_sentences]),
        document_ids=3 * np.arange(61),
    )
    digest = hashlib.sha256()
    for copy in range(2):
        for block in build(documents, classic, copy=copy)[0]:
            for field in FIELD_SHAPES:
                digest.update(block[field].tobytes())
    expected = "fe9d603bf45970520ce2d4ded5ae17f7068d8c7b22b7623af9533c5493075c25"
    assert digest.hexdigest() == expected


@pytest.mark.parametrize("objective", ["nsp", "sop", "none"])
@pytest.mark.parametrize("mean_span_length", [0.0, 3.0])
@pytest.mark.parametrize("rate", [0.15, 0.4, 0.5])
def test_every_recipe_masks_its_share(objective: str, mean_span_length: float, rate: float) -> None:
    vocabulary = dataclasses.replace(RECIPE.vocabulary, mean_span_length=mean_span_length)
    recipe = dataclasses.replace(
        RECIPE, pair_objective=objective, masked_lm_prob=rate, vocabulary=vocabulary
    )
    blocks, statistics = build(make_documents(), recipe)
    shares = statistics.to_json()["shares"]
    assert abs(shares["masked"] - rate) < 0.003  # lifted a little by the least of one prediction
    assert abs(shares["replaced_by_mask"] - 0.8) < 0.03  # 8,000 tokens or more, sigma 0.0045
    has_label = {"nsp": True, "sop": True, "none": False}[objective]
    assert 0.45 < shares["random_next"] < 0.57 if has_label else shares["random_next"] == 0
    for sample in samples_of(blocks):
        text, b, length = sample["text"], sample["b"], len(sample["text"])
        separators = {b - 1, length - 1}
        assert {i for i, piece in enumerate(text) if piece == 3} == separators
        assert (b == length) == (objective == "none")
        assert separators.isdisjoint(sample["positions"]) and 0 not in sample["positions"]
        document_a, document_b = sample["documents"]
        assert (document_a != document_b) == (objective == "nsp" and sample["is_random"] == 1)


@pytest.mark.parametrize("objective", ["nsp", "sop"])
def test_balanced_pairs_are_half_of_every_shard_and_nothing_is_lost(objective: str) -> None:
    recipe = dataclasses.replace(RECIPE, pair_objective=objective)
    balanced = dataclasses.replace(recipe, balance_pairs=True)
    num_halves = 0
    for seed in range(8):
        documents = make_documents(31 + seed, seed)
        _, plain = build(documents, recipe)
        _, statistics = build(documents, balanced)
        assert 2 * statistics.num_random_next == statistics.num_samples > 250
        num_halves += 2 * plain.num_random_next == plain.num_samples
        assert statistics.num_document_tokens == documents.tokens.size
        # But for documents of one token, in which there is no order.
        assert statistics.num_lost_tokens == plain.num_lost_tokens
        assert statistics.num_lost_tokens <= (1 if objective == "sop" else 0)
    assert num_halves <= 2


@pytest.mark.parametrize("objective", ["nsp", "sop", "none"])
def test_equal_calls_give_equal_blocks_and_copies_differ(objective: str) -> None:
    documents = make_documents()
    recipe = dataclasses.replace(RECIPE, pair_objective=objective)
    first, again = build(documents, recipe)[0], build(documents, recipe)[0]
    assert all(np.array_equal(a[f], b[f]) for a, b in zip(first, again, strict=True) for f in a)
    other_copy = build(documents, recipe, copy=1)[0]
    other_seed = build(documents, dataclasses.replace(recipe, seed=6))[0]
    texts, *others = (
        {tuple(s["text"]): (n, tuple(s["positions"])) for n, s in enumerate(samples_of(blocks))}
        for blocks in (first, other_copy, other_seed)
    )
    for other in others:
        assert texts.keys() != other.keys()
        equal = texts.keys() & other.keys()
        if objective == "none":  # only a short one before it moves a sample's borders
            assert len(equal) > 100
        moved = sum(texts[text][0] != other[text][0] for text in equal)
        masked_elsewhere = sum(texts[text][1] != other[text][1] for text in equal)
        assert moved > 0.95 * len(equal) and masked_elsewhere > 0.85 * len(equal)


def test_every_pair_of_every_copy_has_masks_of_its_own() -> None:
    offsets = np.arange(0, 7 * 22, 22)  # six sentences of 22 tokens can only make three pairs
    documents = Documents(np.arange(6 * 22) % 96 + 5, offsets, np.array([0, 6]), np.array([3]))
    tokens = dataclasses.replace(
        RECIPE.vocabulary, word_starts=None
    )  # words would tell texts apart
    recipe = dataclasses.replace(RECIPE, short_sequence_prob=0.0, vocabulary=tokens)
    samples = [s for copy in range(3) for s in samples_of(build(documents, recipe, copy)[0])]
    assert len(samples) == 9
    assert len({tuple(s["text"]) for s in samples}) == 3
    assert len({tuple(s["positions"]) for s in samples}) == 9


def test_a_true_pair_and_its_masks_are_the_same_in_any_shard() -> None:
    documents = make_documents()
    own = [3, 40, 77, 120, 121]
    alone = subset(documents, own)
    own_ids = set(alone.document_ids.tolist())

    def true_pairs(documents: Documents) -> list[Any]:
        return sorted(
            (s["documents"], s["ids"], s["positions"])
            for s in samples_of(build(documents)[0])
            if not s["is_random"] and s["documents"][0] in own_ids
        )

    assert len(true_pairs(alone)) > 20
    assert true_pairs(alone) == true_pairs(documents)


def test_statistics_are_those_of_a_plain_count() -> None:
    documents = make_documents()
    blocks, statistics = build(documents, dataclasses.replace(RECIPE, truncate_pairs=True))
    _, losses = drawn(documents, truncate=True)
    expected = SampleStatistics(
        num_document_tokens=documents.tokens.size,
        num_truncated_tokens=losses.num_truncated_tokens,
        length_histogram=[0] * (47 // LENGTH_BIN_TOKENS + 1),
    )
    for sample in samples_of(blocks):
        expected.num_samples += 1
        expected.num_random_next += sample["is_random"]
        expected.num_tokens += len(sample["text"])
        expected.num_maskable_tokens += sum(piece >= 5 for piece in sample["text"])
        expected.num_masked += len(sample["positions"])
        expected.length_histogram[len(sample["text"]) // LENGTH_BIN_TOKENS] += 1
        for position in sample["positions"]:
            shown, original = sample["ids"][position], sample["text"][position]
            if shown == MASK:
                expected.num_replaced_by_mask += 1
            elif shown == original:
                expected.num_kept += 1
            else:
                expected.num_replaced_by_random += 1
    assert statistics == expected
    assert losses.num_truncated_tokens > 0
    shares = statistics.to_json()["shares"]
    assert shares["lost"] == round(losses.num_truncated_tokens / documents.tokens.size, 6)
    assert abs(shares["masked"] - 0.15) < 0.01
    assert abs(shares["replaced_by_mask"] - 0.8) < 0.03  # 5,000 tokens, sigma 0.006
    assert 0.48 < shares["random_next"] < 0.56


def test_statistics_merge_in_any_order_and_come_back_from_json() -> None:
    parts = []
    for seed, (num_documents, max_text_tokens) in enumerate([(1, 8), (29, 44), (53, 130)]):
        recipe = dataclasses.replace(RECIPE, max_text_tokens=max_text_tokens, truncate_pairs=True)
        parts.append(build(make_documents(num_documents, seed), recipe)[1])
    assert parts[0].num_dropped_tokens > 0  # a single document with long sentences
    totals = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        total = SampleStatistics()
        for index in order:
            total.add(parts[index])
        totals.append(total)
    assert totals[0] == totals[1] == totals[2]
    assert totals[0].num_samples == sum(part.num_samples for part in parts)
    assert sum(totals[0].length_histogram) == totals[0].num_samples
    value = json.loads(json.dumps(totals[0].to_json()))
    assert SampleStatistics.from_json(value) == totals[0]
    assert all(isinstance(count, (int, list)) for count in vars(totals[0]).values())


def test_a_shard_without_pairs_gives_no_blocks() -> None:
    documents = Documents(np.array([9]), np.array([0, 1]), np.array([0, 1]), np.array([3]))
    blocks, statistics = build(documents)
    assert blocks == []
    assert (statistics.num_dropped_sentences, statistics.num_dropped_tokens) == (1, 1)
    assert statistics.to_json()["shares"]["masked"] == 0.0
    none = np.zeros(0, np.int64)
    assert build(Documents(none, np.array([0]), np.array([0]), none)) == ([], SampleStatistics())


@pytest.mark.parametrize("word_starts", [None, RECIPE.vocabulary.word_starts])
def test_measure_reads_a_block_as_stored(word_starts: NDArray[np.bool_] | None) -> None:
    vocabulary = dataclasses.replace(RECIPE.vocabulary, word_starts=word_starts)
    blocks, statistics = build(make_documents(), dataclasses.replace(RECIPE, vocabulary=vocabulary))
    total = SampleStatistics(
        num_document_tokens=statistics.num_document_tokens,
        num_cuts_in_sentences=statistics.num_cuts_in_sentences,
    )
    for block in blocks:
        total.add(measure(block, MASK))
    assert total == statistics
