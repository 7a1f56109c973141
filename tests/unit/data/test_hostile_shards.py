"""Data sets that lie, with sums that agree: refused in one line, before anything is trained."""

import copy
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_bert.common.errors import UserError
from dist_bert.data.batches import BatchShape
from dist_bert.data.pretraining_batches import training_batches
from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import SampleOrder
from dist_bert.data.sample_rules import check_ranges
from dist_bert.data.shard_format import MANIFEST_NAME, Manifest, write_shard
from dist_bert.data.shard_source import ShardSource
from dist_bert.model.config import ModelConfig
from dist_bert.tools.plan.workload import Workload
from tests.support.processes import ROOT, run_script
from tests.support.synthetic import Block, DataSet, write_data_set

Json = dict[str, Any]
SHARD, BLOCK, ROW = 0, 1, 2  # of the training split


@pytest.fixture
def data_set(tmp_path: Path) -> DataSet:
    return write_data_set(tmp_path / "shards")


def rewrite(data_set: DataSet, change: Callable[[Block], None]) -> Manifest:
    """Changes one block, and the manifest with it."""
    blocks = [{f: c.copy() for f, c in b.items()} for b in data_set.blocks["train"][:2]]
    change(blocks[BLOCK])
    record = write_shard(data_set.folder / "train-00000.tar", {}, blocks)
    splits = {**data_set.manifest.splits}
    splits["train"] = (record, *splits["train"][1:])
    manifest = dataclasses.replace(data_set.manifest, splits=splits)
    manifest.save(data_set.folder)
    return Manifest.load(data_set.folder)


def put(field: str, value: int, *place: int) -> Callable[[Block], None]:
    def change(block: Block) -> None:
        block[field][(ROW, *place)] = value

    return change


def repeat_position(block: Block) -> None:
    assert block["num_masked"][ROW] > 1
    block["masked_lm_positions"][ROW, 1] = block["masked_lm_positions"][ROW, 0]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (put("num_tokens", 0), "num_tokens is 3 to sequence_length"),
        (put("num_tokens", 2), "num_tokens is 3 to sequence_length"),
        (put("num_tokens", 65_535), "num_tokens is 3 to sequence_length"),
        (put("segment_b_start", 0), "both segments hold text"),
        (put("segment_b_start", 65_535), "both segments hold text"),
        (put("next_sentence_label", 2), "next_sentence_label is 0 or 1"),
        (put("num_masked", 0), "something is masked"),
        (put("num_masked", 65_535), "something is masked"),
        (put("masked_lm_positions", 65_535, 0), "masked positions are inside the sample"),
        (put("masked_lm_positions", 65_535, -1), "masked positions are inside the sample"),
        (put("input_ids", 101, 1), "pieces are below vocab_size"),
        (put("input_ids", 65_535, -1), "pieces are below vocab_size"),
        (put("masked_lm_labels", 101, 0), "labels are below vocab_size"),
        (put("masked_lm_labels", 4, 0), "no special token is masked"),
        (repeat_position, "masked positions ascend"),
    ],
)
def test_a_sample_out_of_range_is_named_before_a_step(
    data_set: DataSet, change: Callable[[Block], None], rule: str
) -> None:
    reader = SampleReader(data_set.folder, rewrite(data_set, change), "train")
    others = np.array([0, 2, 3, 4, 5])
    reader.gather(others, np.zeros_like(others))
    place = rf"train-00000\.tar: block {BLOCK}: sample {ROW} breaks the rule: {rule}$"
    with pytest.raises(UserError, match=place):
        reader.gather(np.array([BLOCK]), np.array([0]), ("num_tokens",))  # not that row or field
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, 7)
    steps = training_batches(reader, order, BatchShape(1, 1, 27), 0, 0)
    with pytest.raises(UserError, match=place):
        next(steps)


def test_a_block_is_checked_once(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def check(where: str, *others: Any) -> None:
        checked.append(where)
        check_ranges(where, *others)

    monkeypatch.setattr("dist_bert.data.reader.check_ranges", check)
    reader = SampleReader(data_set.folder, data_set.manifest, "train")
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, 7)
    list(islice(training_batches(reader, order, BatchShape(1, 1, 9), 0, 0), 9))  # three epochs
    assert len(checked) == len(set(checked)) == len(reader.blocks) == 6
    assert f"{data_set.folder / 'train-00002.tar'}: block 1" in checked


