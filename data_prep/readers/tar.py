"""Reads tar files of text, as in webdataset: members KEY.txt or KEY.json are documents.

The members of a key are adjacent. Unlike in webdataset, the suffix is what follows the last full
stop, so that `mr. smith.txt` is text. Not for: the shards that preparation writes.

`tarfile` trusts the headers; this module limits the memory of a member and its headers.
"""

import contextlib
import itertools
import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from data_prep.readers.records import document_of
from data_prep.readers.source import BOM, MAX_RECORD_BYTES, Document, Source, too_long
from dist_bert.common.errors import UserError

_TEXT, _JSON = (".txt", ".text"), ".json"
_READ_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20  # of all headers of a member: long names, attributes, maps of holes
_MOST_HEADERS = 16  # of a member; `tarfile` reads each inside the previous one
_MOST_EMPTY_READS = 64  # at the end of a file: to skip missing data, `tarfile` keeps reading
# Raised by `tarfile`, besides its own errors, for headers with invalid numbers.
_BAD_HEADER = (ValueError, IndexError, KeyError, OverflowError, RecursionError)


class _Member(NamedTuple):
    name: str
    key: str
    suffix: str
    data: bytes
    offset: int  # of the data in the unpacked archive


def tar(source: Source) -> Iterator[Document]:
    """Yields each text member as a document, and a JSON member if its key has no text member.

    Raises:
        UserError: the file is cut off or not a tar file, or a member is too long.
    """
    with source.open() as file:
        members = _members(source, file)
        for _, group in itertools.groupby(members, lambda member: member.key):
            yield from _documents(group, source)


def _documents(members: Iterable[_Member], source: Source) -> Iterator[Document]:
    """The documents of one key."""
    has_text = False
    waiting: list[_Member] = []  # JSON: may describe a text that follows
    for member in members:
        if member.suffix in _TEXT:
            has_text = True
            yield Document(_decoded(member, source))
        elif not has_text:
            waiting.append(member)
            if sum(len(other.data) for other in waiting) > MAX_RECORD_BYTES:
                raise too_long(source.path, f"the data of {member.key}")
        else:
            source.tally.drops["other_member"] += 1
    if has_text and waiting:
        source.tally.drops["other_member"] += len(waiting)
    elif waiting:
        for member in waiting:
            if document := _json_document(_decoded(member, source), member, source):
                yield document


def _decoded(member: _Member, source: Source) -> str:
    source.tally.num_records += 1
    return source.decode(member.data.removeprefix(BOM), member.offset)


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
    try:
        with _opened(watched) as archive:
            while (info := _next(archive)) is not None:
                key, suffix = posixpath.splitext(info.name)
                is_hidden = posixpath.basename(info.name).startswith(".")  # "._a.txt", by macOS
                if not info.isreg():
                    continue
                if is_hidden or suffix.lower() not in (*_TEXT, _JSON):
                    source.tally.drops["other_member"] += 1
                    continue
                if info.size > MAX_RECORD_BYTES:
                    raise too_long(source.path, f"member {info.name}")
                data = _content(archive, info)
                yield _Member(info.name, key, suffix.lower(), data, info.offset_data)
            watched.check_end(archive.offset)
    except tarfile.TarError as error:
        raise UserError(
            f"{source.path}: is cut off or not a tar file: {error}; fetch it again"
        ) from None


def _opened(watched: "_Watched") -> tarfile.TarFile:
    class LimitedInfo(tarfile.TarInfo):
        @classmethod
        def fromtarfile(cls, archive: Any) -> "LimitedInfo":
            with watched.header():
                info = super().fromtarfile(archive)
            if info.size < 0:
                raise tarfile.ReadError(f"member {info.name} has a size of {info.size:,} bytes")
            return info

    stream: Any = watched  # `tarfile` only uses `read` here
    try:
        return tarfile.open(fileobj=stream, mode="r|", tarinfo=LimitedInfo)
    except _BAD_HEADER as error:
        raise tarfile.ReadError(f"bad header ({type(error).__name__}: {error})") from None


def _next(archive: Any) -> tarfile.TarInfo | None:
    try:
        info: tarfile.TarInfo | None = archive.next()
    except _BAD_HEADER as error:
        raise tarfile.ReadError(f"bad header ({type(error).__name__}: {error})") from None
    archive.members = []  # it keeps all members, and the attributes for all later ones
    if sum(map(len, archive.pax_headers.values())) > _MAX_HEADER_BYTES:
        raise tarfile.ReadError("the headers for all members take too much memory")
    return info


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    try:
        content = archive.extractfile(info)
        assert content is not None, "a regular file has content"
        return content.read()
    except _BAD_HEADER as error:
        raise tarfile.ReadError(f"member {info.name}: bad map of holes ({error})") from None


class _Watched:
    """A file and the last bytes that `tarfile` read from it.

    `tarfile` silently treats a damaged or missing header as the end of the archive.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._start = 0  # offset of the last bytes that were read
        self._last = b""
        self._num_headers = 0  # being read, each inside the previous one
        self._header_start = 0
        self._num_empty = 0

    def read(self, size: int) -> bytes:
        """Reads more bytes.

        Raises:
            tarfile.ReadError: headers are too long, or the file has ended.
        """
        self._start += len(self._last)
        self._last = self._file.read(size)
        self._num_empty = 0 if self._last else self._num_empty + 1
        if self._num_empty > _MOST_EMPTY_READS:
            raise tarfile.ReadError("it ends inside a member")
        if self._num_headers and self._start - self._header_start > _MAX_HEADER_BYTES:
            raise tarfile.ReadError("the headers of a member take more than 1 MiB")
        return self._last

    @contextlib.contextmanager
    def header(self) -> Iterator[None]:
        """Limits the bytes read in the block; blocks may be nested."""
        if not self._num_headers:
            self._header_start = self._start
        self._num_headers += 1
        try:
            if self._num_headers > _MOST_HEADERS:
                raise tarfile.ReadError(f"a member has more than {_MOST_HEADERS} headers")
            yield
        finally:
            self._num_headers -= 1

    def check_end(self, offset: int) -> None:
        """Checks that a block of zeros ends the archive, and that nothing follows it.

        Args:
            offset: in the file, of the block that `tarfile` took for the end.

        Raises:
            tarfile.ReadError: it is not an end, or not the end of the file.
        """
        rest = self._last[offset - self._start :]
        if len(rest) < tarfile.BLOCKSIZE or rest[: tarfile.BLOCKSIZE].strip(b"\0"):
            raise tarfile.ReadError(f"no member and no end at unpacked byte {offset:,}")
        while rest:
            if rest.strip(b"\0"):
                raise tarfile.ReadError("data follows its end; are several archives concatenated?")
            rest = self.read(_READ_BYTES)
