"""Reads the files of a data set from a folder, or from a URL that fsspec supports.

fsspec and aiohttp are imported only for URLs. fsspec and its environment provide everything else
that an address needs (s3fs, gcsfs, credentials, proxies). Not for: caching
(`dist_bert.data.shard_cache`).
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from dist_bert.common.errors import NodeError, UserError
from dist_bert.common.redaction import redacted

_CONNECT_SECONDS, _SILENCE_SECONDS = 15.0, 30.0  # of an HTTP server, before a retry
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between two attempts; doubles each time
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 120.0  # to read a small file: half a MiB per second for the largest
_LEAST_SECONDS = 1.0
_PARTIAL_CONTENT, _NOT_FOUND = 206, 404


class OriginError(Exception):
    """A file cannot be read at the moment; the message names it."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))  # of credentials: libraries quote full addresses


class MissingFileError(OriginError):
    """The origin reports that the file does not exist."""


class Patience:
    """Growing waits between attempts, with a limit of the time without progress."""

    def __init__(self, seconds: float) -> None:
        """Starts the clock.

        Args:
            seconds: of the limit without progress.
        """
        self._seconds = seconds
        self._has_told = False
        self.restart()

    def restart(self) -> None:
        """Restarts the clock after progress."""
        self._since = time.monotonic()
        self._wait = _FIRST_WAIT

    def seconds_left(self) -> float:
        """Seconds until the limit, without progress."""
        return max(0.0, self._since + self._seconds - time.monotonic())

    def wait(self, problem: str) -> None:
        """Sleeps before the next attempt; logs the first problem.

        Raises:
            NodeError: it is over.
        """
        if not self._has_told:
            logging.getLogger("dist_bert").warning(
                "%s; retrying for up to %.0f s", problem, self._seconds
            )
        self._has_told = True
        self.look_again(problem, self._wait)
        self._wait = min(2 * self._wait, _LONGEST_WAIT)

    def look_again(self, problem: str, seconds: float = _POLL_SECONDS) -> None:
        """Sleeps briefly while another process is working on it.

        Raises:
            NodeError: it is over.
        """
        left = self.seconds_left()
        if left <= 0:
            raise NodeError(
                f"{problem}; gave up after {self._seconds:.0f} s without progress; the same command"
                " resumes"
            )
        time.sleep(min(seconds, left))


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL for fsspec: s3://..., gs://..., https://..., file://..."""
    return "://" in str(place)


