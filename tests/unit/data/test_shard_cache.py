"""Shards from elsewhere: the same batches, each shard fetched once, whatever goes wrong."""

import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_bert.common import files
from dist_bert.common.errors import NodeError, UserError
from dist_bert.data.batches import BatchShape, StepBatch
from dist_bert.data.pretraining_batches import training_batches, validation_batches
from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import SampleOrder
from dist_bert.data.shard_cache import ShardCache
from dist_bert.data.shard_format import ShardRecord
from dist_bert.data.shard_source import ShardSource, most_bytes
from tests.support.processes import finish, started, wait_until
from tests.support.shard_server import ShardServer
from tests.support.synthetic import DataSet, write_data_set

# Shards of 10,240 to 26,624 bytes.
TRAIN = ((5, 3), (7,), (4, 2, 6), (9, 1), (8,), (10,), (11, 12))
NUM_TRAIN = sum(map(sum, TRAIN))
VALIDATION = ((13,), (14,))
CHUNK = 5_000
GIB = 2**30
# Opens every shard of a data set through a cache, and tells when it begins and ends.
PROGRAM = """
import sys
import dist_bert.data.shard_cache
from dist_bert.data.shard_source import ShardSource

url, cache, chunk = sys.argv[1:]
dist_bert.data.shard_cache.CHUNK_BYTES = int(chunk)
source = ShardSource(url, cache)
manifest = source.manifest()
print("begins", flush=True)
for record in manifest.splits["train"]:
    file = source.open(record, manifest.field_types)
    for index in range(len(record.blocks)):
        file.block(index)
print("ends", flush=True)
"""


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write_data_set(tmp_path_factory.mktemp("shards"), TRAIN, VALIDATION)


@pytest.fixture
def server(data_set: DataSet) -> Iterator[ShardServer]:
    server = ShardServer(data_set.folder)
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_bert.data.shard_cache.CHUNK_BYTES", CHUNK)
    monkeypatch.setattr("dist_bert.data.remote._FIRST_WAIT", 0.1)
    monkeypatch.setattr("dist_bert.data.sample_order.WINDOW_BLOCKS", 2)


@pytest.fixture
def train(data_set: DataSet) -> tuple[ShardRecord, ...]:
    return data_set.manifest.splits["train"]


def steps_of(reader: SampleReader, count: int, start: int = 0) -> list[StepBatch]:
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, 7)
    batches = training_batches(reader, order, BatchShape(2, 2, 3), 1, start)
    steps = list(islice(batches, count))
    batches.close()
    return steps


def assert_equal(got: Any, expected: Any) -> None:
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values)


def assert_same_batches(source: ShardSource, data_set: DataSet) -> None:
    """Of more than two epochs of training, and of a validation."""
    local = SampleReader(data_set.folder, data_set.manifest, "train")
    cached = SampleReader(source, source.manifest(), "train")
    expected, got = steps_of(local, 15), steps_of(cached, 15)
    assert 2 * NUM_TRAIN < 15 * 12 and len(got) == 15
    for one, other in zip(got, expected, strict=True):
        assert (one.num_samples, one.num_tokens) == (other.num_samples, other.num_tokens)
        for batch, other_batch in zip(one.micro_batches, other.micro_batches, strict=True):
            assert_equal(batch, other_batch)
    readers = [
        SampleReader(place, data_set.manifest, "validation") for place in (source, data_set.folder)
    ]
    batches = [list(validation_batches(reader, BatchShape(1, 2, 3), 1)) for reader in readers]
    assert len(batches[0]) == 4
    for batch, other_batch in zip(*batches, strict=True):
        assert_equal(batch, other_batch)


def num_bytes(folder: Path) -> int:
    """What the copies take, and those that are being fetched will take."""
    total = 0
    for path in folder.iterdir():
        if path.suffix == ".part":
            total += int(path.name.split(".")[1])
        elif path.suffix == ".tar":
            total += path.stat().st_size
    return total


