"""TensorBoard's files, written by rank 0: one for each start of a run.

`SummaryWriter` writes in a thread that a full disk ends for good, with a traceback, and names its
files by the clock, in whose order TensorBoard reads them: after a clock that went back it would
show the points of a start that was given up. Here records wait until there is room, and files are
in the order of the starts.
"""

import os
import platform
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard import summary

from dist_bert.common.files import Appender

_PREFIX = "events.out.tfevents."  # TensorBoard knows its files by that


class Board:
    """Curves and texts, x = optimizer step."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Begins a file, which is written at the first flush.

        Args:
            folder: of the files of all starts; is made where it is missing.
            first_step: from which on TensorBoard shall forget what earlier starts have written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.file = Appender(folder / _next_name(folder))
        self._records = RecordWriter(self.file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, step: int, name: str, value: float) -> None:
        """A point of a curve."""
        self._write(Event(step=step, summary=summary.scalar(name, value)))

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text for the text page."""
        self._write(Event(step=step, summary=summary.text(name, markdown)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _next_name(folder: Path) -> str:
    """A name that comes after those of all earlier starts; by the clock, if that went on."""
    numbers = [path.name.removeprefix(_PREFIX).split(".")[0] for path in folder.glob(f"{_PREFIX}*")]
    latest = max((int(number) for number in numbers if number.isdecimal()), default=0)
    number = max(int(time.time()), latest + 1)
    return f"{_PREFIX}{number:010d}.{platform.node()}.{os.getpid()}.0"
