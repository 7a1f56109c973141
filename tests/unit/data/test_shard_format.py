"""Shards: what is written is what is read, by us, by webdataset and by tar; damage is named."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.data.shard_format import (
    FIELD_SHAPES,
    MANIFEST_NAME,
    META_MEMBER,
    FieldTypes,
    Manifest,
    ShardFile,
    ShardRecord,
    write_shard,
)
from tests.support.processes import run_script

Block = dict[str, NDArray[Any]]
Written = tuple[Path, ShardRecord]

TYPES = FieldTypes.fitting(101, 1_000)
META = {"sequence_length": 13, "text": "Straße 北京"}


def make_block(num_samples: int, max_tokens: int, max_masked: int, seed: int) -> Block:
    """Random numbers in the contract's types and shapes."""
    rng = np.random.default_rng(seed)
    sizes = {"B": num_samples, "S": max_tokens, "P": max_masked, "2": 2}
    return {
        field: rng.integers(0, 101, [sizes[s] for s in shape]).astype(TYPES.of(field))
        for field, shape in FIELD_SHAPES.items()
    }


BLOCKS = [make_block(7, 13, 3, 0), make_block(5, 11, 2, 1), make_block(1, 600, 97, 2)]


def make_manifest(*records: ShardRecord) -> Manifest:
    return Manifest(
        config={
            "sequence_length": 600,
            "pair_objective": "nsp",
            "whole_words": False,
            "mean_span_length": 0.0,
            "masked_lm_prob": 0.15,
            "seed": 2**53 + 1,
            "spans": None,
        },
        tokenizer={
            "fingerprint": "f" * 64,
            "vocab_size": 101,
            "special_ids": {"[MASK]": 4},
            "num_reserved_pieces": 5,
        },
        inputs=[{"path": "a b/ü.txt", "sha256": "0" * 64}],
        totals={"documents": 1_000, "tokens": 10**12},
        statistics={"train": {"shares": {"masked": 0.1 + 0.2}, "length_histogram": [0, 3, 5]}},
        splits={"train": records, "validation": ()},
    )


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Folder and record of a shard with three blocks of different shapes."""
    return tmp_path, write_shard(tmp_path / "train-00000.tar", META, BLOCKS)


def damage(path: Path, offset: int) -> None:
    """Flips one bit."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_blocks_come_back_equal(written: Written) -> None:
    folder, record = written
    assert record.num_samples == 13
    assert [(b.num_samples, b.max_tokens, b.max_masked) for b in record.blocks] == [
        (7, 13, 3),
        (5, 11, 2),
        (1, 600, 97),
    ]
    shard = ShardFile(folder, record, TYPES)
    for index in (2, 0, 1, 0):
        block = shard.block(index)
        assert list(block) == list(FIELD_SHAPES)
        for field, expected in BLOCKS[index].items():
            assert block[field].dtype == expected.dtype
            assert np.array_equal(block[field], expected)
            assert not block[field].flags.writeable


def test_equal_input_gives_equal_bytes(written: Written) -> None:
    folder, record = written
    again = folder / "again"
    again.mkdir()
    same_meta = dict(reversed(META.items()))
    assert write_shard(again / record.file, same_meta, iter(BLOCKS)) == record
    assert (again / record.file).read_bytes() == (folder / record.file).read_bytes()
    assert [path.name for path in again.iterdir()] == [record.file]  # nothing temporary is left


