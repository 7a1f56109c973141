"""The command line of all launch scripts: flags, one-line errors, exit codes.

Not for: logging (scripts print their results) or anything that a library caller needs.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dist_bert.common.errors import NodeError, UserError
from dist_bert.common.redaction import redacted
from dist_bert.common.slurm import take_over_ranks

USER_ERROR_EXIT_CODE = 2
_BROKEN_PIPE_EXIT_CODE = 141  # as of a command ended by SIGPIPE


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all errors of the scripts."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs
        )
        self.add_argument("--debug", action="store_true", help="show a traceback for every error")

    def parse_args(  # type: ignore[override]  # noqa: D102 - only one of argparse's two forms is needed
        self, args: Sequence[str] | None = None
    ) -> argparse.Namespace:
        try:
            take_over_ranks()  # before the first message, which only rank 0 prints
        except UserError as error:
            self.error(str(error))
        arguments, unknown = self.parse_known_args(args)
        if unknown:
            known = sorted(s for a in self._actions for s in a.option_strings if s[:2] == "--")
            self.error(f"unknown argument {' '.join(unknown)}; known flags: {' '.join(known)}")
        return arguments

    def print_help(self, file: Any = None) -> None:  # noqa: D102
        if is_first_rank():
            super().print_help(file)

    def error(self, message: str) -> NoReturn:  # noqa: D102
        if is_first_rank():
            print(f"error: {redacted(message)}", file=sys.stderr)
        raise SystemExit(USER_ERROR_EXIT_CODE)


def local_path(text: str) -> Path:
    """Converts an argument to a path, for argparse; rejects a URL.

    As a path, `s3://bucket` would create a folder `s3:` in the current folder.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text}: is a URL; give a local path and copy the files from or to it"
        )
    return Path(text)


def add_cache_flags(parser: argparse.ArgumentParser) -> None:
    """Adds pretraining's settings of the same names, for scripts that only read shards."""
    parser.add_argument(
        "--local_cache",
        metavar="DIR",
        default="",
        help="folder on a local disk to cache shards from URLs and slow file systems",
    )
    parser.add_argument(
        "--local_cache_gib",
        type=_gib,
        default=0.0,
        metavar="GIB",
        help="maximum total size of the cache; 0 = no limit (default)",
    )


def _gib(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 0")
    return value


def run(
    main: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace
) -> NoReturn:
    """Runs a script's main function and exits with 0, its own code, or 2 and a line on `UserError`.

    An `OSError` of a named file is handled like a `UserError`.

    Every rank of a launch sees the same error, so only the first one prints it, except for a
    `NodeError`.
    """
    raise SystemExit(_exit_code_of(main, arguments))


def run_rank(
    main: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace
) -> NoReturn:
    """Like `run`, for scripts whose processes may be ranks of `torch.distributed`."""
    end_rank(_exit_code_of(main, arguments))


def _exit_code_of(
    main: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace
) -> int:
    try:
        code = main(arguments)
        sys.stdout.flush()  # here, where a closed pipe is handled
    except UserError as error:
        if arguments.debug:
            traceback.print_exc()
        elif is_first_rank() or isinstance(error, NodeError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        code = USER_ERROR_EXIT_CODE
    except BrokenPipeError:  # the reader of our output has exited, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no flush at exit
        code = _BROKEN_PIPE_EXIT_CODE
    except OSError as error:  # a named file cannot be created, read or written
        if arguments.debug or error.filename is None:
            raise
        told = redacted(f"error: {error.filename}: {error.strerror}")
        print(told, file=sys.stderr, flush=True)
        code = USER_ERROR_EXIT_CODE
    return code or 0


def is_first_rank() -> bool:
    """Whether this process is rank 0 of its launch, or was launched alone."""
    return all(
        os.environ.get(name, "0") == "0" for name in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
    )


def end_rank(code: int) -> NoReturn:
    """Exits a process that was a rank, without interpreter teardown.

    Gloo's threads release the tensors of a collective after its end, and take the interpreter's
    lock for that. A thread that waits for the lock during teardown aborts the process: exit code -6
    for a run that has finished its work (pytorch issue 190489).

    Args:
        code: exit code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
