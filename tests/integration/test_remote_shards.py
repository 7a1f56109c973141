"""Whole runs on shards that lie behind a URL: moved, killed, resumed, evaluated, verified."""

import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.verify import verify
from dist_bert.data.shard_format import Manifest
from dist_bert.data.shard_source import ShardSource
from dist_bert.inference.evaluate import evaluate
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import BIN, kill_when_printed, run_script
from tests.integration.test_pretrain import write_configs
from tests.support.shard_server import ShardServer

PASSWORD = uuid.uuid4().hex  # not in the code, whose changes a run keeps


@pytest.fixture
def server(data_set: Path) -> Iterator[ShardServer]:
    server = ShardServer(data_set)
    yield server
    server.stop()


def with_credentials(server: ShardServer) -> tuple[str, str]:
    """Its address with a user and a password, and as it is shown."""
    return server.url.replace("//", f"//me:{PASSWORD}@"), server.url.replace("//", "//***@")


def files_with(text: str, folder: Path) -> set[str]:
    """Names of the files in a folder, and in those below, that hold a text."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.name for path in paths if text.encode() in path.read_bytes()}


@pytest.mark.slow
def test_a_run_moves_from_disk_to_url_and_its_losses_stay(
    data_set: Path, server: ShardServer, tmp_path: Path
) -> None:
    flags = write_configs(tmp_path, stage=0, precision="fp32")
    script: list[str | Path] = [BIN / "python", "launch/pretrain.py", *flags]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    local: list[str | Path] = ["--shards", data_set]
    ended = run_script(*script, *local, "--output_dir", whole)
    assert ended.returncode == 0, ended.stdout + ended.stderr

    url, shown = with_credentials(server)

    def by_url(node: str) -> list[str | Path]:
        cache: list[str | Path] = ["--local_cache", tmp_path / node, "--local_cache_gib", "0.1"]
        return [*script, "--shards", url, *cache, "--output_dir", moved]

    kill_when_printed("saved step 4 ", *script, *local, "--output_dir", moved)
    output = kill_when_printed("saved step 8 ", *by_url("node"))
    assert "resumed at step 4 of 14" in output
    fetched = server.num_fetched()
    assert set(fetched.values()) == {1} and fetched.total() >= 4
    ended = run_script(*by_url("node"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resumed at step 8 of 14" in ended.stdout
    assert server.num_fetched() == fetched, "what is on the disk is not fetched again"

    assert files_with(PASSWORD, moved) == set()
    told = files_with(shown, moved)
    assert {"config.json", "starts.jsonl", "log.txt"} < told
    assert any("tfevents" in name for name in told)

    names = ("train/loss", "train/grad_norm", "validation/loss")
    curves = [
        {
            (row["step"], name): row[name]
            for row in read_metrics(run)
            for name in names
            if name in row
        }
        for run in (whole, moved)
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 14 + 14 + 2  # bit for bit

    manifest = Manifest.load(data_set)
    source = ShardSource(server.url, str(tmp_path / "another_node"), 0.1)
    run = TrainedRun.load(moved)
    assert evaluate(run, source).figures() == evaluate(run, data_set).figures()
    assert verify(source, report=lambda text: None) == manifest
    records = [record for split in manifest.splits.values() for record in split]
    assert server.num_fetched() - fetched == Counter(record.file for record in records)


def test_a_shard_that_is_damaged_behind_its_url_ends_the_run_with_a_line(
    data_set: Path, server: ShardServer, tmp_path: Path
) -> None:
    file = Manifest.load(data_set).splits["train"][2].file
    url, shown = with_credentials(server)
    server.corrupt[file] = 1_000
    ended = run_script(
        BIN / "python", "launch/pretrain.py", *write_configs(tmp_path, stage=0, precision="fp32"),
        "--shards", url, "--local_cache", tmp_path / "cache", "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert ended.returncode == 1
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: rank 0: {shown}/{file}: is damaged, even after")
    assert "Traceback" not in ended.stderr
    assert PASSWORD not in ended.stdout + ended.stderr
    assert shown in (tmp_path / "run/logs/rank-00000.log").read_text()
    assert files_with(PASSWORD, tmp_path / "run") == set()
