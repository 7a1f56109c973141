"""Data sets of more files than a process may have open: made, checked and read all the same.

Every process here has a limit of 320 open files, and meets more than twice as many.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep import mapping
from dist_bert.data.reader import MAX_MAPPED_SHARDS, SampleReader
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import train_tokenizer
from tests.support.corpus import english_sentences
from tests.support.processes import environment
from tests.support.synthetic import DataSet, write_data_set

MAY_OPEN = 320
NUM_SHARDS = 700
LIMITED = """
import json, os, resource, runpy, sys
limit, extra = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
"""
READ = """
import itertools, zlib
from dist_bert.common.errors import UserError
from dist_bert.data.batches import BatchShape
from dist_bert.data.pretraining_batches import training_batches
from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import SampleOrder
from dist_bert.data.shard_format import Manifest

try:
    reader = SampleReader(extra, Manifest.load(extra), "train")
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, 7)
    sums = []
    for step in itertools.islice(training_batches(reader, order, BatchShape(1, 1, 100), 0, 0), 28):
        sums.append(zlib.crc32(step.micro_batches[0]["input_ids"].tobytes()))
    print(json.dumps(sums))
except UserError as error:
    print(error)
"""
# As launch/prepare_shards.py makes it of a corpus a thousand times as large.
PREPARE = """
from data_prep import shard_assignment, work_units
work_units._MIN_UNIT_BYTES = work_units._MAX_UNIT_BYTES = 700
work_units._LARGE_FILE = 1.0
shard_assignment._MIN_SHARD_DOCUMENTS = 2
sys.argv = extra
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def limited(program: str, extra: object, limit: int = MAY_OPEN) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED + program, json.dumps([limit, extra])],
        capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Shards of 2 and 4 samples: a window of 64 blocks is 43 shards, a batch up to 36 of them."""
    layout = [(4,) if shard % 2 else (1, 3) for shard in range(NUM_SHARDS)]
    return write_data_set(tmp_path_factory.mktemp("shards"), layout)


def test_an_epoch_of_more_shards_than_may_be_open(data_set: DataSet) -> None:
    few = limited(READ, str(data_set.folder))
    many = limited(READ, str(data_set.folder), 2 * NUM_SHARDS)
    assert few == many and len(set(json.loads(few))) == 28


def test_the_limit_is_named_with_its_remedy(data_set: DataSet) -> None:
    told = limited(READ, str(data_set.folder), 100)
    assert told.count("\n") == 1 and "prepare" not in told
    assert "cannot be read (Too many open files: raise the limit" in told and "ulimit -n" in told


def test_a_batch_may_come_from_any_number_of_shards(data_set: DataSet) -> None:
    reader = SampleReader(data_set.folder, data_set.manifest, "train")
    assert len(reader._files) == MAX_MAPPED_SHARDS < len(reader.blocks)
    blocks = np.arange(len(reader.blocks))
    columns = reader.gather(blocks, reader.block_sizes - 1)
    assert len(reader._files) == MAX_MAPPED_SHARDS
    for block in (0, 1, 500, blocks[-1]):
        expected = data_set.blocks["train"][block]["input_ids"][-1]
        assert (columns["input_ids"][block, : expected.size] == expected).all()


def test_a_preparation_of_more_files_than_may_be_open(tmp_path: Path) -> None:
    sentences = english_sentences(4_000, seed=3)
    tokenizer = train_tokenizer(sentences, tmp_path / "t", TokenizerConfig(vocab_size=211))
    lines = (f"{a}\n{b}\n\n" for a, b in zip(sentences[::2], sentences[1::2], strict=True))
    (tmp_path / "text").write_text("".join(lines))
    command = [
        "launch/prepare_shards.py", "--input", tmp_path / "text", "--format", "lines",
        "--tokenizer", tokenizer, "--output_dir", tmp_path / "out", "--samples_per_shard", 2,
        "--sequence_length", 64,
    ]  # fmt: skip
    told = limited(PREPARE, [str(part) for part in command])
    units = list((tmp_path / "out/token_store").iterdir())
    assert 4 * len(units) > 2 * MAY_OPEN, told
    assert len(list((tmp_path / "out").glob("train-*.tar"))) > 2 * MAY_OPEN, told
    checked = limited(PREPARE, ["launch/verify_shards.py", str(tmp_path / "out")])
    assert checked.endswith(": is whole, and keeps every rule of the format\n"), checked


def test_a_map_is_read_only_and_keeps_no_file_open(tmp_path: Path) -> None:
    values = np.arange(3_000, dtype=np.uint16)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "none.npy", values[:0])
    before = len(list(Path("/proc/self/fd").iterdir()))
    mapped = mapping.map_array(tmp_path / "a.npy")
    assert (mapped == values).all() and mapped.dtype == values.dtype
    assert not mapped.flags.writeable and mapped[5:9].base is not None
    assert mapping.map_array(tmp_path / "none.npy").shape == (0,)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    part = mapped[5:9]
    del mapped
    assert part.tolist() == [5, 6, 7, 8]  # its memory is still there
    del part
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
