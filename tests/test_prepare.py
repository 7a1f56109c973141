"""Parts of the preparation: inputs, the split and the dealing, the hand-out, sampling, settings."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep import data_set
from data_prep.dealing import Split, split_documents
from data_prep.inputs import find_inputs, installed_packages
from data_prep.prepare_config import FORMATS, PrepareConfig
from data_prep.progress import Progress
from data_prep.readers import _READERS
from data_prep.sampling import _hash, sample_sentences
from data_prep.token_store import TokenStore
from data_prep.workers import hand_out
from dist_bert.errors import UserError
from dist_bert.hashing import hash64
from tests.corpus import write_text_files


def store_of(folder: Path, hashes: NDArray[np.uint64], unit_size: int) -> TokenStore:
    """A store that has hashes and nothing else."""
    parts = [hashes[i : i + unit_size] for i in range(0, hashes.size, unit_size)]
    store = TokenStore(folder, [part.size for part in parts])
    for unit, part in zip(store.units, parts, strict=True):
        vars(unit)["document_hashes"] = part
    return store


def dealt(store: TokenStore, split: Split, seed: int = 3) -> list[list[int]]:
    return [split.documents(shard, store, seed).tolist() for shard in range(split.num_shards)]


def hashes_with_duplicates(count: int) -> NDArray[np.uint64]:
    """One document in three is a copy of another one."""
    numbers = np.arange(count)
    return hash64("text", np.where(numbers % 3 == 2, numbers // 2, numbers))


def test_every_document_is_dealt_once_and_duplicates_stay_on_a_side(tmp_path: Path) -> None:
    hashes = hashes_with_duplicates(5_003)
    store = store_of(tmp_path, hashes, unit_size=701)
    train, validation = split_documents(store, 0.1, documents_per_shard=97)
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
        train, validation = split_documents(store, 0.05, documents_per_shard=31)
        results.append((dealt(store, train), dealt(store, validation)))
    assert results[0] == results[1] == results[2]
    assert dealt(store, train, seed=4) != results[0][0]
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
    ],
)
def test_validation_has_two_texts_or_none(
    tmp_path: Path, num_texts: int, share: float, expected: int
) -> None:
    hashes = hash64("small", np.arange(num_texts))
    hashes[-1] = hashes[0]  # a duplicate makes no second text
    store = store_of(tmp_path, hashes, unit_size=7)
    train, validation = split_documents(store, share, documents_per_shard=1)
    held_out = {int(hashes[d]) for shard in dealt(store, validation) for d in shard}
    assert len(held_out) == expected
    assert train.num_documents + validation.num_documents == num_texts
    assert validation.num_shards == (expected > 0)


@pytest.mark.parametrize("num_documents", [2, 15, 16, 100])
def test_a_shard_has_documents_to_choose_from(tmp_path: Path, num_documents: int) -> None:
    store = store_of(tmp_path, hash64("few", np.arange(num_documents)), unit_size=9)
    train, _ = split_documents(store, 0.0, documents_per_shard=0.01)
    sizes = [len(shard) for shard in dealt(store, train)]
    assert min(sizes) >= min(num_documents, 5) and sum(sizes) == num_documents


def test_work_goes_to_the_rank_with_least_largest_first() -> None:
    assert hand_out([5, 9, 1, 1, 7], 2) == [[1, 2, 3], [4, 0]]
    sizes = [int(h) for h in hash64("sizes", np.arange(200)) % np.uint64(1_000)]
    for num_ranks in (1, 2, 3, 7):
        items = hand_out(sizes, num_ranks)
        assert sorted(itertools.chain(*items)) == list(range(200))
        loads = [sum(sizes[i] for i in own) for own in items]
        assert max(loads) - min(loads) <= max(sizes)
        assert all(
            [sizes[i] for i in own] == sorted((sizes[i] for i in own), reverse=True)
            for own in items
        )
    assert hand_out([], 3) == [[], [], []]


def test_inputs_are_sorted_files_without_repetition(tmp_path: Path) -> None:
    write_text_files(tmp_path / "b", 3)
    write_text_files(tmp_path / "a" / "deep", 2)
    patterns = [str(tmp_path / "**" / "*.txt"), str(tmp_path / "b" / "*"), str(tmp_path / "**")]
    files = find_inputs(patterns)
    assert len(files) == 5 and files == sorted(files)
    assert files[0].path.endswith("a/deep/document-0000.txt")
    assert files[0].bytes == os.path.getsize(files[0].path) > 0
    with pytest.raises(UserError, match=r"none\*.*b.*a folder: give .*b/\*\*.*no file matches"):
        find_inputs([str(tmp_path / "none*"), *patterns, str(tmp_path / "b")])


def test_installed_packages_are_modules_without_tests() -> None:
    paths = [file.path for file in installed_packages()]
    assert len(paths) > 500 and len(set(paths)) == len(paths)
    assert any(path.endswith(f"numpy{os.sep}__init__.py") for path in paths)
    assert any(path.endswith(f"{os.sep}argparse.py") for path in paths)
    assert not any(f"{os.sep}tests{os.sep}" in p or not p.endswith(".py") for p in paths)


def test_a_sample_depends_on_nothing_but_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_files(tmp_path, 211)
    monkeypatch.chdir(tmp_path)
    files = find_inputs(["*.txt"])
    everything = sample_sentences(files, "text", "", 0)
    assert len(set(everything)) == len(everything) > 1_000
    sample = sample_sentences(files, "text", "", 300)
    assert len(sample) == 300 and set(sample) < set(everything)
    assert sample == sorted(sample, key=_hash), "mixed: not in the order of the files"
    assert sample_sentences(files[::-1], "text", "", 300) == sample
    assert sample_sentences(files, "text", "", 10**6) == everything


def test_a_small_sample_reads_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text_files(tmp_path, 97)
    files = find_inputs([str(tmp_path / "*.txt")])
    opened = []

    def read(path: str, layout: str, text_field: str) -> Iterator[tuple[str, list[str]]]:
        opened.append(path)
        yield "", [f"{path} {i}" for i in range(90)]

    monkeypatch.setattr("data_prep.sampling.read_sentences", read)
    assert len(sample_sentences(files, "text", "", 500)) == 500
    assert len(opened) == 7, "500 sentences and a quarter more, 90 a file"


def test_settings_out_of_range_are_all_named() -> None:
    with pytest.raises(UserError) as caught:
        PrepareConfig(sequence_length=7, masked_lm_prob=0.0, validation_share=0.6, seed=-1)
    for name in ("sequence_length = 7", "masked_lm_prob", "validation_share", "seed = -1"):
        assert name in str(caught.value)
    assert PrepareConfig().expected_tokens_per_sample == 125 * 0.95


def test_every_format_has_a_reader() -> None:
    assert set(FORMATS) == {"auto", "jsonl", *_READERS}


def test_a_folder_belongs_to_one_data_set(tmp_path: Path) -> None:
    identity = {"seed": 1, "input": "9 files"}
    assert not data_set.is_finished(tmp_path / "new", identity)
    assert not (tmp_path / "new").exists(), "asking makes nothing"
    data_set.claim(tmp_path / "new", identity)
    assert not data_set.is_finished(tmp_path / "new", identity)
    (tmp_path / "new" / "manifest.json").write_text("{}")
    assert data_set.is_finished(tmp_path / "new", identity)
    with pytest.raises(UserError, match=r"holds another data set \(seed = 1 there, 2 asked for\)"):
        data_set.is_finished(tmp_path / "new", {**identity, "seed": 2})
    (tmp_path / "new" / "preparation.json").unlink()
    with pytest.raises(UserError, match=r"preparation\.json is missing"):
        data_set.is_finished(tmp_path / "new", identity)


def test_progress_tells_rate_and_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("data_prep.progress.time.monotonic", lambda: now[0])
    progress = Progress("tokenise", "units", 4, 40_000_000)
    for seconds in (1.0, 5.0, 6.0, 8.0):
        now[0] = seconds
        progress.add(10_000_000)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "tokenise 2/4 units 4.0 MB/s 5 s left",
        "tokenise 4/4 units 5.0 MB/s 8.0 s",
    ]
