"""Where the files of a data set come from: a folder, or a URL that fsspec can read.

fsspec and aiohttp are imported for URLs alone. Whatever else an address needs (s3fs, gcsfs,
credentials, proxies) is between fsspec and its environment. Not for: keeping what is read
(`dist_bert.data.shard_cache`).
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from dist_bert.common.errors import NodeError, UserError
from dist_bert.common.redaction import redacted

_CONNECT_SECONDS, _SILENCE_SECONDS = 15.0, 30.0  # of an HTTP server, before it is asked again
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between two attempts; doubled each time
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 120.0  # for a small file to be complete: half a MiB a second, where it is large
_LEAST_SECONDS = 1.0
_PARTIAL_CONTENT, _NOT_FOUND = 206, 404


class OriginError(Exception):
    """A file cannot be read at present; the message names it."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))  # of credentials: libraries quote whole addresses


class MissingFileError(OriginError):
    """The origin answers that there is no such file."""


class Patience:
    """Growing waits between attempts, until there has been no progress for too long."""

    def __init__(self, seconds: float) -> None:
        """Starts the clock.

        Args:
            seconds: without progress, after which it is over.
        """
        self._seconds = seconds
        self._has_told = False
        self.restart()

    def restart(self) -> None:
        """There is progress."""
        self._since = time.monotonic()
        self._wait = _FIRST_WAIT

    def seconds_left(self) -> float:
        """Until it is over, if there is no progress."""
        return max(0.0, self._since + self._seconds - time.monotonic())

    def wait(self, problem: str) -> None:
        """Sleeps before the next attempt; the first problem is told.

        Raises:
            NodeError: it is over.
        """
        if not self._has_told:
            logging.getLogger("dist_bert").warning(
                "%s; trying again for up to %.0f s", problem, self._seconds
            )
        self._has_told = True
        self.look_again(problem, self._wait)
        self._wait = min(2 * self._wait, _LONGEST_WAIT)

    def look_again(self, problem: str, seconds: float = _POLL_SECONDS) -> None:
        """Sleeps for a moment: somebody else is at it.

        Raises:
            NodeError: it is over.
        """
        left = self.seconds_left()
        if left <= 0:
            raise NodeError(
                f"{problem}; given up after {self._seconds:.0f} s without progress; the same"
                " command goes on from where it was"
            )
        time.sleep(min(seconds, left))


def is_url(place: str | Path) -> bool:
    """Whether fsspec is to read it: s3://..., gs://..., https://..., file://..."""
    return "://" in str(place)


class Origin:
    """Files of one folder or URL, read whole or in parts."""

    def __init__(self, place: str | Path) -> None:
        """Connects to nothing yet.

        Raises:
            UserError: the address is of an unknown kind, or needs a package that is missing.
        """
        self.place = str(place).rstrip("/")
        self._file_system: Any = None
        self._is_http = self.place.startswith(("http://", "https://"))
        if is_url(place):
            self._file_system, self._root = _open_url(self.place)

    def address(self, file: str) -> str:
        """The full name of a file, for messages: without credentials."""
        return redacted(f"{self.place}/{file}")

    def read(
        self, file: str, start: int, stop: int, seconds: float, num_bytes: int | None = None
    ) -> bytes:
        """The bytes [start, stop) of a file, fewer where it ends before.

        A server that knows no ranges gives more: all bytes up to `num_bytes`.

        Args:
            file: name.
            start: first byte.
            stop: end of the bytes.
            seconds: in which they must be here, however steadily they trickle in.
            num_bytes: of the file, whatever the server sends; None = `stop`.

        Raises:
            OriginError: they cannot be read now.
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
        except Exception as error:  # of whatever library reads this kind of address
            raise self._error(file, error) from None
        return bytes(data[: end - start])

    def num_bytes(self, file: str, seconds: float) -> int:
        """Size of a file.

        Args:
            file: name.
            seconds: in which the answer must be here.

        Raises:
            OriginError: it cannot be found out now.
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
        """All bytes of a small file, tried again for some time.

        Args:
            file: name.
            seconds: after which no attempt begins.
            most_bytes: that it may have.

        Raises:
            MissingFileError: there is no such file.
            UserError: it is larger.
            NodeError: it could not be read in this time.
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
                f"{self.address(file)}: has more than {most_bytes:,} bytes, which no data set's"
                " has: check the address"
            )
        return data

    def _in_time(self, seconds: float, function: Any, *arguments: Any) -> Any:
        """What a coroutine of fsspec's loop returns, cancelled when it takes too long."""
        import fsspec

        seconds = max(seconds, _LEAST_SECONDS)  # 0 would be no limit
        try:
            return fsspec.asyn.sync(self._file_system.loop, function, *arguments, timeout=seconds)
        except fsspec.exceptions.FSTimeoutError:
            raise TimeoutError(f"not complete after {seconds:.0f} s") from None

    async def _read_http(self, url: str, start: int, stop: int, end: int) -> bytearray:
        """As fsspec's `_cat_file`, which would take all that a server sends, whatever was asked.

        A server that knows no ranges begins with the file's first byte.
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
        async with request as response:  # closes the connection where more would come
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
            # aiohttp itself would end every answer that takes 5 minutes, and know no proxy.
            import aiohttp

            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
            )
            own = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
            settings["client_kwargs"] = {"timeout": timeout, "trust_env": True, **own}
        file_system, path = fsspec.core.url_to_fs(url, **settings)
    except ImportError as error:
        raise UserError(f"{url}: needs a package that is missing: {error}") from None
    except ValueError as error:
        raise UserError(f"{url}: is no address that fsspec can read ({error})") from None
    return file_system, path.rstrip("/")
