"""Our reader of shards beside webdataset and np.memmap: the same samples in every layout.

All deliver batches of padded numpy arrays of the stored dtypes, in shuffled order, in one process:

- ours: `SampleOrder` and `SampleReader`, a window at a time as in training
- memmap: fixed-width columns, rows taken by a permutation of all samples: the limit, because
  nothing is packed or checked, and the price is what padding takes on disk
- webdataset with one member a sample (its fields' bytes back to back), with one raw member for each
  field, and with one npz a sample; a shuffle buffer as in its manual

Letters: B samples of a batch, N of all.
"""

import dataclasses
import functools
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from numpy.typing import NDArray

from dist_bert.common.hashing import hash64
from dist_bert.data.reader import Columns, Memory, SampleReader, inverse
from dist_bert.data.sample_order import WINDOW_BLOCKS, SampleOrder
from dist_bert.data.shard_format import FIELD_SHAPES, Manifest

Sample = dict[str, Any]  # field -> array, or number where a sample has one
Types = dict[str, np.dtype[Any]]  # field -> dtype
Loader = Callable[[int], Iterator[Columns]]  # of the number of the pass

BATCH_SAMPLES = 256  # B, BERT's own batch
SHUFFLE_SAMPLES = 1_000  # webdataset's buffer, as in its manual
_LEAST_SECONDS = 0.25  # of a measurement: fast loaders pass over the samples several times
_LENGTHS = {"S": "num_tokens", "P": "num_masked"}  # the field that says what S or P is of a sample
_OURS = "ours"


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The samples in one layout, and how they are read."""

    loader: Loader
    num_bytes: int  # on disk


def compare_loaders(
    shards: Path, folder: Path, *, num_samples: int, rounds: int, report: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Measures all loaders alternately, after checking that they deliver the same samples.

    Args:
        shards: folder of a data set.
        folder: has the other layouts for a while; 13 KB a sample at length 128, 17 KB at 512.
        num_samples: of the training split that are used, by whole shards: at least one.
        rounds: of which the best counts.
        report: is told what is being done.

    Returns:
        Loader -> figures; `ours_divided_by_it` compares the rates.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="layouts-") as scratch:
        report("writing the samples in the other layouts")
        layouts = _make_layouts(shards, Path(scratch), num_samples)
        found = {name: content(layout.loader(0)) for name, layout in layouts.items()}
        assert len(set(found.values())) == 1, f"the loaders deliver different samples: {found}"
        count = found[_OURS][0]
        rates = dict.fromkeys(layouts, 0.0)
        for number in range(1, rounds + 1):
            for name, layout in layouts.items():
                report(f"round {number} of {rounds}: {name}, {count:,} samples")
                rates[name] = max(rates[name], samples_per_second(layout.loader))
    return {
        name: {
            "samples_per_cpu_second": rates[name],
            "ours_divided_by_it": rates[_OURS] / rates[name],
            "bytes_per_sample": layout.num_bytes / count,
        }
        for name, layout in layouts.items()
    }


def content(batches: Iterator[Columns]) -> tuple[int, int]:
    """Number of samples, and a hash of them all that depends neither on order nor on padding."""
    count, total = 0, 0
    for columns in batches:
        state: NDArray[np.uint64] = np.zeros(columns["num_tokens"].size, np.uint64)
        for field in FIELD_SHAPES:
            values = columns[field].reshape(state.size, -1).astype(np.uint64)  # (B, width)
            weights = hash64("content", field, np.arange(values.shape[1]))
            state = hash64(state, (values * weights).sum(axis=1))
        count += state.size
        total += int(state.sum())
    return count, total % (1 << 64)


def samples_per_second(loader: Loader, least_seconds: float = _LEAST_SECONDS) -> float:
    """Samples per CPU second, over one pass or as many as fill some time."""
    count, passes = 0, 0
    start = time.process_time()
    while True:
        for columns in loader(passes):
            count += columns["num_tokens"].size
        passes += 1
        seconds = time.process_time() - start
        if seconds >= least_seconds:
            return count / seconds


def _make_layouts(shards: Path, folder: Path, num_samples: int) -> dict[str, _Layout]:
    """Writes the first samples of the training split in every other layout."""
    manifest = Manifest.load(shards)
    records = manifest.splits["train"]
    stops = np.cumsum([record.num_samples for record in records])
    records = records[: 1 + int(np.searchsorted(stops, min(num_samples, int(stops[-1]))))]
    manifest = dataclasses.replace(manifest, splits={**manifest.splits, "train": records})
    reader = SampleReader(shards, manifest, "train")
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, seed=0)
    num_bytes = sum(record.bytes for record in records)
    layouts = {_OURS: _Layout(functools.partial(_ours, reader, order, {}), num_bytes)}

    sizes = reader.block_sizes
    blocks = np.repeat(np.arange(sizes.size), sizes)
    rows = np.arange(reader.num_samples) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    columns = reader.gather(blocks, rows)
    layouts["memmap"] = _write_memmaps(columns, folder / "memmap")
    types = {field: manifest.field_types.of(field) for field in FIELD_SHAPES}
    bounds = [0, *np.cumsum([record.num_samples for record in records]).tolist()]
    for name, (pack, unpack) in _PACKINGS.items():
        paths = _write_tars(columns, bounds, pack, folder / name)
        loader = functools.partial(_webdataset, paths, unpack, types)
        layouts[name] = _Layout(loader, sum(path.stat().st_size for path in paths))
    return layouts


def _ours(
    reader: SampleReader, order: SampleOrder, memory: Memory, number: int
) -> Iterator[Columns]:
    """One epoch of our reader; the memory is kept from window to window, as in training."""
    window = int(reader.block_sizes[:WINDOW_BLOCKS].sum())
    start, end = number * reader.num_samples, (number + 1) * reader.num_samples
    for begin in range(start, end, window):
        _, blocks, rows = order.locate(begin, min(begin + window, end))
        columns, sample_of_row = reader.collect(blocks, rows, memory)
        places = inverse(sample_of_row)
        for first in range(0, places.size, BATCH_SAMPLES):
            batch = places[first : first + BATCH_SAMPLES]
            yield {field: column.take(batch, axis=0) for field, column in columns.items()}


def _write_memmaps(columns: Columns, folder: Path) -> _Layout:
    folder.mkdir(parents=True)
    for field, column in columns.items():
        np.save(folder / f"{field}.npy", column)
    mapped = {field: np.load(folder / f"{field}.npy", mmap_mode="r") for field in columns}

    def load(number: int) -> Iterator[Columns]:
        order = np.random.default_rng(number).permutation(mapped["num_tokens"].size)
        for begin in range(0, order.size, BATCH_SAMPLES):
            rows = order[begin : begin + BATCH_SAMPLES]
            yield {field: column[rows] for field, column in mapped.items()}

    return _Layout(load, sum(path.stat().st_size for path in folder.iterdir()))


def _write_tars(
    columns: Columns,
    bounds: Sequence[int],
    pack: Callable[[Sample], dict[str, bytes]],
    folder: Path,
) -> list[Path]:
    """Writes webdataset's layout: a tar for each of our shards, samples without their padding."""
    folder.mkdir(parents=True)
    paths = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        paths.append(folder / f"{number:05d}.tar")
        # mtime: without it every header becomes three, and reading takes twice the time.
        with webdataset.TarWriter(str(paths[-1]), mtime=0) as writer:
            for row in range(start, stop):
                writer.write({"__key__": f"{row:09d}", **pack(_sample(columns, row))})
    return paths


