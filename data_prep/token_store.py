"""The token store: a corpus split into sentences and encoded once, for any number of data sets.

A store is a folder of units, each a folder that appears whole:

    unit-00012/ids.npy               (T,) uint16 or uint32, piece ids of all documents back to back
               sentence_offsets.npy  (sentences + 1,) int64 into ids
               document_offsets.npy  (D + 1,) int64 into sentences
               document_hashes.npy   (D,) uint64 of each document's text
               unit.json             `UnitRecord`

Documents are numbered across the store: unit by unit, in the order of the text. Not for: assigning
documents to shards (`data_prep.shard_assignment`).

Letters: D documents, T tokens, U units.
"""

import dataclasses
import functools
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.corpus import read_sentences
from data_prep.documents import Documents
from data_prep.inputs import InputPart, check_unchanged
from data_prep.mapping import map_array
from data_prep.prepare_config import TextConfig
from data_prep.readers.source import RecordTally
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json
from dist_bert.data.shard_format import FieldTypes
from dist_bert.tokenizer.tokenizer import Tokenizer

STORE_VERSION = 4  # of the layout and of the text rules: a change rebuilds all units

_BATCH_CHARACTERS = 2 << 20  # of text in memory at a time, besides one document
_RECORD_NAME = "unit.json"
_SUM = "sum"  # of all other fields
_NPY_HEADER = 128  # bytes of numpy's header of a one-dimensional array of any length


class _Document(NamedTuple):
    part: int  # index of its part in the unit
    text: str
    sentences: list[str]


@dataclasses.dataclass(frozen=True)
class UnitRecord:
    """Contents of a finished unit's `unit.json`."""

    fingerprint: str  # of what it was made from
    tokenizer: str  # fingerprint of the one that made the ids
    sha256: dict[str, str]  # of its other files
    num_documents: int
    num_sentences: int
    num_tokens: int
    num_single_sentence_documents: int
    text_bytes: int  # of the documents in UTF-8
    inputs: list[dict[str, Any]]  # path, start, bytes, sha256, number of documents of each part
    drops: dict[str, int]  # documents left out, by reason
    removed_characters: dict[str, int]  # that are not readable text, by kind
    bad_records: dict[str, int]  # bad records in the files that were skipped, by reason
    mended: dict[str, int]  # places where non-text bytes were removed, by kind
    first_bad: str  # the first of them: file, place, problem; empty if none


def unit_folder(store: str | Path, unit: int) -> Path:
    """Folder of a unit."""
    return Path(store) / f"unit-{unit:05d}"


def unit_fingerprint(parts: Sequence[InputPart], config: TextConfig, tokenizer: str) -> str:
    """Fingerprint of everything that a unit depends on.

    Args:
        parts: of files that the unit is made from.
        config: may have other settings, too.
        tokenizer: its fingerprint.
    """
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(TextConfig)}
    listed = [dataclasses.astuple(part) for part in parts]
    return files.fingerprint([STORE_VERSION, listed, settings, tokenizer])


def is_unit(folder: Path) -> bool:
    """Whether there is a finished unit, from any input, sound or not."""
    return (folder / _RECORD_NAME).exists()


def read_record(folder: Path) -> UnitRecord:
    """The record of a finished unit.

    Raises:
        UserError: it cannot be read, was changed, or is of another version.
    """
    path = folder / _RECORD_NAME
    values = read_json(path)
    if values.keys() != {_SUM, *(field.name for field in dataclasses.fields(UnitRecord))}:
        raise UserError(f"{path}: was written by another version of this program")
    if values.pop(_SUM) != files.fingerprint(values):
        raise UserError(f"{path} has changed since it was written (sum)")
    return UnitRecord(**values)


def _write_record(folder: Path, record: UnitRecord) -> None:
    values = dataclasses.asdict(record)
    files.write_json(folder / _RECORD_NAME, {**values, _SUM: files.fingerprint(values)})


