"""Tar files of text, in the manner of webdataset: members KEY.txt or KEY.json are documents.

The members of a key are neighbours. Other than there, the suffix is what follows the last full
stop, so that `mr. smith.txt` is text. Not for: the shards that preparation writes.
"""

import itertools
import json
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from data_prep.readers.records import document_of
from data_prep.readers.source import BOM, Document, Source
from dist_bert.errors import UserError

_TEXT, _JSON = (".txt", ".text"), ".json"
_READ_BYTES = 1 << 20


class _Member(NamedTuple):
    name: str
    key: str
    suffix: str
    data: bytes
    offset: int  # of the data in the unpacked archive


def tar(source: Source) -> Iterator[Document]:
    """A text member is a document, and a JSON member where its key has no text member."""
    with source.open() as file:
        members = _members(source, file)
        for _, group in itertools.groupby(members, lambda member: member.key):
            yield from _documents(list(group), source)


def _documents(members: Sequence[_Member], source: Source) -> Iterator[Document]:
    """Those of one key."""
    has_text = any(member.suffix in _TEXT for member in members)
    for member in members:
        if has_text and member.suffix == _JSON:
            source.tally.drops["other_member"] += 1  # says something about the text
            continue
        source.tally.num_records += 1
        text = source.decode(member.data.removeprefix(BOM), member.offset)
        if member.suffix in _TEXT:
            yield Document(text)
        elif document := _json_document(text, member, source):
            yield document


def _json_document(text: str, member: _Member, source: Source) -> Document | None:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        source.tally.count_bad("not_json", f"member {member.name}: is not JSON ({error})")
        return None
    document = document_of(fields, source) if isinstance(fields, dict) else None
    if document is None:
        source.tally.drops["other_member"] += 1
    return document


def _members(source: Source, file: IO[bytes]) -> Iterator[_Member]:
    """Members that may be documents, in their order; other files are counted."""
    watched = _Watched(file)
    stream: Any = watched  # of a file, `tarfile` only uses `read` here
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it keeps all of them
                key, suffix = posixpath.splitext(info.name)
                is_hidden = posixpath.basename(info.name).startswith(".")  # "._a.txt", by macOS
                if not info.isreg():
                    continue
                if is_hidden or suffix.lower() not in (*_TEXT, _JSON):
                    source.tally.drops["other_member"] += 1
                    continue
                content = archive.extractfile(info)
                assert content is not None, "a regular file has content"
                yield _Member(info.name, key, suffix.lower(), content.read(), info.offset_data)
            watched.check_end(archive.offset)
    except tarfile.TarError as error:
        raise UserError(
            f"{source.path}: is cut off or no tar file: {error}; fetch it again"
        ) from None


class _Watched:
    """A file, and what `tarfile` read of it last.

    `tarfile` takes a header that is damaged or missing for the end of the archive, without a word.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._start = 0  # of the last bytes that were read
        self._last = b""

    def read(self, size: int) -> bytes:
        """Reads on."""
        self._start += len(self._last)
        self._last = self._file.read(size)
        return self._last

    def check_end(self, offset: int) -> None:
        """Checks that a block of zeros ends the archive, and that nothing is behind it.

        Args:
            offset: of the block that `tarfile` took for the end, in the file.

        Raises:
            tarfile.ReadError: it is no end, or not the end of the file.
        """
        rest = self._last[offset - self._start :]
        if len(rest) < tarfile.BLOCKSIZE or rest[: tarfile.BLOCKSIZE].strip(b"\0"):
            raise tarfile.ReadError(f"no member and no end at unpacked byte {offset:,}")
        while rest:
            if rest.strip(b"\0"):
                raise tarfile.ReadError("more follows behind its end; are they several in one?")
            rest = self.read(_READ_BYTES)
