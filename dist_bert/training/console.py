"""What a run says: a progress bar on a terminal, plain lines elsewhere, all of it in RUN/log.txt.

Rank 0 alone speaks. Every rank has its warnings in a file of its own
(`dist_bert.distributed.rank_log`); those of the others are gathered now and then
(`dist_bert.training.rank_reports`), and rank 0 shows each text once. Not for: the errors that end a
process (`dist_bert.common.cli`, `dist_bert.distributed.interrupts`).
"""

import errno
import logging
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from dist_bert.common.files import Appender
from dist_bert.common.redaction import redacted
from dist_bert.distributed import rank_log

# Loggers whose warnings are for the user. DeepSpeed's has a handler of its own, which prints a
# time, a level and a place of its code before every message.
_LOGGERS = ("DeepSpeed", "dist_bert")
_TOLD_OTHERWISE = ("Setting accelerator to CPU",)  # the first line of a run names the device
_MAX_KINDS = 200  # of warnings that a rank writes; so its file grows by some MB a start at most
_MAX_LENGTH = 1_000  # characters of a warning
_MAX_SHOWN = 8  # warnings of other ranks at a time; the rest is in their files


class Console:
    """The voice of one rank."""

    def __init__(self) -> None:
        """Begins without a bar and without a log file."""
        self._rank = int(os.environ.get("RANK", "0"))
        self._bar: Any = None
        self._log: Appender | None = None
        self._early: list[str] = []  # what was said before there was a log file
        self._counts: dict[str, int] = {}  # how often this rank has warned so
        self._unshared: list[str] = []  # of another rank than 0: what it has not heard yet
        self._heard: set[str] = set()  # warnings of other ranks that rank 0 has shown
        self._lock = threading.RLock()  # the threads that read ahead warn while the loop speaks

    def take_over_warnings(self) -> None:
        """Shows the warnings of Python and of DeepSpeed as lines like all others."""
        warnings.showwarning = self._show_warning
        for name in _LOGGERS:
            # A filter and no handler: DeepSpeed adds its own, later, when it is imported.
            logging.getLogger(name).addFilter(self._take_record)

    def open_log(self, path: Path) -> None:
        """Appends to a file from now on, beginning with what was said so far; on rank 0."""
        with self._lock:
            self._log = Appender(path)
            self._log.write("".join(self._early).encode())
            self._log.flush()  # what a full disk does not take yet comes with a later line
            self._early = []

    def start_bar(self, num_steps: int, step: int) -> None:
        """Draws the progress bar, where rank 0 writes to a terminal."""
        if self._rank == 0 and sys.stdout.isatty():
            from tqdm import tqdm

            form = "step {n:,}/{total:,} {percentage:.0f}%|{bar:10}|{postfix}"
            self._bar = tqdm(
                total=num_steps,
                initial=step,
                bar_format=form,
                file=sys.stdout,
                dynamic_ncols=True,
                leave=False,
            )

    def say(self, text: str) -> None:
        """One line, of rank 0 alone."""
        if self._rank == 0:
            text = redacted(text)
            with self._lock:
                self._keep(text)
                self._print(text, sys.stdout)

    def warn(self, text: str) -> None:
        """A warning in one line; the same again only at the 10th, 100th, 1,000th ... time."""
        text = " ".join(redacted(text).split())[:_MAX_LENGTH]
        if len(self._counts) >= _MAX_KINDS and text not in self._counts:
            text = f"more than {_MAX_KINDS} different warnings; the others are counted here"
        count = self._counts[text] = self._counts.get(text, 0) + 1
        if str(count).strip("0") != "1":
            return
        line = f"warning: {text}" + (f" ({count:,} times)" if count > 1 else "")
        rank_log.keep(line)
        if self._rank == 0:
            self.say(line)
        elif count == 1:
            self._unshared.append(line)

    @property
    def num_unshared(self) -> int:
        """How many warnings of this rank rank 0 has not heard of."""
        return len(self._unshared)

    def take_unshared(self) -> list[str]:
        """These warnings, which then count as heard."""
        taken, self._unshared = self._unshared, []
        return taken

    def hear(self, warnings_of_ranks: Sequence[Sequence[str]]) -> None:
        """Shows what other ranks have warned of, each text once; nothing that was shown before.

        Args:
            warnings_of_ranks: rank -> what it had not shared; on rank 0.
        """
        ranks: dict[str, list[int]] = {}
        for rank, lines in enumerate(warnings_of_ranks):
            for line in lines:
                if line.removeprefix("warning: ") not in self._counts and line not in self._heard:
                    ranks.setdefault(line, []).append(rank)
        for line, those in list(ranks.items())[:_MAX_SHOWN]:
            others = f" and {len(those) - 1:,} more" if len(those) > 1 else ""
            self.say(f"rank {those[0]}{others}: {line}")
            self._heard.add(line)
        if len(ranks) > _MAX_SHOWN:
            self.say(f"warning: {len(ranks) - _MAX_SHOWN:,} more of other ranks, see their logs")

    def note(self, text: str) -> None:
        """A line for the log file alone: what ends a process is shown by what ends it."""
        if self._rank == 0:
            self._keep(redacted(text))

    def note_mistake(self, error: Exception) -> None:
        """A user's mistake, which all ranks meet together, for the log files alone."""
        self.note(f"error: {error}")
        rank_log.keep(f"error: {error}")

    def advance(self) -> None:
        """One step more on the bar."""
        if self._bar is not None:
            try:
                self._bar.update()
            except OSError as error:
                self._survive(error)

    def tell_progress(self, place: str, figures: str) -> None:
        """The figures of a log interval: after the bar, or as a line that begins with the place.

        Args:
            place: such as "step 7/14"; the bar shows it by itself.
            figures: the rest of the line.
        """
        if self._bar is None:
            self.say(f"{place}  {figures}")
        else:
            self.note(f"{place}  {figures}")
            try:
                self._bar.set_postfix_str(figures)
            except OSError as error:
                self._survive(error)

    def close(self) -> None:
        """Takes the bar away and ends the file, so that what follows has its own line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        with self._lock:
            if self._log is not None:
                self._log.close()
                self._log = None

    def _print(self, text: str, stream: TextIO) -> None:
        try:
            if self._bar is None:
                print(text, file=stream, flush=True)
            else:
                self._bar.write(text, file=stream)
                stream.flush()
        except OSError as error:
            self._survive(error)

    def _keep(self, text: str) -> None:
        line = f"{rank_log.now()} {text}\n"
        with self._lock:
            if self._log is None:
                self._early.append(line)
            else:
                self._log.write(line.encode(errors="backslashreplace"))
                self._log.flush()

    def _survive(self, error: OSError) -> None:
        """What cannot be printed is in RUN/log.txt; without terminal or reader, no more is printed.

        A full disk, to which the output may go, leaves lines out as long as it is full.
        """
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            self._bar = None
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """In the place of Python's own, which prints two lines and the path of the code."""
        self.warn(f"{message} ({category.__name__} of {Path(filename).name}, line {lineno})")

    def _take_record(self, record: logging.LogRecord) -> bool:
        """Shows a logger's message unless it is information; False keeps others from printing."""
        text = record.getMessage()
        if record.levelno >= logging.WARNING and not text.startswith(_TOLD_OTHERWISE):
            self.warn(text)
        return False
