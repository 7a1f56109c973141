"""Training's data path on shards that lie elsewhere, beside the same shards on a local disk."""

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dist_bert.data.batches import BatchShape
from dist_bert.data.pretraining_batches import training_batches
from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import SampleOrder
from dist_bert.data.shard_source import ShardSource

_MAX_SAMPLES = 200_000  # of a pass: three windows, so that the border between two is in it twice
_SHAPE = BatchShape(accumulation_steps=1, world_size=1, micro_batch_size=256)


def compare_sources(
    shards: Path,
    folder: Path,
    *,
    samples_per_second: float,
    rounds: int,
    report: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Measures an epoch of micro-batches on one rank, or its beginning, from every source in turns.

    Args:
        shards: folder of a data set. Python's own HTTP server serves it, too, on this machine.
        folder: has the caches for a while, as large as the data set.
        samples_per_second: at which a training takes them, for the share of time that it waits.
        rounds: of which the best counts.
        report: is told what is being done.

    Returns:
        Source -> figures; `divided_by_folder` compares the rates of CPU time, without the server's.
    """
    wall_rates: dict[str, float] = {}
    cpu_rates: dict[str, float] = {}
    shares: dict[str, float] = {}
    with _served(shards) as url:
        for number in range(1, rounds + 1):
            for name, place, num_passes in (
                ("folder", str(shards), 0),
                ("cache_cold", str(shards), 1),
                ("cache_warm", str(shards), 2),
                ("http_cold", url, 1),
                ("http_warm", url, 2),
            ):
                report(f"round {number} of {rounds}: {name}")
                wall_rate, cpu_rate, _ = _measure(place, folder, num_passes)
                wall_rates[name] = max(wall_rates.get(name, 0.0), wall_rate)
                cpu_rates[name] = max(cpu_rates.get(name, 0.0), cpu_rate)
                *_, share = _measure(place, folder, num_passes, samples_per_second)
                shares[name] = min(shares.get(name, 1.0), share)
    return {
        name: {
            "samples_per_second": wall_rates[name],
            "samples_per_cpu_second": cpu_rates[name],
            "divided_by_folder": cpu_rates[name] / cpu_rates["folder"],
            f"data_wait_share_at_{samples_per_second:.0f}": shares[name],
        }
        for name in wall_rates
    }


def _measure(
    place: str, folder: Path, num_passes: int, samples_per_second: float = 0.0
) -> tuple[float, float, float]:
    """Samples a second of the last pass and a CPU second, and the share of it that was waiting.

    Args:
        place: of the data set.
        folder: has the cache.
        num_passes: 0 = without a cache; 1 = the cache is empty; 2 = it has everything.
        samples_per_second: that are taken at most; 0 = as many as there are.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="cache-") as cache:
        source = ShardSource(place, cache if num_passes else "")
        manifest = source.manifest()
        for _ in range(num_passes - 1):
            for record in manifest.splits["train"]:
                source.open(record, manifest.field_types)
        reader = SampleReader(source, manifest, "train")
        order = SampleOrder(reader.shard_of_block, reader.block_sizes, seed=0)
        size = _SHAPE.global_batch_size
        num_steps = max(1, min(reader.num_samples, _MAX_SAMPLES) // size)
        pause = size / samples_per_second if samples_per_second else 0.0
        batches = training_batches(reader, order, _SHAPE, 0, 0)
        waited, begin, cpu_begin = 0.0, time.perf_counter(), time.process_time()
        for _ in range(num_steps):
            step_begin = time.perf_counter()
            next(batches)
            step_waited = time.perf_counter() - step_begin
            waited += step_waited
            time.sleep(max(0.0, pause - step_waited))
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
        batches.close()
        source.close()
    count = num_steps * size
    return count / seconds, count / cpu_seconds, waited / seconds


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The URL of a folder, served by a process of its own."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--directory", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = re.search(r"port (\d+)", process.stdout.readline())
        assert port is not None, "Python's server says where it listens"
        yield f"http://127.0.0.1:{port[1]}"
    finally:
        process.terminate()
        process.wait()
