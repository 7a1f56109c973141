"""The shard format: written by preparation, read by training. See docs/data-format.md.

A shard is a USTAR tar whose unit is a block of up to 1,024 samples: one `.npy` member per field
under one key. Plain webdataset can read it; our reader maps the file and reads rows from it. A data
set is a folder with a `manifest.json`, which is written last. Not for: the order of samples
(`dist_bert.data.pretraining_batches`).

Letters: B samples of a block, S longest sample in tokens, P most predictions of a sample.
"""

import dataclasses
import errno
import hashlib
import io
import json
import math
import mmap
import os
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json
from dist_bert.data import manifest_rules

FORMAT_VERSION = 1
MAX_BLOCK_SAMPLES = 1_024
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.model"
META_MEMBER = "__shard__/meta.json"
SPLITS = ("train", "validation")

# Field -> letters of its shape; the order of the members under one key.
FIELD_SHAPES = {
    "input_ids": "BS",
    "num_tokens": "B",
    "segment_b_start": "B",
    "masked_lm_positions": "BP",
    "masked_lm_labels": "BP",
    "num_masked": "B",
    "next_sentence_label": "B",
    "document_ids": "B2",
}

_TAR_UNIT = 512  # bytes; headers and contents are rounded up to it
_NPY_HEADER = 128  # bytes before the data of a .npy member: numpy pads the header to it


@dataclasses.dataclass(frozen=True)
class FieldTypes:
    """The dtypes that depend on the data set: of piece ids and of document ids."""

    piece: np.dtype[Any]
    document: np.dtype[Any]

    @classmethod
    def fitting(cls, num_pieces: int, num_documents: int) -> "FieldTypes":
        """The smallest types of the format for a vocabulary and a corpus."""
        return cls(
            piece=np.dtype("<u2" if num_pieces <= 1 << 16 else "<u4"),
            document=np.dtype("<u4" if num_documents <= 1 << 32 else "<u8"),
        )

    def of(self, field: str) -> np.dtype[Any]:
        """Dtype of one field."""
        if field in ("input_ids", "masked_lm_labels"):
            return self.piece
        if field == "document_ids":
            return self.document
        return np.dtype("u1" if field == "next_sentence_label" else "<u2")