def test_a_shard_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def blocks() -> Iterator[Block]:
        yield BLOCKS[0]
        raise RuntimeError("the corpus broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        write_shard(tmp_path / "train-00000.tar", META, blocks())
    assert list(tmp_path.iterdir()) == []


def test_plain_webdataset_reads_the_samples(written: Written) -> None:
    folder, record = written
    fields = [f"{field}.npy" for field in FIELD_SHAPES]
    path = str(folder / record.file)
    dataset = webdataset.WebDataset(path, shardshuffle=False).decode().to_tuple(*fields)
    samples = list(dataset.unbatched())
    assert len(samples) == 13
    expected = [
        tuple(block[field][row] for field in FIELD_SHAPES)
        for block in BLOCKS
        for row in range(block["num_tokens"].size)
    ]
    for sample, values in zip(samples, expected, strict=True):
        for value, expected_value in zip(sample, values, strict=True):
            assert np.array_equal(value, expected_value)


def test_tar_lists_the_members_without_a_trace_of_who_wrote_them(written: Written) -> None:
    folder, record = written
    command = ["tar", "--utc", "--full-time", "--numeric-owner", "-tvf", folder / record.file]
    listing = run_script(*command).stdout.splitlines()
    names = [line.split()[-1] for line in listing]
    keys = [f"train-00000-{index:06d}" for index in range(3)]
    assert names == [META_MEMBER, *(f"{k}.{field}.npy" for k in keys for field in FIELD_SHAPES)]
    assert all(line.startswith("-rw-r--r-- 0/0 ") for line in listing)
    assert all("1970-01-01 00:00:00" in line for line in listing)
    meta = run_script("tar", "-xOf", folder / record.file, META_MEMBER).stdout
    assert json.loads(meta) == META


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("place", ["header", "contents", "end"])
def test_a_flipped_bit_is_named_with_shard_and_block(
    written: Written, index: int, place: str
) -> None:
    folder, record = written
    starts = [block.offset for block in record.blocks] + [record.bytes - 1_024]
    offset = {
        "header": starts[index],
        "contents": starts[index] + 512 + 128,
        "end": starts[index + 1] - 1,
    }[place]
    damage(folder / record.file, offset)
    shard = ShardFile(folder, record, TYPES)
    for other in {0, 1, 2} - {index}:
        shard.block(other)
    with pytest.raises(UserError, match=rf"train-00000\.tar: block {index} is damaged"):
        shard.block(index)


def test_a_shard_of_another_size_or_none_is_named(written: Written) -> None:
    folder, record = written
    path = folder / record.file
    data = path.read_bytes()
    path.write_bytes(data[:-512])
    with pytest.raises(UserError, match=rf"has {len(data) - 512} bytes.* says {len(data)}"):
        ShardFile(folder, record, TYPES)
    path.unlink()
    with pytest.raises(UserError, match=r"train-00000\.tar: is missing; copy or"):
        ShardFile(folder, record, TYPES)


def test_manifest_comes_back_equal(written: Written) -> None:
    folder, record = written
    manifest = make_manifest(record)
    manifest.save(folder)
    loaded = Manifest.load(folder)
    assert loaded == manifest  # floats and large integers to the last bit, blocks as records
    assert loaded.fingerprint == manifest.fingerprint
    assert loaded.field_types == TYPES
    first = (folder / MANIFEST_NAME).read_bytes()
    loaded.save(folder)
    assert (folder / MANIFEST_NAME).read_bytes() == first


def test_fingerprint_names_the_shards_and_their_order(written: Written) -> None:
    _, record = written
    other = dataclasses.replace(record, sha256="1" * 64)
    fingerprints = {
        make_manifest(*records).fingerprint
        for records in [(record,), (other,), (record, other), (other, record)]
    }
    assert len(fingerprints) == 4
    renamed = dataclasses.replace(record, file="elsewhere.tar")
    assert make_manifest(renamed).fingerprint == make_manifest(record).fingerprint


def test_unfinished_missing_and_strange_data_sets_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is unfinished"):
        Manifest.load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Manifest.load(tmp_path / "nowhere")
    (tmp_path / MANIFEST_NAME).write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="format_version = 99"):
        Manifest.load(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "num_pieces,num_documents,piece,document",
    [
        (65_536, 2**32, "<u2", "<u4"),
        (65_537, 2**32, "<u4", "<u4"),
        (101, 2**32 + 1, "<u2", "<u8"),
    ],
)
def test_the_smallest_types_that_fit(
    num_pieces: int, num_documents: int, piece: str, document: str
) -> None:
    types = FieldTypes.fitting(num_pieces, num_documents)
    assert types.of("input_ids") == types.of("masked_lm_labels") == np.dtype(piece)
    assert types.of("document_ids") == np.dtype(document)
    assert types.of("num_tokens") == np.dtype("<u2")
    assert types.of("next_sentence_label") == np.dtype("u1")
