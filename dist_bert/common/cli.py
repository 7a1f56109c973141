"""The command line of all launch scripts: flags, one-line errors, exit codes.

Not for: logging (scripts print their results) or anything that a library caller needs.
"""

import argparse
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dist_bert.common.device import set_up_allocator
from dist_bert.common.errors import NodeError, UserError
from dist_bert.common.files import problem
from dist_bert.common.redaction import redacted
from dist_bert.common.settings import add_switch
from dist_bert.common.slurm import take_over_ranks

USER_ERROR_EXIT_CODE = 2
_BROKEN_PIPE_EXIT_CODE = 141  # as of a command ended by SIGPIPE


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all errors of the scripts."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs
        )
        add_switch(self, "--debug", "show a traceback for every error")

    def parse_args(  # type: ignore[override]  # noqa: D102 - only one of argparse's two forms is needed
        self, args: Sequence[str] | None = None
    ) -> argparse.Namespace:
        try:
            take_over_ranks()  # before the first message, which only rank 0 prints
        except UserError as error:
            self.error(str(error))
        arguments, unknown = self.parse_known_args(args)
        if unknown:
            actions = self._command(arguments)._actions
            known = sorted(s for a in actions for s in a.option_strings if s[:2] == "--")
            self.error(f"unknown argument {' '.join(unknown)}; known flags: {' '.join(known)}")
        return arguments

    def parse_known_args(  # type: ignore[override]  # noqa: D102 - as above
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args(self._with_values(given), namespace)

    def _command(self, arguments: argparse.Namespace) -> argparse.ArgumentParser:
        """The parser of the command that was given, or this one where there are no commands."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen: argparse.ArgumentParser = action.choices[getattr(arguments, action.dest)]
                return chosen
        return self

    def _with_values(self, given: Sequence[str]) -> list[str]:
        """The arguments, where `true` is added to a switch that stands alone before a text."""
        switches = {
            flag: action.type
            for action in self._actions
            if action.const is True and callable(action.type)
            for flag in action.option_strings
        }
        completed = list(given)
        end = completed.index("--") if "--" in completed else len(completed)
        for index, (text, following) in enumerate(itertools.pairwise(completed[:end])):
            if text in switches and not _reads(switches[text], following):
                completed[index] = f"{text}=true"
        return completed

    def print_help(self, file: Any = None) -> None:  # noqa: D102
        if is_first_rank():
            super().print_help(file)

    def error(self, message: str) -> NoReturn:  # noqa: D102
        if is_first_rank():
            print(f"error: {redacted(message)}", file=sys.stderr)
        raise SystemExit(USER_ERROR_EXIT_CODE)


def _reads(parse: Callable[[str], Any], text: str) -> bool:
    """Whether a text is a value of a flag."""
    try:
        parse(text)
    except argparse.ArgumentTypeError:
        return False
    return True


def local_path(text: str) -> Path:
    """Converts an argument to a path, for argparse; rejects a URL.

    As a path, `s3://bucket` would create a folder `s3:` in the current folder.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text}: is a URL; give a local path and copy the files from or to it"
        )
    return Path(text)


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return value


def share(text: str) -> float:
    """A share, 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a share, 0 to 1")
    return value


def check_output_file(path: str | None, flag: str) -> None:
    """Finds out before the work whether a file can be written: its folder is there.

    Raises:
        UserError: it is not.
    """
    if path and not Path(path).resolve().parent.is_dir():
        raise UserError(f"{flag} {path}: its folder does not exist; make it first")


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
    set_up_allocator()
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
        told = redacted(f"error: {error.filename}: {problem(error)}")
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
