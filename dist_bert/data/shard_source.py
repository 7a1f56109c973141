"""Provides a data set's manifest, tokenizer and shards as local files.

    a folder                         its files, mapped in place
    a folder and --local_cache       a slow shared file system: shards through the node's cache
    a URL and --local_cache          likewise

Not for: the cache itself (`dist_bert.data.shard_cache`).
"""

import concurrent.futures
import hashlib
import itertools
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from dist_bert.common import files
from dist_bert.common.errors import NodeError, UserError
from dist_bert.common.settings import json_object
from dist_bert.data.remote import MissingFileError, Origin, OriginError, is_url
from dist_bert.data.shard_cache import ShardCache
from dist_bert.data.shard_format import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    FieldTypes,
    Manifest,
    ShardFile,
    ShardRecord,
)

START_SECONDS = 30.0  # for manifest and tokenizer: short, because addresses have typos
MAX_START_BYTES = 64 << 20  # of each: a manifest of 1.5 million blocks, the largest tokenizers

_LOOK_SECONDS = 60.0  # for each of the two requests per shard, of 1.4 MB at length 512
_CONNECTIONS = 16  # at once, to check shards: latency dominates
_GIB = 2**30


def read_manifest(place: str) -> Manifest:
    """The manifest of a data set in a folder or at a URL.

    Raises:
        UserError: no data set, or one of another format version.
    """
    if not is_url(place):
        return Manifest.load(place)
    origin = Origin(place)
    address = origin.address(MANIFEST_NAME)
    try:
        data = origin.read_patiently(MANIFEST_NAME, START_SECONDS, MAX_START_BYTES)
    except MissingFileError as error:
        raise UserError(
            f"--shards {place}: has no data set or an unfinished one ({error})"
        ) from None
    return Manifest.from_json(json_object(data, address), address)