def open_all(
    url: str, cache: Path, chunk: int = CHUNK
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, url, cache, str(chunk)]
    return started(*command, stdout=subprocess.PIPE)


# --- what is read


def test_batches_are_those_of_the_folder_and_each_shard_is_fetched_once(
    data_set: DataSet, server: ShardServer, tmp_path: Path
) -> None:
    source = ShardSource(server.url, str(tmp_path / "cache"))
    assert source.manifest() == data_set.manifest
    tokenizer = source.tokenizer_path(data_set.manifest)
    assert tokenizer.read_bytes() == (data_set.folder / "tokenizer.model").read_bytes()
    assert_same_batches(source, data_set)
    records = [record for split in data_set.manifest.splits.values() for record in split]
    assert server.num_fetched() == Counter(record.file for record in records)
    copies = {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("*.tar")}
    assert copies == {
        f"{record.sha256}.tar": (data_set.folder / record.file).read_bytes() for record in records
    }
    before = len(server.requests)
    again = ShardSource(server.url, str(tmp_path / "cache"))
    assert_same_batches(again, data_set)
    assert [request.file for request in server.requests[before:]] == ["manifest.json"]


def test_a_server_without_ranges_will_do(
    data_set: DataSet, server: ShardServer, tmp_path: Path
) -> None:
    server.knows_ranges = False
    assert_same_batches(ShardSource(server.url, str(tmp_path)), data_set)
    assert set(server.num_fetched().values()) == {1}


def test_a_folder_goes_through_the_cache_of_this_node(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    source = ShardSource(data_set.folder, "$NODE_DISK/cache")
    assert_same_batches(source, data_set)
    assert len(list((tmp_path / "node/cache").glob("*.tar"))) == len(TRAIN) + len(VALIDATION)


def test_processes_of_a_node_fetch_each_shard_once(
    train: tuple[ShardRecord, ...], server: ShardServer, tmp_path: Path
) -> None:
    server.seconds = 0.02  # so that all of them meet at every shard
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(open_all(server.url, tmp_path)) for _ in range(3)]
        for process in processes:
            made = finish(process)
            assert made.returncode == 0 and made.stdout.split() == ["begins", "ends"]
    assert server.num_fetched() == Counter(record.file for record in train)
    assert not list(tmp_path.glob("*.part"))


def test_what_comes_next_is_fetched_ahead(
    data_set: DataSet, server: ShardServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_bert.data.sample_order.WINDOW_BLOCKS", 1)
    layout = [(3,)] * 12
    many = write_data_set(tmp_path / "shards", layout, VALIDATION)
    server.folder = many.folder
    reader = SampleReader(ShardSource(server.url, str(tmp_path / "c")), many.manifest, "train")
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, 7)
    batches = training_batches(reader, order, BatchShape(1, 1, 3), 0, 0)
    next(batches)
    # Of windows of one shard, the first is in use, one waits and one is made: three are needed.
    # Three more are fetched ahead, in the order of the epoch, while none but the first is used up.
    shards = [f"train-{block:05d}.tar" for block in order.blocks_near(0, 36)]
    wait_until(lambda: len(server.num_fetched()) == 6, "6 shards fetched")
    time.sleep(0.1)
    assert set(server.num_fetched()) == set(shards[:6])
    for _ in range(3):
        next(batches)
    wait_until(lambda: len(server.num_fetched()) == 9, "9 shards fetched")
    batches.close()
    assert set(server.num_fetched().values()) == {1}


# --- room


def test_the_limit_holds_at_every_moment(
    data_set: DataSet, train: tuple[ShardRecord, ...], server: ShardServer, tmp_path: Path
) -> None:
    total = sum(record.bytes for record in train)
    limit = total * 3 // 4
    used = []
    server.before = lambda file: used.append(num_bytes(tmp_path))
    source = ShardSource(server.url, str(tmp_path), limit / GIB)
    assert_same_batches(source, data_set)
    assert limit // 2 < max(used) <= limit
    assert sum(server.num_fetched().values()) > len(TRAIN) + len(VALIDATION), "nothing was evicted"