class Origin:
    """Files of one folder or URL, read whole or in parts."""

    def __init__(self, place: str | Path) -> None:
        """Does not connect yet.

        Raises:
            UserError: the kind of address is unknown, or needs a package that is not installed.
        """
        self.place = str(place).rstrip("/")
        self._file_system: Any = None
        self._is_http = self.place.startswith(("http://", "https://"))
        if is_url(place):
            self._file_system, self._root = _open_url(self.place)

    def address(self, file: str) -> str:
        """The full address of a file, for messages, without credentials."""
        return redacted(f"{self.place}/{file}")

    def read(
        self, file: str, start: int, stop: int, seconds: float, num_bytes: int | None = None
    ) -> bytes:
        """The bytes [start, stop) of a file, fewer if it ends earlier.

        A server without support for ranges returns more: all bytes up to `num_bytes`.

        Args:
            file: name.
            start: first byte.
            stop: end of the bytes.
            seconds: limit of the whole read, even with steady progress.
            num_bytes: of the file, a limit for what the server sends; None = `stop`.

        Raises:
            OriginError: they cannot be read at the moment.
        """
        end = stop if num_bytes is None else num_bytes
        try:
            if self._file_system is None:
                with open(os.path.join(self.place, file), "rb") as opened:
                    opened.seek(start)
                    return opened.read(stop - start)
            path = f"{self._root}/{file}"
            if self._is_http:
                data = self._in_time(seconds, self._read_http, path, start, stop, end)
            elif self._file_system.async_impl:
                data = self._in_time(seconds, self._file_system._cat_file, path, start, stop)
            else:
                data = self._file_system.cat_file(path, start=start, end=stop)
        except Exception as error:  # of any library that reads this kind of address
            raise self._error(file, error) from None
        return bytes(data[: end - start])

    def num_bytes(self, file: str, seconds: float) -> int:
        """Size of a file.

        Args:
            file: name.
            seconds: limit for the answer.

        Raises:
            OriginError: it cannot be determined at the moment.
        """
        try:
            if self._file_system is None:
                return os.path.getsize(os.path.join(self.place, file))
            path = f"{self._root}/{file}"
            if self._file_system.async_impl:
                return int(self._in_time(seconds, self._file_system._info, path)["size"])
            return int(self._file_system.info(path)["size"])
        except Exception as error:
            raise self._error(file, error) from None

    def read_patiently(self, file: str, seconds: float, most_bytes: int) -> bytes:
        """All bytes of a small file, with retries.

        Args:
            file: name.
            seconds: after which no further attempt begins.
            most_bytes: allowed size.

        Raises:
            MissingFileError: there is no such file.
            UserError: it is larger.
            NodeError: it could not be read within this time.
        """
        patience = Patience(seconds)
        while True:
            try:
                data = self.read(file, 0, most_bytes + 1, _ANSWER_SECONDS)
            except MissingFileError:
                raise
            except OriginError as error:
                patience.wait(str(error))
            else:
                break
        if len(data) > most_bytes:
            raise UserError(
                f"{self.address(file)}: has more than {most_bytes:,} bytes, too many for a data"
                " set's file: check the address"
            )
        return data

    def _in_time(self, seconds: float, function: Any, *arguments: Any) -> Any:
        """Result of a coroutine in fsspec's loop; cancels it when it takes too long."""
        import fsspec

        seconds = max(seconds, _LEAST_SECONDS)  # 0 would mean no limit
        try:
            return fsspec.asyn.sync(self._file_system.loop, function, *arguments, timeout=seconds)
        except fsspec.exceptions.FSTimeoutError:
            raise TimeoutError(f"not complete after {seconds:.0f} s") from None

    async def _read_http(self, url: str, start: int, stop: int, end: int) -> bytearray:
        """Like fsspec's `_cat_file`, which would read all that a server sends, even unrequested.

        A server without support for ranges starts at the file's first byte.
        """
        settings = dict(self._file_system.kwargs)
        headers = {
            **settings.pop("headers", {}),
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
        }
        session = await self._file_system.set_session()
        request = session.get(self._file_system.encode_url(url), headers=headers, **settings)
        data = bytearray()
        async with request as response:  # closes the connection if more data would follow
            if response.status == _NOT_FOUND:
                raise FileNotFoundError(url)
            response.raise_for_status()
            is_part = response.status == _PARTIAL_CONTENT
            told = response.headers.get("Content-Range", f"bytes {start}-")
            if is_part and not told.startswith(f"bytes {start}-"):
                raise ValueError(f"asked for the bytes from {start:,} on, it sends {told!a}")
            skip, most = (0, stop - start) if is_part else (start, end - start)
            async for piece in response.content.iter_any():
                data += piece[skip:]
                skip -= min(skip, len(piece))
                if len(data) >= most:
                    break
        return data

    def _error(self, file: str, error: Exception) -> OriginError:
        if isinstance(error, FileNotFoundError):
            return MissingFileError(f"{self.address(file)}: is missing")
        reason = " ".join(str(error).split()) or "no answer"
        return OriginError(
            f"{self.address(file)}: cannot be read ({type(error).__name__}: {reason})"
        )


def _open_url(url: str) -> tuple[Any, str]:
    """The file system of fsspec for a URL, and the URL's path in it."""
    try:
        import fsspec
    except ImportError:
        raise UserError(
            f"{url}: needs the package fsspec: pip install -c constraints.txt -e '.[remote]'"
        ) from None
    scheme = url.split("://")[0]
    settings: dict[str, Any] = {}
    try:
        if scheme in ("http", "https"):
            # By default, aiohttp aborts answers after 5 minutes and ignores proxies.
            import aiohttp

            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
            )
            own = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
            settings["client_kwargs"] = {"timeout": timeout, "trust_env": True, **own}
        file_system, path = fsspec.core.url_to_fs(url, **settings)
    except ImportError as error:
        raise UserError(f"{url}: needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise UserError(f"{url}: is not an address that fsspec can read ({error})") from None
    return file_system, path.rstrip("/")