class ShardSource:
    """The files of one data set, for one process.

    Attributes:
        place: the folder or URL, as given.
        is_cached: whether shards are fetched one by one when needed.
        evicts: whether copies are evicted for others.
    """

    def __init__(
        self, place: str | Path, local_cache: str = "", local_cache_gib: float = 0.0
    ) -> None:
        """Creates the folder of the cache, if there is one; reads nothing.

        Args:
            place: folder or URL of the data set.
            local_cache: folder of this node; "" = none. This node's variables in it are expanded.
            local_cache_gib: maximum size of the cache; 0 = no limit.

        Raises:
            UserError: a URL without a cache, or one of an unknown kind, or the cache's folder
                cannot be used.
        """
        self.place = str(place)
        self.is_cached = bool(local_cache)
        self.evicts = self.is_cached and local_cache_gib > 0
        if self.is_cached:
            self._origin = Origin(place)
            self._max_bytes = round(local_cache_gib * _GIB)
            folder = os.path.expandvars(local_cache)
            if "$" in folder:
                raise NodeError(f"--local_cache {local_cache}: a variable in it is not set here")
            self._cache = ShardCache(self._origin, Path(folder).expanduser(), self._max_bytes)
        elif is_url(place):
            raise UserError(
                f"--shards {place}: give --local_cache DIR, a folder on a local disk of every node;"
                " --local_cache_gib limits its size"
            )

    @classmethod
    def of(cls, place: "str | Path | ShardSource") -> "ShardSource":
        """The source of a folder's files; returns a source unchanged."""
        return place if isinstance(place, ShardSource) else cls(place)

    def manifest(self) -> Manifest:
        """The data set's manifest.

        Raises:
            UserError: it is not a data set, or is of another format version.
        """
        return read_manifest(self.place)

    def tokenizer_path(self, manifest: Manifest) -> Path:
        """The tokenizer's file; from a URL, it is fetched and named by its sum.

        Raises:
            UserError: it cannot be fetched, or is not the one that made the shards.
        """
        if not is_url(self.place):
            return Path(self.place) / TOKENIZER_NAME
        fingerprint = manifest.tokenizer["fingerprint"]
        path = self._cache.folder / f"{fingerprint}.model"
        if not path.exists():
            try:
                data = self._origin.read_patiently(TOKENIZER_NAME, START_SECONDS, MAX_START_BYTES)
            except MissingFileError as error:
                raise UserError(f"{error}; prepare the shards again") from None
            if hashlib.sha256(data).hexdigest() != fingerprint:
                raise UserError(
                    f"{self._origin.address(TOKENIZER_NAME)} is not the tokenizer that made the"
                    " shards (fingerprints differ): copy that one there, or prepare the shards"
                    " again"
                )
            files.write_bytes(path, data)
        return path

    def open(
        self,
        record: ShardRecord,
        types: FieldTypes,
        beat: Callable[[str], None] = lambda doing: None,
    ) -> ShardFile:
        """A shard, mapped; waits until it is fetched, if necessary.

        Args:
            record: of the shard.
            types: of the data set.
            beat: called at every progress while waiting.

        Raises:
            UserError: it is missing, damaged or unreachable.
        """
        if not self.is_cached:
            return ShardFile(self.place, record, types)
        return ShardFile(self.place, record, types, self._cache.open(record, beat))

    def expect(self, records: Sequence[ShardRecord]) -> None:
        """Announces the shards to be opened next, in this order."""
        if self.is_cached:
            self._cache.expect(records)

    def close(self) -> None:
        """Ends background work."""
        if self.is_cached:
            self._cache.close()

    def discard(self, file: ShardFile) -> None:
        """Removes a damaged copy from the cache, so that it is fetched again."""
        self._cache.discard(file.record, file.inode)

    def problems(self, manifest: Manifest, rank: int, world_size: int) -> list[str]:
        """Problems of the shards, checked by size and first block; fetches no shards.

        Every rank checks the sizes of files, as its host sees them; ranks share the other checks.
        """

        def problem(numbered: tuple[int, ShardRecord]) -> str:
            number, record = numbered
            is_own = number % world_size == rank
            try:
                if not self.is_cached:
                    shard = ShardFile(self.place, record, manifest.field_types)
                    if is_own and record.blocks:
                        shard.block(0)
                elif is_own:
                    self._look_from_afar(record)
            except (UserError, OriginError) as error:
                return str(error)
            return ""

        records = [record for split in manifest.splits.values() for record in split]
        with concurrent.futures.ThreadPoolExecutor(_CONNECTIONS) as pool:
            return list(filter(None, pool.map(problem, enumerate(records))))

    def room_problems(self, manifest: Manifest, most_at_once: int) -> list[str]:
        """Problems if the cache's limit or disk is too small for a job; none without a cache.

        Args:
            manifest: of the data set.
            most_at_once: bytes that the job may use at the same time.
        """
        if not self.is_cached:
            return []
        if self._max_bytes and self._max_bytes < most_at_once:
            return [
                f"local_cache_gib = {self._max_bytes / _GIB:.3g}: must be at least"
                f" {most_at_once / _GIB:.3g} GiB, the shards in use and prefetched at the same time"
            ]
        records = [record for split in manifest.splits.values() for record in split]
        missing = self._cache.missing_bytes(records)
        free = shutil.disk_usage(self._cache.folder).free
        if not self._max_bytes and free < missing:
            return [
                f"--local_cache {self._cache.folder}: {missing / _GIB:.3g} GiB of shards are not"
                f" cached yet, but {free / _GIB:.3g} GiB are free: limit it with local_cache_gib"
            ]
        return []

    def _look_from_afar(self, record: ShardRecord) -> None:
        address = self._origin.address(record.file)
        if record.blocks:
            start, stop = record.block_bounds(0)
            data = self._origin.read(record.file, start, stop, _LOOK_SECONDS)
            if zlib.crc32(data) != record.blocks[0].crc32:
                raise UserError(
                    f"{address}: block 0 is damaged (crc32 differs from the manifest); copy or"
                    " prepare this shard again"
                )
        size = self._origin.num_bytes(record.file, _LOOK_SECONDS)
        if size != record.bytes:
            raise UserError(
                f"{address}: has {size} bytes, the manifest says {record.bytes}; copy or prepare"
                " this shard again"
            )


def bytes_of_first(records: Sequence[ShardRecord], num_samples: int) -> int:
    """Size of the shards with the first samples; 0 = all of them."""
    before = itertools.accumulate((record.num_samples for record in records), initial=0)
    pairs = zip(records, before, strict=False)
    return sum(record.bytes for record, start in pairs if not num_samples or start < num_samples)


def most_bytes(records: Sequence[ShardRecord], num_blocks: int) -> int:
    """Maximum total size of the shards of a run of blocks, in any order."""
    blocks = itertools.accumulate(sorted(len(record.blocks) for record in records))
    num_shards = 2 + sum(1 for total in blocks if total < num_blocks)  # two are cut
    return sum(sorted((record.bytes for record in records), reverse=True)[:num_shards])