def test_a_copy_in_the_cache_is_checked_too(data_set: DataSet, tmp_path: Path) -> None:
    manifest = rewrite(data_set, put("num_tokens", 0))
    source = ShardSource(data_set.folder, str(tmp_path / "cache"))
    reader = SampleReader(source, manifest, "train")
    with pytest.raises(UserError, match=rf"\.tar: block {BLOCK}: sample {ROW} breaks the rule"):
        reader.gather(np.array([BLOCK]), np.array([0]))


# --- the manifest


def at(*path: str | int) -> Callable[[Any], Callable[[Json], None]]:
    """What sets an item of the manifest, however deep."""

    def to(value: Any) -> Callable[[Json], None]:
        def change(manifest: Json) -> None:
            item: Any = manifest
            for key in path[:-1]:
                item = item[key]
            item[path[-1]] = value

        return change

    return to


def without(*path: str | int) -> Callable[[Json], None]:
    def change(manifest: Json) -> None:
        item: Any = manifest
        for key in path[:-1]:
            item = item[key]
        del item[path[-1]]

    return change


def moved(row: int, column: int, by: int) -> Callable[[Json], None]:
    def change(manifest: Json) -> None:
        manifest["splits"]["train"][0]["blocks"][row][column] += by

    return change


FIRST = ("splits", "train", 0)
BLOCKS = r"splits\.train\[0\] \(train-00000\.tar\): "
SHAPE = r": has an impossible shape"
PLACE = r": does not end where the next one begins"
CASES: dict[str, tuple[Callable[[Json], None], str]] = {
    "no splits": (without("splits"), "splits is missing"),
    "no config": (without("config"), "config is missing"),
    "no inputs": (without("inputs"), "inputs is missing"),
    "another key": (at("more")(1), "unknown key more"),
    "config a list": (at("config")([]), "config is not an object"),
    "no length": (without("config", "sequence_length"), r"config\.sequence_length is missing"),
    "length 0": (at("config", "sequence_length")(0), r"config\.sequence_length = 0: must be"),
    "length a text": (at("config", "sequence_length")("31"), r"sequence_length = 31: must be"),
    "length true": (at("config", "sequence_length")(True), r"sequence_length = True: must be"),
    "objective": (at("config", "pair_objective")([]), "pair_objective = list: must be nsp, sop or"),
    "spans": (at("config", "mean_span_length")(float("nan")), "mean_span_length = nan: must be"),
    "no vocabulary": (without("tokenizer", "vocab_size"), r"tokenizer\.vocab_size is missing"),
    "vocabulary": (at("tokenizer", "vocab_size")(2**40), "vocab_size = 1099511627776: must be"),
    "reserved": (at("tokenizer", "num_reserved_pieces")(101), "must be below vocab_size"),
    "fingerprint": (
        at("tokenizer", "fingerprint")("../../etc/passwd"),
        r"tokenizer\.fingerprint = \.\./\.\./etc/passwd: must be 64 hexadecimal digits",
    ),
    "no documents": (without("totals", "documents"), r"totals\.documents is missing"),
    "sketch": (at("totals", "document_sketch")("AAAA"), r"totals\.document_sketch: has 3 bytes, "),
    "statistics": (at("statistics")({"train": {"shares": {"a": "b\n"}}}), r"statistics\.train: "),
    "one split": (without("splits", "validation"), "splits must be train and validation"),
    "split no list": (at("splits", "train")({}), r"splits\.train is not a list"),
    "shard a text": (at(*FIRST)("train-00000.tar"), r"splits\.train\[0\]: must have the keys"),
    "shard key missing": (without(*FIRST, "bytes"), r"splits\.train\[0\]: must have the keys"),
    "file above": (at(*FIRST, "file")("../secret.tar"), r"\[0\]\.file = \.\./secret\.tar: must"),
    "file elsewhere": (at(*FIRST, "file")("/etc/passwd"), r"file = /etc/passwd: must be a file"),
    "file hidden": (at(*FIRST, "file")(".."), r"file = \.\.: must be a file name"),
    "file of a query": (at(*FIRST, "file")("a.tar?b"), r"file = a\.tar\?b: must be a file name"),
    "file of two lines": (at(*FIRST, "file")("a\nb"), r"file = a\\nb: must be a file name"),
    "sum a path": (at(*FIRST, "sha256")("../" * 20 + "0000"), r"sha256 = \.\./.*: must be 64"),
    "sum in capitals": (at(*FIRST, "sha256")("A" * 64), r"sha256 = A+: must be 64"),
    "bytes": (at(*FIRST, "bytes")(2**70), r"\[0\]\.bytes = \d+: must be an integer from 0 to"),
    "blocks nothing": (at(*FIRST, "blocks")(None), f"{BLOCKS}blocks: must be rows of five"),
    "blocks a text": (at(*FIRST, "blocks")("ab"), f"{BLOCKS}blocks: must be rows of five"),
    "blocks empty": (at(*FIRST, "blocks")([]), f"{BLOCKS}blocks: must be rows of five"),
    "short row": (without(*FIRST, "blocks", 1, 4), f"{BLOCKS}blocks: must be rows of five"),
    "short rows": (at(*FIRST, "blocks")([[1], [2]]), f"{BLOCKS}blocks: must be rows of five"),
    "offset a half": (at(*FIRST, "blocks", 0, 0)(1024.5), f"{BLOCKS}blocks: must be rows of five"),
    "offset huge": (at(*FIRST, "blocks", 0, 0)(2**70), f"{BLOCKS}blocks: must be rows of five"),
    "offset beyond": (at(*FIRST, "blocks", 1, 0)(2**62), rf"{BLOCKS}blocks\[0\]{PLACE}"),
    "offset negative": (at(*FIRST, "blocks", 0, 0)(-512), rf"{BLOCKS}blocks\[0\]{PLACE}"),
    "offset odd": (moved(1, 0, 512), rf"{BLOCKS}blocks\[0\]{PLACE}"),
    "first offset": (moved(0, 0, 8), rf"{BLOCKS}blocks\[0\]{PLACE}"),
    "no samples": (at(*FIRST, "blocks", 1, 1)(0), rf"{BLOCKS}blocks\[1\]{SHAPE}"),
    "samples": (at(*FIRST, "blocks", 1, 1)(2**40), rf"{BLOCKS}blocks\[1\]{SHAPE}"),
    "width": (at(*FIRST, "blocks", 1, 2)(32), rf"{BLOCKS}blocks\[1\]{SHAPE}"),
    "predictions": (at(*FIRST, "blocks", 1, 3)(99), rf"{BLOCKS}blocks\[1\]{SHAPE}"),
    "sum of samples": (at(*FIRST, "num_samples")(9), f"{BLOCKS}num_samples = 9: the blocks have 8"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_manifest_that_breaks_a_rule_is_refused_in_one_line(data_set: DataSet, name: str) -> None:
    change, message = CASES[name]
    path = data_set.folder / MANIFEST_NAME
    value = json.loads(path.read_text())
    assert Manifest.from_json(copy.deepcopy(value), path) == data_set.manifest
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=message) as caught:
        Manifest.load(data_set.folder)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"num_samples": 0, "length_bin_tokens": 4, "num_tokens": 9, "num_masked": 2},
        {"num_samples": 3, "length_bin_tokens": 4, "num_tokens": 9, "num_masked": 2},
        {
            "num_samples": 3,
            "length_bin_tokens": 4,
            "num_tokens": 9,
            "num_masked": 2,
            "length_histogram": ["a"],
        },
    ],
)
def test_a_plan_needs_the_counts_of_the_manifest(data_set: DataSet, train: Json) -> None:
    manifest = dataclasses.replace(data_set.manifest, statistics={"train": train})
    with pytest.raises(UserError, match=r"statistics\.train must have num_samples, "):
        Workload.of_shards(manifest, ModelConfig())


@pytest.mark.parametrize("name", ["short row", "offset beyond", "file above", "no splits"])
def test_scripts_end_with_one_line(data_set: DataSet, name: str) -> None:
    change, message = CASES[name]
    path = data_set.folder / MANIFEST_NAME
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    for script in (
        ("launch/verify_shards.py", data_set.folder),
        ("launch/pretrain.py", "--shards", data_set.folder, "--dry_run"),
    ):
        ended = run_script(sys.executable, ROOT / script[0], *script[1:])
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.count("\n") == 1 and str(path) in ended.stderr
        assert re.search(message, ended.stderr)
