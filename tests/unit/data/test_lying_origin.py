"""HTTP servers that break their own protocol: every lie ends in one line, in bounded time."""

import contextlib
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.errors import UserError
from dist_bert.data.remote import Origin, OriginError
from dist_bert.data.shard_source import ShardSource
from tests.support.synthetic import write_data_set

OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS = object()  # in an answer: the part before it, again and again
SILENCE = object()  # nothing more comes, and the connection stays
LIES: dict[str, list[Any]] = {
    "a negative length": [OK + b"Content-Length: -5\r\n\r\n{}"],
    "a length that is none": [OK + b"Content-Length: many\r\n\r\n{}"],
    "a length of petabytes": [OK + b"Content-Length: 9007199254740993\r\n\r\n{}"],
    "two lengths": [OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"],
    "a page in its place": [OK + b"Content-Length: 21\r\n\r\n<html>log in</html>\r\n"],
    "nothing": [OK + b"Content-Length: 0\r\n\r\n"],
    "no HTTP": [b"\x16\x03\x01\x00\xff\x00" * 50],
    "no such status": [b"HTTP/1.1 99999 WHAT\r\nContent-Length: 2\r\n\r\n{}"],
    "a redirect to itself": [b"HTTP/1.1 302 Found\r\nLocation: /x/manifest.json\r\n\r\n"],
    "a redirect to a file": [b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"],
    "a redirect to nowhere": [b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n"],
    "headers without end": [OK, b"X-More: 1\r\n" * 500, ENDLESS],
    "a header without end": [OK + b"X: ", b"x" * 4_096, ENDLESS],
    "chunks of no size": [OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"],
    "a chunk of exabytes": [OK + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n{}"],
    "chunks without end": [
        OK + b"Transfer-Encoding: chunked\r\n\r\n",
        b"1\r\n \r\n" * 500,
        ENDLESS,
    ],
    "gzip that is none": [OK + b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\nno gzip!!"],
    "silence": [SILENCE],
    "silence behind the head": [OK + b"Content-Length: 900\r\n\r\n{", SILENCE],
}


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    is_stopped = False
    answer: list[Any]


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server: Any = self.server
        with contextlib.suppress(OSError):
            self.request.recv(1 << 16)
            for number, part in enumerate(server.answer):
                while part is ENDLESS and not server.is_stopped:
                    self.request.sendall(server.answer[number - 1])
                while part is SILENCE and not server.is_stopped:
                    time.sleep(0.05)
                if isinstance(part, bytes):
                    self.request.sendall(part)


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.is_stopped = True
        server.shutdown()


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_bert.data.remote._ANSWER_SECONDS", 1.0)
    monkeypatch.setattr("dist_bert.data.shard_source.START_SECONDS", 0.5)
    monkeypatch.setattr("dist_bert.data.shard_source._LOOK_SECONDS", 1.0)
    monkeypatch.setattr("dist_bert.data.shard_cache.PATIENCE_SECONDS", 1.0)


def place_of(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/x"


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_of_lies(server: _Server, tmp_path: Path, lie: str, short_limits: None) -> None:
    server.answer = LIES[lie]
    begin = time.monotonic()
    with pytest.raises(UserError) as caught:
        ShardSource(place_of(server), str(tmp_path)).manifest()
    assert "\n" not in str(caught.value) and place_of(server) in str(caught.value)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("lie", LIES)
def test_a_shard_of_lies(server: _Server, tmp_path: Path, lie: str, short_limits: None) -> None:
    data_set = write_data_set(tmp_path / "shards", [(3,)], [(2,)])
    server.answer = LIES[lie]
    source = ShardSource(place_of(server), str(tmp_path / "cache"))
    with pytest.raises(UserError) as caught:
        source.open(data_set.manifest.splits["train"][0], data_set.manifest.field_types)
    assert "\n" not in str(caught.value) and "train-00000.tar" in str(caught.value)
    assert source.problems(data_set.manifest, 0, 1)


@pytest.mark.parametrize("told", ["bytes 5-8/100", "bytes */100", "nonsense"])
def test_a_part_of_another_place_is_not_taken(
    server: _Server, tmp_path: Path, told: str, short_limits: None
) -> None:
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: {told}\r\nContent-Length: 4\r\n\r\n"
    server.answer = [head.encode() + b"abcd"]
    origin = Origin(place_of(server))
    with pytest.raises(OriginError, match=r"a: cannot be read .*asked for the bytes from 0 on"):
        origin.read("a", 0, 4, 2.0)
    server.answer = [head.replace(told, "bytes 0-3/100").encode() + b"abcd"]
    assert origin.read("a", 0, 4, 2.0) == b"abcd"
