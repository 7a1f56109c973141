"""The split into train and validation, its dealing to shards, and duplicates."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.duplicates import FirstDocuments, num_ranges, write_first_documents
from data_prep.shard_assignment import Split, hash_limit, list_documents
from data_prep.token_store import TokenStore
from dist_bert.common.hashing import hash64
from dist_bert.data.shard_format import SPLITS


def store_of(folder: Path, hashes: NDArray[np.uint64], unit_size: int) -> TokenStore:
    """A store that has hashes and nothing else."""
    parts = [hashes[i : i + unit_size] for i in range(0, hashes.size, unit_size)]
    store = TokenStore(folder, [part.size for part in parts])
    for unit, part in zip(store.units, parts, strict=True):
        vars(unit)["document_hashes"] = part
    return store


def split_documents(
    folder: Path,
    store: TokenStore,
    validation_share: float,
    documents_per_shard: float,
    deduplicate: bool = False,
) -> tuple[Split, Split]:
    folder.mkdir(exist_ok=True)
    first_documents = None
    if deduplicate:
        for i in range(num_ranges(int(store.first_document[-1]))):
            write_first_documents(folder, store, i)
        first_documents = FirstDocuments(folder, store)
    limit = hash_limit(store, validation_share)
    counts = [
        list_documents(folder, store, u, limit, first_documents) for u in range(len(store.units))
    ]
    train, validation = (Split(name, folder, counts, documents_per_shard) for name in SPLITS)
    return train, validation


def dealt(store: TokenStore, split: Split, seed: int = 3, copy: int = 0) -> list[list[int]]:
    return [split.documents(shard, store, seed, copy).tolist() for shard in range(split.num_shards)]


def hashes_with_duplicates(count: int) -> NDArray[np.uint64]:
    """One document in three is a copy of another one."""
    numbers = np.arange(count)
    return hash64("text", np.where(numbers % 3 == 2, numbers // 2, numbers))


def test_every_document_is_dealt_once_and_duplicates_stay_on_a_side(tmp_path: Path) -> None:
    hashes = hashes_with_duplicates(5_003)
    store = store_of(tmp_path, hashes, unit_size=701)
    train, validation = split_documents(tmp_path / "work", store, 0.1, documents_per_shard=97)
    shards = dealt(store, train) + dealt(store, validation)
    assert sorted(itertools.chain(*shards)) == list(range(5_003))
    assert all(shard == sorted(shard) for shard in shards)
    train_hashes = {int(hashes[d]) for shard in dealt(store, train) for d in shard}
    validation_hashes = {int(hashes[d]) for shard in dealt(store, validation) for d in shard}
    assert not train_hashes & validation_hashes
    assert abs(validation.num_documents / 5_003 - 0.1) < 0.02
    assert train.num_shards == round(train.num_documents / 97)
    sizes = [len(shard) for shard in dealt(store, train)]
    assert max(sizes) - min(sizes) <= 1


def test_dealing_depends_on_the_seed_and_not_on_the_units(tmp_path: Path) -> None:
    hashes = hashes_with_duplicates(1_009)
    results = []
    for unit_size in (1, 50, 1_009):
        store = store_of(tmp_path, hashes, unit_size)
        train, validation = split_documents(tmp_path / "work", store, 0.05, documents_per_shard=31)
        results.append((dealt(store, train), dealt(store, validation)))
    assert results[0] == results[1] == results[2]
    assert dealt(store, train, seed=4) != results[0][0]
    again = dealt(store, train, copy=1)
    assert again != results[0][0], "another copy is dealt anew"
    assert sorted(itertools.chain(*again)) == sorted(itertools.chain(*results[0][0]))
    mixed = np.abs(
        np.corrcoef([np.median(shard) for shard in results[0][0]], range(train.num_shards))
    )
    assert mixed[0, 1] < 0.5, "a shard holds documents from everywhere"


@pytest.mark.parametrize(
    ("num_texts", "share", "expected"),
    [
        (1_000, 0.0, 0),
        (3, 0.02, 0),  # two for each side there are not
        (4, 0.02, 0),  # three different ones
        (5, 0.02, 2),
        (80, 0.001, 2),  # the share is too small for this corpus: raised to two
        (4, 0.999999, 0),
        (9, 0.999999, 2),  # all are below the limit, which would leave none
    ],
)
def test_validation_has_two_texts_or_none(
    tmp_path: Path, num_texts: int, share: float, expected: int
) -> None:
    hashes = hash64("small", np.arange(num_texts))
    hashes[-1] = hashes[0]  # a duplicate makes no second text
    store = store_of(tmp_path, hashes, unit_size=7)
    train, validation = split_documents(tmp_path / "work", store, share, documents_per_shard=1)
    held_out = {int(hashes[d]) for shard in dealt(store, validation) for d in shard}
    assert len(held_out) == expected
    assert train.num_documents + validation.num_documents == num_texts
    assert validation.num_shards == (expected > 0)


@pytest.mark.parametrize("num_documents", [2, 15, 16, 100])
def test_a_shard_has_documents_to_choose_from(tmp_path: Path, num_documents: int) -> None:
    store = store_of(tmp_path, hash64("few", np.arange(num_documents)), unit_size=9)
    train, _ = split_documents(tmp_path / "work", store, 0.0, documents_per_shard=0.01)
    sizes = [len(shard) for shard in dealt(store, train)]
    assert min(sizes) >= min(num_documents, 5) and sum(sizes) == num_documents


@pytest.mark.parametrize("range_documents", [100, 1 << 21])
@pytest.mark.parametrize("unit_size", [1, 73, 5_003])
def test_of_duplicates_the_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_documents: int, unit_size: int
) -> None:
    monkeypatch.setattr("data_prep.duplicates._RANGE_DOCUMENTS", range_documents)
    count = 503 if unit_size == 1 else 5_003
    hashes = hashes_with_duplicates(count)
    hashes[count // 2 :: 5] = hashes[7]  # one text that is everywhere
    store = store_of(tmp_path, hashes, unit_size)
    train, validation = split_documents(tmp_path / "work", store, 0.1, 97, deduplicate=True)
    shards = dealt(store, train) + dealt(store, validation)
    _, first = np.unique(hashes, return_index=True)
    assert sorted(itertools.chain(*shards)) == sorted(first.tolist())
    assert train.num_documents + validation.num_documents == first.size < 0.8 * count


def test_the_work_for_duplicates_is_bounded() -> None:
    assert [num_ranges(n) for n in (0, 1, 1 << 21, (1 << 21) + 1, 10**9)] == [0, 1, 1, 2, 477]
