"""A real HTTP server of a folder, in a thread: notes what is asked, fails or lies when told to."""

import gzip
import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_PIECE_BYTES = 4_096  # sent at a time
_ENDLESS_BYTES = 1 << 20  # likewise, behind the end


class Request(NamedTuple):
    """What was asked for."""

    method: str
    file: str
    start: int  # first byte
    num_bytes: int  # of the answer


class ShardServer:
    """Serves until it is stopped; may be started again at the same address.

    Attributes:
        requests: all so far.
        corrupt: file -> how many of its next answers have a wrong byte.
        cut: file -> how many of its next answers end half-way, though a whole one is promised.
        seconds: it takes to send 4 KiB.
        endless: files whose answers go on with blanks, for ever.
        trickling: files of which a byte comes each tenth of a second.
        packed: file -> blanks that its answer unpacks to, instead of the file.
        knows_ranges: False = every answer is the whole file.
        before: called with the file's name before an answer is sent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[Request] = []
        self.corrupt: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.endless: set[str] = set()
        self.trickling: set[str] = set()
        self.packed: dict[str, int] = {}
        self.seconds = 0.0
        self.knows_ranges = True
        self.before: Callable[[str], None] = lambda file: None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/some/shards"

    def start(self) -> None:
        """Begins to answer; until `stop`."""
        self._server = _Server(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuses connections from now on."""
        self._server.shutdown()
        self._server.server_close()

    def num_fetched(self) -> Counter[str]:
        """Shard file -> answers whose first byte was the file's."""
        starts = (r.file for r in self.requests if r.method == "GET" and r.start == 0)
        return Counter(file for file in starts if file.endswith(".tar"))


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are no matter."""


def _handler(server: ShardServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, *arguments: Any) -> None:
            pass

        def _answer(self) -> None:
            file = self.path.rsplit("/", 1)[1]
            server.before(file)
            path = server.folder / file
            if not self.path.startswith("/some/shards/") or not path.exists():
                self.send_error(404)
                return
            data = path.read_bytes()
            if file in server.packed:
                data = gzip.compress(bytes([32]) * server.packed[file], 6)
            start, stop, size = 0, len(data), len(data)
            span = self.headers.get("Range")
            if span and server.knows_ranges:
                first, last = span.removeprefix("bytes=").split("-")
                start, stop = int(first), min(int(last) + 1, size)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            else:
                self.send_response(200)
            server.requests.append(Request(self.command, file, start, stop - start))
            if file in server.packed:
                self.send_header("Content-Encoding", "gzip")
            if file not in server.endless:
                self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if self.command == "GET":
                self._send(file, bytearray(data[start:stop]))

        def _send(self, file: str, data: bytearray) -> None:
            if server.corrupt[file]:
                server.corrupt[file] -= 1
                data[len(data) // 2] ^= 1
            if server.cut[file]:
                server.cut[file] -= 1
                del data[len(data) // 2 :]
            size, seconds = (1, 0.1) if file in server.trickling else (_PIECE_BYTES, server.seconds)
            for begin in range(0, len(data), size):
                self.wfile.write(data[begin : begin + size])
                self.wfile.flush()
                time.sleep(seconds)
            while file in server.endless:
                self.wfile.write(bytes([32]) * _ENDLESS_BYTES)

    return Handler