def _sample(columns: Columns, row: int) -> Sample:
    """One sample without padding."""
    sample = {}
    for field, shape in FIELD_SHAPES.items():
        value = columns[field][row]
        length = _LENGTHS.get(shape[1:])
        sample[field] = value[: columns[length][row]] if length else value
    return sample


def _webdataset(
    paths: Sequence[Path],
    unpack: Callable[[Types, Mapping[str, bytes]], Sample],
    types: Types,
    number: int,
) -> Iterator[Columns]:
    """One pass of webdataset."""
    shards = webdataset.WebDataset([str(path) for path in paths], shardshuffle=100, seed=number)
    samples = shards.shuffle(SHUFFLE_SAMPLES).map(functools.partial(unpack, types))
    yield from samples.batched(BATCH_SAMPLES, collation_fn=functools.partial(_padded, types))


def _padded(types: Types, samples: Sequence[Sample]) -> Columns:
    columns = {}
    for field, shape in FIELD_SHAPES.items():
        values = [sample[field] for sample in samples]
        if shape[1:] in _LENGTHS:
            width = max(value.size for value in values)
            columns[field] = np.zeros((len(values), width), types[field])
            for row, value in zip(columns[field], values, strict=True):
                row[: value.size] = value
        else:
            columns[field] = np.array(values)
    return columns


def _pack_one_member(sample: Sample) -> dict[str, bytes]:
    lengths = b"".join(sample[name].tobytes() for name in _LENGTHS.values())
    return {"bin": lengths + b"".join(value.tobytes() for value in sample.values())}


def _unpack_one_member(types: Types, members: Mapping[str, bytes]) -> Sample:
    data, start = members["bin"], 4  # bytes: two uint16 lengths
    num_tokens, num_masked = np.frombuffer(data, np.uint16, 2).tolist()
    counts = {"B": 1, "BS": num_tokens, "BP": num_masked, "B2": 2}
    sample = {}
    for field, shape in FIELD_SHAPES.items():
        values = np.frombuffer(data, types[field], counts[shape], start)
        sample[field] = values[0] if shape == "B" else values
        start += values.nbytes
    return sample


def _pack_raw_fields(sample: Sample) -> dict[str, bytes]:
    return {f"{field}.bin": value.tobytes() for field, value in sample.items()}


def _unpack_raw_fields(types: Types, members: Mapping[str, bytes]) -> Sample:
    sample = {}
    for field, shape in FIELD_SHAPES.items():
        values = np.frombuffer(members[f"{field}.bin"], types[field])
        sample[field] = values[0] if shape == "B" else values
    return sample


def _pack_npz(sample: Sample) -> dict[str, bytes]:
    file = io.BytesIO()
    np.savez(file, **sample)
    return {"npz": file.getvalue()}


def _unpack_npz(types: Types, members: Mapping[str, bytes]) -> Sample:
    with np.load(io.BytesIO(members["npz"])) as arrays:
        return {field: arrays[field] for field in FIELD_SHAPES}


_PACKINGS = {
    "webdataset_one_member": (_pack_one_member, _unpack_one_member),
    "webdataset_raw_fields": (_pack_raw_fields, _unpack_raw_fields),
    "webdataset_npz": (_pack_npz, _unpack_npz),
}
