"""HTTP servers that send too much, too slowly or nothing: bounded in memory and time, one line."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_bert.common.errors import NodeError
from dist_bert.data.shard_source import ShardSource
from tests.support.processes import ROOT, run_script
from tests.support.shard_server import ShardServer
from tests.support.synthetic import DataSet, write_data_set

# Opens all of a data set, in a process that may take 1 GiB more than it has; prints what ends it.
PROGRAM = """
import resource, sys
import aiohttp, fsspec, fsspec.implementations.http
from dist_bert.common.errors import UserError
from dist_bert.data.shard_source import ShardSource

url, cache = sys.argv[1:]
has_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (has_bytes + 2**30,) * 2)
try:
    source = ShardSource(url, cache)
    manifest = source.manifest()
    source.tokenizer_path(manifest)
    for record in manifest.splits["train"]:
        source.open(record, manifest.field_types).block(0)
    print("all is there")
except UserError as error:
    print(error)
"""
MANIFEST, TOKENIZER, SHARD = "manifest.json", "tokenizer.model", "train-00000.tar"
TOO_MUCH = "has more than 67,108,864 bytes, too many for a data set's file: check the address"


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write_data_set(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def server(data_set: DataSet) -> Iterator[ShardServer]:
    server = ShardServer(data_set.folder)
    yield server
    server.endless.clear()  # ends its threads
    server.stop()


def opened(server: ShardServer, cache: Path) -> str:
    ended: subprocess.CompletedProcess[str] = run_script(
        sys.executable, "-c", PROGRAM, server.url, cache
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert ended.stdout.count("\n") == 1
    return ended.stdout.strip()


@pytest.mark.parametrize("file", [MANIFEST, TOKENIZER])
def test_a_file_without_end_is_refused(server: ShardServer, tmp_path: Path, file: str) -> None:
    server.endless = {file}
    assert opened(server, tmp_path) == f"{server.url}/{file}: {TOO_MUCH}"


@pytest.mark.parametrize("file", [MANIFEST, TOKENIZER])
def test_a_packed_answer_is_no_larger_in_memory(
    server: ShardServer, tmp_path: Path, file: str
) -> None:
    server.packed = {file: 100 << 20}
    assert opened(server, tmp_path) == f"{server.url}/{file}: {TOO_MUCH}"


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_what_comes_behind_a_shard_is_not_read(
    server: ShardServer, tmp_path: Path, knows_ranges: bool
) -> None:
    server.endless, server.knows_ranges = {SHARD}, knows_ranges
    assert opened(server, tmp_path) == "all is there"


@pytest.mark.parametrize("file", [MANIFEST, TOKENIZER])
def test_a_file_that_trickles_in_ends_the_start(
    data_set: DataSet,
    server: ShardServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    monkeypatch.setattr("dist_bert.data.remote._ANSWER_SECONDS", 1.5)
    monkeypatch.setattr("dist_bert.data.shard_source.START_SECONDS", 0.5)
    server.trickling = {file}
    source = ShardSource(server.url, str(tmp_path))
    message = rf"{file}: cannot be read \(TimeoutError: not complete after 2 s\); gave up after"
    with pytest.raises(NodeError, match=message):
        source.tokenizer_path(data_set.manifest if file == TOKENIZER else source.manifest())


def test_a_shard_that_trickles_in_ends_with_the_patience(
    data_set: DataSet, server: ShardServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_bert.data.shard_cache.PATIENCE_SECONDS", 2.0)
    server.trickling = {SHARD}
    source = ShardSource(server.url, str(tmp_path))
    with pytest.raises(NodeError, match=rf"{SHARD}: cannot be read .* gave up after 2 s without"):
        source.open(data_set.manifest.splits["train"][0], data_set.manifest.field_types)


def test_a_check_of_shards_that_trickle_in_ends(
    data_set: DataSet, server: ShardServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_bert.data.shard_source._LOOK_SECONDS", 5.0)
    server.trickling = {SHARD}
    problems = ShardSource(server.url, str(tmp_path)).problems(data_set.manifest, 0, 1)
    assert problems == [
        f"{server.url}/{SHARD}: cannot be read (TimeoutError: not complete after 5 s)"
    ]


def test_the_watchdog_is_there_before_the_manifest(server: ShardServer, tmp_path: Path) -> None:
    server.trickling = {MANIFEST}
    ended = run_script(
        sys.executable, ROOT / "launch/pretrain.py", "--shards", server.url, "--dry_run",
        "--local_cache", tmp_path, "--start_minutes", "0.05",
    )  # fmt: skip
    assert ended.returncode not in (0, 2), ended.stderr
    assert "no progress for" in ended.stderr and "while reading the manifest" in ended.stderr
