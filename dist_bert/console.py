"""What a run says: a progress bar on a terminal, plain lines elsewhere, all of it in RUN/log.txt.

Rank 0 alone speaks; of the others only warnings are shown, with their rank. Not for: the errors
that end a process (`dist_bert.cli`, `dist_bert.interrupts`).
"""

import datetime
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import IO, Any, TextIO

# Loggers whose warnings are for the user. DeepSpeed's has a handler of its own, which prints a
# time, a level and a place of its code before every message.
_LOGGERS = ("DeepSpeed", "dist_bert")
_TOLD_OTHERWISE = ("Setting accelerator to CPU",)  # the first line of a run names the device


class Console:
    """The voice of one rank."""

    def __init__(self) -> None:
        """Begins without a bar and without a log file."""
        self._rank = int(os.environ.get("RANK", "0"))
        self._bar: Any = None
        self._log: IO[str] | None = None
        self._early: list[str] = []  # what was said before there was a log file

    def take_over_warnings(self) -> None:
        """Shows the warnings of Python and of DeepSpeed as lines like all others."""
        warnings.showwarning = self._show_warning
        for name in _LOGGERS:
            # A filter and no handler: DeepSpeed adds its own, later, when it is imported.
            logging.getLogger(name).addFilter(self._take_record)

    def open_log(self, path: Path) -> None:
        """Appends to a file from now on, beginning with what was said so far; on rank 0."""
        self._log = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - until `close`
        self._log.writelines(self._early)
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
            self._keep(text)
            self._print(text, sys.stdout)

    def warn(self, text: str) -> None:
        """A warning in one line, with the rank where it is not rank 0's."""
        text = f"warning: {' '.join(text.split())}"
        if self._rank == 0:
            self.say(text)
        else:
            self._print(f"rank {self._rank}: {text}", sys.stderr)

    def note(self, text: str) -> None:
        """A line for the log file alone: what ends a process is shown by what ends it."""
        if self._rank == 0:
            self._keep(text)

    def advance(self) -> None:
        """One step more on the bar."""
        if self._bar is not None:
            self._bar.update()

    def tell_progress(self, place: str, figures: str) -> None:
        """The figures of a log interval: behind the bar, or as a line that begins with the place.

        Args:
            place: such as "step 7/14"; the bar shows it by itself.
            figures: the rest of the line.
        """
        if self._bar is None:
            self.say(f"{place}  {figures}")
        else:
            self._bar.set_postfix_str(figures)
            self.note(f"{place}  {figures}")

    def close(self) -> None:
        """Takes the bar away and ends the file, so that what follows has its own line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _print(self, text: str, stream: TextIO) -> None:
        if self._bar is None:
            print(text, file=stream, flush=True)
        else:
            self._bar.write(text, file=stream)
            stream.flush()

    def _keep(self, text: str) -> None:
        time = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if self._log is None:
            self._early.append(f"{time} {text}\n")
        else:
            self._log.write(f"{time} {text}\n")

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
