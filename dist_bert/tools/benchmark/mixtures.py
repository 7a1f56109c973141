"""Training's data path on a mixture of data sets, beside one of them alone."""

import dataclasses
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from dist_bert.common.errors import UserError
from dist_bert.data.batches import BatchShape
from dist_bert.data.mixture import MixedOrder
from dist_bert.data.pretraining_batches import training_batches
from dist_bert.data.reader import JointReader, SampleReader
from dist_bert.data.sample_order import SampleOrder
from dist_bert.data.shard_format import Manifest

_SHAPE = BatchShape(accumulation_steps=1, world_size=1, micro_batch_size=256)


def compare_mixtures(
    shards: Path, counts: list[int], *, rounds: int, report: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Measures an epoch of micro-batches on one rank, from so many parts of a data set, in turns.

    The parts have equal numbers of shards and are mixed by their numbers of samples, so all
    mixtures read the same bytes.

    Args:
        shards: folder of a data set.
        counts: numbers of sources, of which the first is the reference.
        rounds: of which the best counts.
        report: is told what is being done.

    Returns:
        Mixture -> samples per CPU second, by that of one source, and the peak of what numpy has
        allocated.

    Raises:
        UserError: the data set has fewer shards than sources.
    """
    manifest = Manifest.load(shards)
    num_shards = len(manifest.splits["train"])
    if num_shards < max(counts):
        raise UserError(
            f"--shards {shards}: has {num_shards} training shards, must have {max(counts)} or more;"
            " prepare it with a lower --samples_per_shard"
        )
    rates = dict.fromkeys(counts, 0.0)
    for number in range(1, rounds + 1):
        for count in counts:
            report(f"round {number} of {rounds}: {count} sources")
            rates[count] = max(rates[count], _samples_per_second(shards, manifest, count))
    figures = {}
    for count in counts:
        tracemalloc.start()
        _samples_per_second(shards, manifest, count)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        figures[f"{count} sources"] = {
            "samples_per_cpu_second": rates[count],
            "divided_by_one": rates[count] / rates[counts[0]],
            "peak_mib": peak / 2**20,
        }
    return figures


def _samples_per_second(shards: Path, manifest: Manifest, count: int) -> float:
    readers = []
    for part in range(count):
        splits = {**manifest.splits, "train": manifest.splits["train"][part::count]}
        readers.append(SampleReader(shards, dataclasses.replace(manifest, splits=splits), "train"))
    orders = [SampleOrder(r.shard_of_block, r.block_sizes, seed) for seed, r in enumerate(readers)]
    order = MixedOrder(orders, [float(r.num_samples) for r in readers], [0] * count)
    reader = JointReader(readers)
    num_steps = reader.num_samples // _SHAPE.global_batch_size
    start = time.process_time()
    for _ in training_batches(reader, order, _SHAPE, 0, 0, num_steps=num_steps):
        pass
    return num_steps * _SHAPE.global_batch_size / (time.process_time() - start)