def test_nothing_in_use_is_evicted_and_the_oldest_goes_first(
    train: tuple[ShardRecord, ...],
    server: ShardServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third, fourth = train[:4]
    limit = first.bytes + second.bytes + max(third.bytes, fourth.bytes)
    source = ShardSource(server.url, str(tmp_path), limit / GIB)
    types = source.manifest().field_types
    mapped = source.open(first, types)
    source.open(second, types)
    source.open(third, types)  # the second one is the younger of those in no use
    kept = [path.name for path in tmp_path.glob("*.tar")]
    assert sorted(kept) == sorted(f"{r.sha256}.tar" for r in (first, second, third))
    source.open(second, types)  # used again: now the third one is the oldest
    source.open(fourth, types)
    kept = [path.name for path in tmp_path.glob("*.tar")]
    assert sorted(kept) == sorted(f"{r.sha256}.tar" for r in (first, second, fourth))
    maps = [mapped, source.open(second, types), source.open(fourth, types)]
    monkeypatch.setattr("dist_bert.data.shard_cache.PATIENCE_SECONDS", 1.0)
    with pytest.raises(NodeError, match=r"no room for train-00002.tar: running jobs use all of"):
        source.open(third, types)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == sorted(kept)
    for shard in maps:
        for index in range(len(shard.record.blocks)):
            shard.block(index)
    del maps, mapped, shard
    monkeypatch.setattr("dist_bert.data.shard_cache.PATIENCE_SECONDS", 300.0)
    assert source.open(third, types).block(0)


def test_a_limit_below_what_is_needed_at_once_is_refused(data_set: DataSet, tmp_path: Path) -> None:
    source = ShardSource(data_set.folder, str(tmp_path), 2.0)
    assert source.room_problems(data_set.manifest, 2 * GIB) == []
    (problem,) = source.room_problems(data_set.manifest, 3 * GIB)
    assert "local_cache_gib = 2: must be at least 3 GiB, the shards" in problem
    assert ShardSource(data_set.folder).room_problems(data_set.manifest, 3 * GIB) == []


def test_a_disk_that_is_too_small_is_told_beforehand(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record for split in data_set.manifest.splits.values() for record in split]
    total = sum(record.bytes for record in records)
    source = ShardSource(data_set.folder, str(tmp_path))
    usage = os.statvfs(tmp_path)

    def free(num_bytes: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage_of(num_bytes))

    def usage_of(num_bytes: int) -> Any:
        return type("usage", (), {"free": num_bytes, "total": usage.f_blocks})

    free(total)
    assert source.room_problems(data_set.manifest, 0) == []
    free(total - 1)
    (problem,) = source.room_problems(data_set.manifest, 0)
    assert "of shards are not cached yet" in problem
    source.open(records[0], data_set.manifest.field_types)
    assert source.room_problems(data_set.manifest, 0) == []


def test_no_run_of_blocks_takes_more_than_is_reckoned(data_set: DataSet) -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        counts = rng.integers(1, 6, 9)
        sizes = rng.integers(1, 1_000, 9)
        records = [
            ShardRecord("", int(size), "", 0, (data_set.manifest.splits["train"][0].blocks[:1]) * n)
            for size, n in zip(sizes, counts, strict=True)
        ]
        for num_blocks in (1, 4, 9):
            reckoned = most_bytes(records, num_blocks)
            shards = np.repeat(order := rng.permutation(9), counts[order])
            for start in range(shards.size - num_blocks + 1):
                run = np.unique(shards[start : start + num_blocks])
                assert sizes[run].sum() <= reckoned
        assert most_bytes(records, 1_000) == sizes.sum()


# --- what goes wrong


def test_a_damaged_copy_is_fetched_again_once(
    data_set: DataSet, train: tuple[ShardRecord, ...], server: ShardServer, tmp_path: Path
) -> None:
    cache = ShardCache(_origin(server), tmp_path, 0)
    record = train[2]
    server.corrupt[record.file] = 1
    with cache.open(record, _quiet) as file:
        assert file.read() == (data_set.folder / record.file).read_bytes()
    assert server.num_fetched() == {record.file: 2}
    record = train[3]
    wrong = data_set.folder / "wrong"
    wrong.mkdir()
    damaged = bytearray((data_set.folder / record.file).read_bytes())
    damaged[1_234] ^= 1
    (wrong / record.file).write_bytes(damaged)
    server.folder = wrong
    with pytest.raises(NodeError) as caught:
        cache.open(record, _quiet)
    for part in (
        f"{server.url}/{record.file}: is damaged, even after fetching it again",
        files.sha256_of_file(wrong / record.file),
        record.sha256,
    ):
        assert part in str(caught.value)
    assert server.num_fetched()[record.file] == 2
    assert [path.name for path in tmp_path.glob("*.*")] == [".lock", f"{train[2].sha256}.tar"]


def test_a_copy_that_changes_on_the_disk_is_replaced(
    data_set: DataSet, train: tuple[ShardRecord, ...], server: ShardServer, tmp_path: Path
) -> None:
    source = ShardSource(server.url, str(tmp_path))
    reader = SampleReader(source, data_set.manifest, "train")
    reader.gather(np.array([2]), np.array([0]))  # of the second shard
    copy = tmp_path / f"{train[1].sha256}.tar"
    data = bytearray(copy.read_bytes())
    data[train[1].blocks[0].offset + 700] ^= 1
    copy.write_bytes(data)
    fresh = SampleReader(source, data_set.manifest, "train")
    local = SampleReader(data_set.folder, data_set.manifest, "train")
    where = (np.array([2, 2]), np.array([6, 1]))
    assert_equal(fresh.gather(*where), local.gather(*where))
    assert server.num_fetched() == {train[1].file: 2}
    copy.write_bytes(data[:-512])  # cut off: seen by its size
    assert_equal(
        SampleReader(source, data_set.manifest, "train").gather(*where), local.gather(*where)
    )
    assert server.num_fetched() == {train[1].file: 3}


def test_an_answer_that_breaks_off_is_asked_for_again_from_there(
    data_set: DataSet,
    train: tuple[ShardRecord, ...],
    server: ShardServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = train[0]
    seen: list[int] = []

    def cut_the_second(file: str) -> None:
        seen.append(len(server.requests))
        server.cut[file] = int(len(seen) == 2)

    server.before = cut_the_second
    with ShardCache(_origin(server), tmp_path, 0).open(record, _quiet) as file:
        assert file.read() == (data_set.folder / record.file).read_bytes()
    starts = [request.start for request in server.requests]
    assert starts == [0, CHUNK, CHUNK, *range(2 * CHUNK, record.bytes, CHUNK)]
    (line,) = caplog.messages
    assert line.startswith(f"{server.url}/{record.file}: cannot be read (Client")
    assert line.endswith("; retrying for up to 300 s")


def test_a_server_that_is_down_for_a_while_is_waited_for(
    data_set: DataSet,
    server: ShardServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = ShardSource(server.url, str(tmp_path))
    cached = SampleReader(source, source.manifest(), "train")
    local = SampleReader(data_set.folder, data_set.manifest, "train")
    steps_of(cached, 1)
    for copy in tmp_path.glob("*.tar"):
        copy.unlink()
    beats: list[str] = []
    cached = SampleReader(source, source.manifest(), "train")
    cached.beat = beats.append
    server.stop()
    timer = threading.Timer(0.8, server.start)
    timer.start()
    with caplog.at_level(logging.WARNING):
        got, expected = steps_of(cached, 2), steps_of(local, 2)
    timer.join()
    for one, other in zip(got, expected, strict=True):
        assert_equal(one.micro_batches[1], other.micro_batches[1])
    assert len(caplog.messages) == 1, "the first failure is told, and not every one"
    assert re.search(r"cannot be read \(.*; retrying for up to 300 s", caplog.messages[0])
    assert sum("0 of" in beat for beat in beats) >= 3, "every attempt is a sign of life"


@pytest.mark.parametrize("is_missing", [False, True])
def test_a_server_that_stays_down_ends_it_with_one_line(
    train: tuple[ShardRecord, ...],
    server: ShardServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_missing: bool,
) -> None:
    monkeypatch.setattr("dist_bert.data.shard_cache.PATIENCE_SECONDS", 1.0)
    cache = ShardCache(_origin(server), tmp_path, 0)
    if is_missing:
        server.folder = tmp_path
    else:
        server.stop()
    start = time.monotonic()
    with pytest.raises(NodeError) as caught:
        cache.open(train[0], _quiet)
    assert time.monotonic() - start > 0.9
    problem = r"is missing" if is_missing else r"cannot be read \(ClientConnectorError: .*\)"
    assert re.fullmatch(
        rf"{server.url}/train-00000\.tar: {problem}; gave up after 1 s without progress; the same"
        " command resumes",
        str(caught.value),
    )
    if not is_missing:
        server.start()


def test_a_process_killed_in_a_fetch_is_no_obstacle(
    data_set: DataSet, train: tuple[ShardRecord, ...], server: ShardServer, tmp_path: Path
) -> None:
    server.seconds = 0.05
    with open_all(server.url, tmp_path):
        wait_until(lambda: any(r.start > CHUNK for r in server.requests), "a second chunk")
    (part,) = tmp_path.glob("*.part")
    fetched = part.stat().st_size
    assert 2 * CHUNK <= fetched < train[0].bytes
    server.seconds = 0.0
    before = len(server.requests)
    with open_all(server.url, tmp_path) as process:
        made = finish(process)
    assert made.returncode == 0 and made.stdout.split() == ["begins", "ends"]
    starts = [r.start for r in server.requests[before:] if r.file == train[0].file]
    assert starts[0] == fetched, "what is there is not fetched again"
    for record in train:
        copy = tmp_path / f"{record.sha256}.tar"
        assert copy.read_bytes() == (data_set.folder / record.file).read_bytes()


def test_what_a_killed_process_left_is_evicted_like_a_copy(
    train: tuple[ShardRecord, ...], server: ShardServer, tmp_path: Path
) -> None:
    first, second = train[:2]
    (tmp_path / f"{first.sha256}.{first.bytes}.part").write_bytes(b"torn")
    cache = ShardCache(_origin(server), tmp_path, first.bytes + second.bytes - 1)
    cache.open(second, _quiet).close()
    assert [path.name for path in tmp_path.glob("[!.]*")] == [f"{second.sha256}.tar"]
    (tmp_path / f"{first.sha256}.{first.bytes}.part").write_bytes(b"torn")  # and never believed
    ShardCache(_origin(server), tmp_path, 0).open(first, _quiet).close()
    assert files.sha256_of_file(tmp_path / f"{first.sha256}.tar") == first.sha256


def test_whoever_waits_beats_as_long_as_there_is_progress(
    train: tuple[ShardRecord, ...],
    server: ShardServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = train[2]  # of 6 chunks
    monkeypatch.setattr("dist_bert.data.shard_cache.PATIENCE_SECONDS", 3.0)
    server.seconds = 0.8  # 4 s for all of it: more than the patience
    beats: dict[int, list[float]] = {0: [], 1: []}
    told: list[str] = []

    def fetch(number: int) -> None:
        def beat(doing: str) -> None:
            beats[number].append(time.monotonic())
            told.append(doing)

        ShardCache(_origin(server), tmp_path, 0).open(record, beat).close()

    threads = [threading.Thread(target=fetch, args=(number,)) for number in beats]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / f"{record.sha256}.tar").stat().st_size == record.bytes
    assert server.num_fetched() == {record.file: 1}
    for times in beats.values():
        assert times[-1] - times[0] > 3.0, "a fetch that outlasts the patience"
        assert len(times) >= 6, "one with each chunk, also of the one that only waits"
    assert f"fetching {server.url}/{record.file}, 5,000 of {record.bytes:,} bytes" in told


def test_a_disk_that_cannot_be_written_is_named(
    data_set: DataSet, train: tuple[ShardRecord, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--local_cache .*/file/cache: cannot be used \(Not a dir"):
        ShardSource(data_set.folder, str(tmp_path / "file/cache"))
    with pytest.raises(UserError, match=r"--local_cache \$NO_SUCH/cache: a variable in it is not"):
        ShardSource(data_set.folder, "$NO_SUCH/cache")


# --- before anything is fetched


def test_looking_from_afar_finds_what_is_wrong_without_fetching(
    data_set: DataSet, server: ShardServer, tmp_path: Path
) -> None:
    records = [record for split in data_set.manifest.splits.values() for record in split]
    source = ShardSource(server.url, str(tmp_path / "cache"))
    shares = [source.problems(data_set.manifest, rank, 2) for rank in range(2)]
    assert shares == [[], []]
    looked = Counter(request.file for request in server.requests if request.method == "GET")
    assert looked == Counter(record.file for record in records), "shared out among the ranks"
    fetched = sum(r.num_bytes for r in server.requests if r.method == "GET")
    assert fetched == sum(record.block_bounds(0)[1] - 1_024 for record in records)
    assert not list((tmp_path / "cache").glob("*.tar"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for number, record in enumerate(records):
        data = bytearray((data_set.folder / record.file).read_bytes())
        if number == 0:
            data[record.blocks[0].offset] ^= 1
        if number == 3:
            del data[-512:]
        if number != 4:
            (broken / record.file).write_bytes(data)
    server.folder = broken
    assert source.problems(data_set.manifest, 0, 1) == [
        f"{server.url}/train-00000.tar: block 0 is damaged (crc32 differs from the manifest); copy"
        " or prepare this shard again",
        f"{server.url}/train-00003.tar: has {records[3].bytes - 512} bytes, the manifest says"
        f" {records[3].bytes}; copy or prepare this shard again",
        f"{server.url}/train-00004.tar: is missing",
    ]


def test_addresses_that_hold_no_data_set_are_told_at_once(
    data_set: DataSet, server: ShardServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"--shards s3://b/shards: give --local_cache DIR"):
        ShardSource("s3://b/shards")
    with pytest.raises(UserError, match=r"gopher://b: is not an address that fsspec can read"):
        ShardSource("gopher://b", str(tmp_path))
    server.folder = tmp_path
    with pytest.raises(UserError, match=r"has no data set or an unfinished one \(http.*missing"):
        ShardSource(server.url, str(tmp_path)).manifest()
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: is not valid JSON"):
        ShardSource(server.url, str(tmp_path)).manifest()
    (tmp_path / "tokenizer.model").write_bytes(b"another one")
    with pytest.raises(UserError, match=r"is not the tokenizer that made the shards"):
        ShardSource(server.url, str(tmp_path)).tokenizer_path(data_set.manifest)
    monkeypatch.setattr("dist_bert.data.shard_source.START_SECONDS", 0.2)
    server.stop()
    with pytest.raises(NodeError, match=r"manifest\.json: cannot be read .* gave up after 0 s"):
        ShardSource(server.url, str(tmp_path)).manifest()
    server.start()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"needs the package fsspec: pip install .*\[remote\]"):
        ShardSource(server.url, str(tmp_path))
    assert ShardSource(data_set.folder, str(tmp_path)).manifest() == data_set.manifest


def _origin(server: ShardServer) -> Any:
    from dist_bert.data.remote import Origin

    return Origin(server.url)


def _quiet(doing: str) -> None:
    """A beat that nobody listens to."""