def make_unit(
    folder: Path,
    parts: Sequence[InputPart],
    config: TextConfig,
    tokenizer: Tokenizer,
    *,
    max_bad_share: float,
    breathe: Callable[[int], None],
) -> UnitRecord:
    """Splits and encodes the files of a unit.

    The folder appears at the end. Memory: one document and a batch of text, independent of the
    unit's size.

    Args:
        folder: of the unit; its contents are replaced.
        parts: of files, at least one.
        config: of reading.
        tokenizer: of encoding.
        max_bad_share: of the records of each part; more is an error.
        breathe: called often, with the bytes of text that are done; may raise to leave the work.

    Raises:
        UserError: a file cannot be read, see `data_prep.readers`, or has changed since it was
            listed.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        with _UnitWriter(temporary, tokenizer) as writer:
            for batch in _batches(writer.read(parts, config, max_bad_share)):
                writer.add(batch)
                breathe(writer.text_bytes)
        record = writer.record(unit_fingerprint(parts, config, tokenizer.fingerprint), parts)
        check_unchanged(parts)
        _write_record(temporary, record)
        shutil.rmtree(folder, ignore_errors=True)  # made from something else
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    files.fsync(folder.parent)
    return record


def content_hash(text: bytes) -> int:
    """64-bit hash of a document's UTF-8 text: equal for duplicates, uniform over all texts."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class _UnitWriter:
    """Appends documents to the arrays of a unit and counts them."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        piece_type = FieldTypes.fitting(tokenizer.vocab_size, 0).piece
        self._tokenizer = tokenizer
        self._ids = _ArrayFile(folder / "ids.npy", piece_type)
        self._sentence_offsets = _ArrayFile(folder / "sentence_offsets.npy", np.dtype("<i8"), [0])
        self._document_offsets = _ArrayFile(folder / "document_offsets.npy", np.dtype("<i8"), [0])
        self._document_hashes = _ArrayFile(folder / "document_hashes.npy", np.dtype("<u8"))
        self._num_single_sentence = 0
        self.text_bytes = 0
        self._documents_by_part: Counter[int] = Counter()
        self._drops: Counter[str] = Counter()
        self._removed: Counter[str] = Counter()
        self._bad: Counter[str] = Counter()
        self._mended: Counter[str] = Counter()
        self._first_bad = ""

    def __enter__(self) -> "_UnitWriter":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for array in self._arrays:
            array.close()

    @property
    def _arrays(self) -> "tuple[_ArrayFile, ...]":
        return self._ids, self._sentence_offsets, self._document_offsets, self._document_hashes

    def read(
        self, parts: Sequence[InputPart], config: TextConfig, max_bad_share: float
    ) -> Iterator[_Document]:
        """The documents of the parts, in their order."""
        for index, part in enumerate(parts):
            tally = RecordTally(part.path, max_bad_share)
            for text, sentences in read_sentences(part, config, tally):
                yield _Document(index, text, sentences)
            self._drops.update(tally.drops)
            self._removed.update(tally.removed)
            self._bad.update(tally.bad)
            self._mended.update(tally.mended)
            if tally.first_bad and not self._first_bad:
                self._first_bad = f"{part.path}: {tally.first_bad}"

    def add(self, batch: list[_Document]) -> None:
        """Encodes and appends documents; drops those without a single piece."""
        ids, offsets = self._tokenizer.encode_documents(d.sentences for d in batch)
        is_kept = np.diff(offsets) > 0  # drops sentences of ignored characters only
        document = np.repeat(np.arange(len(batch)), [len(d.sentences) for d in batch])
        num_sentences = np.bincount(document[is_kept], minlength=len(batch))
        stops = self._sentence_offsets.size - 1 + np.cumsum(num_sentences)
        kept = [d for d, count in zip(batch, num_sentences, strict=True) if count]
        texts = [d.text.encode() for d in kept]

        self._sentence_offsets.append(self._ids.size + offsets[1:][is_kept])
        self._ids.append(ids)
        self._document_offsets.append(stops[num_sentences > 0])
        self._document_hashes.append(np.array([content_hash(text) for text in texts], np.uint64))
        self._num_single_sentence += int(np.count_nonzero(num_sentences == 1))
        self.text_bytes += sum(map(len, texts))
        self._documents_by_part.update(d.part for d in kept)
        if num_empty := len(batch) - len(kept):
            self._drops["empty"] += num_empty

    def record(self, fingerprint: str, parts: Sequence[InputPart]) -> UnitRecord:
        """Record of the written files, which must be closed."""
        return UnitRecord(
            fingerprint=fingerprint,
            tokenizer=self._tokenizer.fingerprint,
            sha256={array.path.name: files.sha256_of_file(array.path) for array in self._arrays},
            num_documents=self._document_hashes.size,
            num_sentences=self._sentence_offsets.size - 1,
            num_tokens=self._ids.size,
            num_single_sentence_documents=self._num_single_sentence,
            text_bytes=self.text_bytes,
            inputs=[
                {
                    "path": part.path,
                    "start": part.start,
                    "bytes": part.bytes,
                    "sha256": files.sha256_of_file(part.path, part.start, part.bytes),
                    "documents": self._documents_by_part[index],
                }
                for index, part in enumerate(parts)
            ],
            drops=dict(sorted(self._drops.items())),
            removed_characters=dict(sorted(self._removed.items())),
            bad_records=dict(sorted(self._bad.items())),
            mended=dict(sorted(self._mended.items())),
            first_bad=self._first_bad,
        )


class _ArrayFile:
    """A one-dimensional `.npy` file that grows by appending; its length is written at the end."""

    def __init__(self, path: Path, dtype: np.dtype[Any], start: Sequence[int] = ()) -> None:
        self.size = 0
        self._dtype = dtype
        self.path = path
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        self._file.write(bytes(_NPY_HEADER))
        self.append(np.array(start))

    def append(self, values: NDArray[Any]) -> None:
        with files.names_errors(self.path):
            self._file.write(values.astype(self._dtype).tobytes())
        self.size += values.size

    def close(self) -> None:
        with files.names_errors(self.path), self._file as file:
            file.seek(0)
            header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.size,)}
            np.lib.format.write_array_header_1_0(file, header)
            assert file.tell() == _NPY_HEADER
            file.flush()
            os.fsync(file.fileno())


def _batches(documents: Iterable[_Document]) -> Iterator[list[_Document]]:
    batch: list[_Document] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document.text)
        if num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


class Unit:
    """A finished unit; each array is mapped into memory on first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @functools.cached_property
    def ids(self) -> NDArray[np.integer]:
        """(T,)."""
        return map_array(self._folder / "ids.npy")

    @functools.cached_property
    def sentence_offsets(self) -> NDArray[np.int64]:
        """(sentences + 1,) into `ids`."""
        return map_array(self._folder / "sentence_offsets.npy")

    @functools.cached_property
    def document_offsets(self) -> NDArray[np.int64]:
        """(D + 1,) into sentences."""
        return map_array(self._folder / "document_offsets.npy")

    @functools.cached_property
    def document_hashes(self) -> NDArray[np.uint64]:
        """(D,)."""
        return map_array(self._folder / "document_hashes.npy")