@dataclasses.dataclass(frozen=True)
class BlockRecord:
    """Position of a block in its shard, and its shape: one row of the manifest."""

    offset: int  # bytes from the start of the shard to the block's first tar header
    num_samples: int  # B
    max_tokens: int  # S
    max_masked: int  # P
    crc32: int  # of all bytes of the block, including tar headers

    def shape(self, field: str) -> tuple[int, ...]:
        """Shape of one field of the block."""
        sizes = {"B": self.num_samples, "S": self.max_tokens, "P": self.max_masked, "2": 2}
        return tuple(sizes[letter] for letter in FIELD_SHAPES[field])


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """One shard file of the manifest."""

    file: str  # name inside the data set's folder
    bytes: int
    sha256: str
    num_samples: int
    blocks: tuple[BlockRecord, ...]

    def block_bounds(self, index: int) -> tuple[int, int]:
        """Begin and end of a block in the file; the last one ends before the tar's end."""
        starts = [*(block.offset for block in self.blocks), self.bytes - 2 * _TAR_UNIT]
        return starts[index], starts[index + 1]

    def to_json(self) -> dict[str, Any]:
        """JSON object; a block is a row of its five numbers, because there can be millions."""
        return {
            **dataclasses.asdict(self),
            "blocks": [list(dataclasses.astuple(b)) for b in self.blocks],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ShardRecord":
        """Inverse of `to_json`."""
        return cls(**{**value, "blocks": tuple(BlockRecord(*row) for row in value["blocks"])})

    @staticmethod
    def blocks_problem(value: Mapping[str, Any], types: FieldTypes, max_tokens: int) -> str:
        """The problem of the blocks in a record's JSON object, "" if none.

        Args:
            value: the object; its other keys are valid.
            types: of the data set.
            max_tokens: of its samples.
        """
        if value["blocks"] == [] and value["num_samples"] == 0:
            return ""
        try:
            rows = np.array(value["blocks"])
        except (ValueError, OverflowError):  # rows of different lengths
            rows = np.empty(0)
        if rows.dtype.kind != "i" or rows.ndim != 2 or rows.shape[1] != 5:
            return "blocks: must be rows of five integers"
        offset, num_samples, widest, most_masked, _ = rows.T
        sizes = {"B": num_samples, "S": widest, "P": most_masked, "2": np.full_like(offset, 2)}
        is_shape = (num_samples >= 1) & (num_samples <= MAX_BLOCK_SAMPLES) & (widest >= 3)
        is_shape &= (widest <= max_tokens) & (most_masked >= 1) & (most_masked <= widest)
        if not is_shape.all():
            return f"blocks[{int(is_shape.argmin())}]: has an impossible shape"
        num_bytes = np.zeros_like(offset)
        for field, letters in FIELD_SHAPES.items():
            member = np.prod([sizes[letter] for letter in letters], axis=0)
            member = _NPY_HEADER + member * types.of(field).itemsize
            num_bytes += _TAR_UNIT + member + -member % _TAR_UNIT
        ends = np.append(offset[1:], value["bytes"] - 2 * _TAR_UNIT)
        is_place = (offset >= _TAR_UNIT) & (offset % _TAR_UNIT == 0) & (ends - offset == num_bytes)
        if not is_place.all():
            return f"blocks[{int(is_place.argmin())}]: does not end where the next one begins"
        if num_samples.sum() != value["num_samples"]:
            return f"num_samples = {value['num_samples']}: the blocks have {num_samples.sum()}"
        return ""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Description of a finished data set.

    `config` is the resolved preparation (sequence length, masking, pair objective, seed, ...),
    `tokenizer` has fingerprint, vocab_size, special_ids and num_reserved_pieces, `inputs` names and
    hashes the files read, `totals` counts documents, sentences, tokens, samples and drops by
    reason, `statistics` are measured on the finished samples, `splits` lists the shards of train
    and validation.
    """

    config: dict[str, Any]
    tokenizer: dict[str, Any]
    inputs: list[dict[str, Any]]
    totals: dict[str, Any]
    statistics: dict[str, Any]
    splits: dict[str, tuple[ShardRecord, ...]]
    format_version: int = FORMAT_VERSION

    @property
    def field_types(self) -> FieldTypes:
        """Dtypes of this data set's fields."""
        return FieldTypes.fitting(self.tokenizer["vocab_size"], self.totals["documents"])

    @property
    def fingerprint(self) -> str:
        """Identifies the samples and their stored order: equal fingerprints, equal training."""
        return files.fingerprint(
            {split: [shard.sha256 for shard in shards] for split, shards in self.splits.items()}
        )

    def save(self, folder: str | Path) -> None:
        """Writes `manifest.json`, which completes the data set."""
        value = {
            "format_version": self.format_version,
            "config": self.config,
            "config_fingerprint": files.fingerprint(self.config),
            "tokenizer": self.tokenizer,
            "inputs": self.inputs,
            "totals": self.totals,
            "statistics": self.statistics,
            "splits": {s: [r.to_json() for r in records] for s, records in self.splits.items()},
        }
        files.write_json(Path(folder) / MANIFEST_NAME, value, indent=None)

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Reads a data set's manifest.

        Raises:
            UserError: no data set, an unfinished one, or one of another format version.
        """
        path = Path(folder) / MANIFEST_NAME
        if not path.exists():
            state = "is unfinished" if Path(folder).is_dir() else "does not exist"
            raise UserError(
                f"--shards {folder}: {state} (no {MANIFEST_NAME}); make shards with"
                " `make quickstart` or `mpiexec -n 2 python -m mpi4py launch/prepare_shards.py"
                f" --input TEXT... --tokenizer FILE --output_dir {folder}`"
            )
        return cls.from_json(read_json(path), path)

    @classmethod
    def from_json(cls, value: dict[str, Any], path: str | Path) -> "Manifest":
        """Inverse of `save`, from the contents of `manifest.json`; `path` names it in errors.

        Raises:
            UserError: it is of another format version, or breaks a rule of the format.
        """
        if value.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{path}: format_version = {value.get('format_version')}, must be"
                f" {FORMAT_VERSION}; prepare the shards again"
            )
        problem = manifest_rules.problem(value) or _blocks_problem(value)
        if problem:
            raise UserError(
                f"{path}: {problem}; copy the manifest again or prepare the shards again"
            )
        splits = {s: tuple(map(ShardRecord.from_json, rows)) for s, rows in value["splits"].items()}
        others = value.keys() - {"config_fingerprint", "splits"}
        return cls(**{name: value[name] for name in others}, splits=splits)


def _blocks_problem(value: Mapping[str, Any]) -> str:
    """The problem of the blocks in a manifest's JSON object, "" if none."""
    types = FieldTypes.fitting(value["tokenizer"]["vocab_size"], value["totals"]["documents"])
    for split, shards in value["splits"].items():
        for number, shard in enumerate(shards):
            problem = ShardRecord.blocks_problem(shard, types, value["config"]["sequence_length"])
            if problem:
                return f"splits.{split}[{number}] ({shard['file']}): {problem}"
    return ""


def member_bytes(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    assert buffer.tell() == _NPY_HEADER + array.nbytes
    return buffer.getvalue()


def write_shard(
    path: str | Path, meta: Mapping[str, Any], blocks: Iterable[Mapping[str, NDArray[Any]]]
) -> ShardRecord:
    """Writes a whole shard and returns its record.

    Args:
        path: of the tar, which appears only when it is complete.
        meta: becomes the first member, `__shard__/meta.json`.
        blocks: mappings from field to array, with the format's dtypes and shapes.
    """
    records = []
    path = Path(path)
    with files.whole_file(path) as file:
        digest = hashlib.sha256()

        def put(data: bytes) -> int:
            file.write(data)
            digest.update(data)
            return len(data)

        meta_data = json.dumps(meta, sort_keys=True, ensure_ascii=False).encode()
        offset = put(_tar_member(META_MEMBER, meta_data))
        for index, block in enumerate(blocks):
            key = f"{path.stem}-{index:06d}"
            data = b"".join(
                _tar_member(f"{key}.{field}.npy", member_bytes(np.ascontiguousarray(block[field])))
                for field in FIELD_SHAPES
            )
            num_samples, max_tokens = block["input_ids"].shape
            max_masked = block["masked_lm_positions"].shape[1]
            records.append(
                BlockRecord(offset, num_samples, max_tokens, max_masked, zlib.crc32(data))
            )
            offset += put(data)
        offset += put(bytes(2 * _TAR_UNIT))
    num_samples = sum(r.num_samples for r in records)
    return ShardRecord(path.name, offset, digest.hexdigest(), num_samples, tuple(records))


def _tar_member(name: str, data: bytes) -> bytes:
    """Header, contents and padding of one USTAR member: mtime 0, uid and gid 0, mode 0644."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header + data + bytes(-len(data) % _TAR_UNIT)


class DamagedBlockError(UserError):
    """The bytes of a block have changed since they were written."""


class ShardFile:
    """A shard mapped into memory; returns blocks as read-only views, each checked once.

    Attributes:
        path: of the file.
        record: of the shard.
        inode: number of the mapped file, even if its path has changed.
    """

    def __init__(
        self,
        folder: str | Path,
        record: ShardRecord,
        types: FieldTypes,
        file: IO[bytes] | None = None,
    ) -> None:
        """Maps the file.

        Args:
            folder: of the data set.
            record: of the shard.
            types: of the data set.
            file: the open shard, if it is elsewhere; the map keeps its lock while it exists.

        Raises:
            UserError: the file is missing, or its size differs from the manifest.
        """
        self.path = Path(file.name if file else Path(folder) / record.file)
        self.record = record
        self._types = types
        self._views: dict[int, dict[str, NDArray[Any]]] = {}  # of blocks that are whole
        try:
            with file or open(self.path, "rb") as opened:
                status = os.fstat(opened.fileno())
                self.inode, size = status.st_ino, status.st_size
                if size == record.bytes:
                    self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise UserError(f"{self.path}: is missing; copy or prepare this shard again") from None
        except OSError as error:
            told = files.problem(error)
            if error.errno == errno.ENOMEM:  # of mmap
                told += ": raise sysctl vm.max_map_count, or ulimit -v"
            raise UserError(f"{self.path}: cannot be read ({told})") from None
        if size != record.bytes:
            raise UserError(
                f"{self.path}: has {size} bytes, the manifest says {record.bytes}; copy or prepare"
                " this shard again"
            )

    def block(self, index: int) -> dict[str, NDArray[Any]]:
        """The fields of one block, as views of the mapped file; its crc32 is checked once.

        Raises:
            DamagedBlockError: the bytes have changed since they were written.
        """
        if index in self._views:
            return self._views[index]
        record = self.record.blocks[index]
        views = {}
        position = record.offset
        for field in FIELD_SHAPES:
            dtype, shape = self._types.of(field), record.shape(field)
            count = math.prod(shape)
            start = position + _TAR_UNIT + _NPY_HEADER
            views[field] = np.frombuffer(self._map, dtype, count, start).reshape(shape)
            num_bytes = _NPY_HEADER + count * dtype.itemsize
            position += _TAR_UNIT + num_bytes + -num_bytes % _TAR_UNIT
        view = memoryview(self._map)[record.offset : position]
        if zlib.crc32(view) != record.crc32:
            raise DamagedBlockError(
                f"{self.path}: block {index} is damaged (crc32 differs from the manifest);"
                " prepare this shard again"
            )
        self._views[index] = views
        return views