class TokenStore:
    """All units of a store as one corpus, with documents numbered across units."""

    def __init__(self, folder: str | Path, num_documents: Sequence[int]) -> None:
        """Opens a store; nothing is read yet.

        Args:
            folder: of the store.
            num_documents: of each of its U units.
        """
        self.units = [Unit(unit_folder(folder, u)) for u in range(len(num_documents))]
        self.first_document = np.concatenate(
            ([0], np.cumsum(num_documents, dtype=np.int64))
        )  # (U + 1,)

    def smallest_hashes(self, count: int, least: int = 0) -> NDArray[np.uint64]:
        """The `count` smallest distinct hashes from `least` on, ascending; all if fewer."""
        smallest = np.zeros(0, np.uint64)
        for unit in self.units:
            hashes = unit.document_hashes
            if least:
                hashes = hashes[hashes >= np.uint64(least)]
            if smallest.size == count:
                hashes = hashes[hashes < smallest[-1]]
            smallest = np.unique(np.concatenate((smallest, hashes)))[:count]
        return smallest

    def gather(self, document_ids: NDArray[np.int64]) -> Documents:
        """Copies documents out of the store.

        Args:
            document_ids: ascending numbers of documents.

        Returns:
            These documents in their order; memory grows only with their tokens.
        """
        tokens, sentence_lengths, sentence_counts = [], [], []
        cuts = np.searchsorted(document_ids, self.first_document)
        for index in np.flatnonzero(np.diff(cuts)):
            unit = self.units[index]
            local = document_ids[cuts[index] : cuts[index + 1]] - self.first_document[index]
            first, stop = unit.document_offsets[local], unit.document_offsets[local + 1]
            sentences = _ranges(first, stop - first)
            token_starts = unit.sentence_offsets[first]
            token_counts = unit.sentence_offsets[stop] - token_starts
            tokens.append(unit.ids[_ranges(token_starts, token_counts)])
            sentence_lengths.append(
                unit.sentence_offsets[sentences + 1] - unit.sentence_offsets[sentences]
            )
            sentence_counts.append(stop - first)
        return Documents(
            tokens=np.concatenate(tokens),
            sentence_offsets=_offsets(sentence_lengths),
            document_offsets=_offsets(sentence_counts),
            document_ids=document_ids,
        )


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The integers of many ranges, concatenated."""
    stops = np.cumsum(lengths)
    return np.arange(stops[-1]) + np.repeat(starts - stops + lengths, lengths)


def _offsets(lengths: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(np.concatenate(lengths))))
