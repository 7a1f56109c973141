"""Figures of a benchmark: where they were taken, and how they are printed."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

_PACKAGES = ("numpy", "sentencepiece", "webdataset", "torch", "deepspeed")
_CPU_INFO = Path("/proc/cpuinfo")  # of Linux; other systems name the processor themselves


def machine() -> dict[str, str | int]:
    """Processor, number of cores that this process may use, and versions."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def cpu_model() -> str:
    """The processor's name."""
    text = _CPU_INFO.read_text() if _CPU_INFO.exists() else ""
    name = named_in(text, "model name")
    if not name and text:  # on Arm: lscpu knows what the numbers of /proc/cpuinfo stand for
        with contextlib.suppress(OSError):  # not installed
            name = named_in(_output_of("lscpu"), "Model name")
    return name or arm_numbers(text) or platform.processor() or platform.machine()


def named_in(text: str, field: str) -> str:
    """All values of a field `NAME : VALUE`, each once: a processor may have cores of two kinds."""
    lines = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = (value.strip() for name, value in lines if name.strip() == field)
    return " and ".join(dict.fromkeys(value for value in values if value not in ("", "-")))


def arm_numbers(cpuinfo: str) -> str:
    """What /proc/cpuinfo of Arm has in place of a name, such as "Arm 0x41/0xd0c"; else empty."""
    numbers = [named_in(cpuinfo, f"CPU {name}") for name in ("implementer", "part")]
    return f"Arm {'/'.join(numbers)}" if all(numbers) else ""


def _output_of(command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}  # no translated names of fields
    ended = subprocess.run([command], env=environment, capture_output=True, text=True, check=False)
    return ended.stdout


def table(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """A table of figures as text; a row need not have all columns.

    Args:
        title: stands above the names of the rows.
        rows: name -> column -> figure; underscores are shown as spaces.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[_words(title), *map(_words, columns)]]
    for name, row in rows.items():
        cells.append([_words(name), *(number(row[c]) if c in row else "" for c in columns)])
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as lines of text: the first column to the left, the others to the right.

    As a terminal shows them, where a Chinese character takes two columns.
    """
    widths = [max(map(display_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - display_width(cell))
            padded.append(padding + cell if index else cell + padding)
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def display_width(text: str) -> int:
    """Columns that a terminal shows a text in."""
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me", "Cf")  # accents, joiners
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def number(value: float) -> str:
    """A figure with three digits or more: 1,234,567, 123, 12.3, 1.23, 0.123."""
    size = abs(value)
    digits = 0 if size >= 100 or isinstance(value, int) else 1 if size >= 10 else 2
    return f"{value:,.{digits if size >= 1 or isinstance(value, int) else 3}f}"


def _words(name: str) -> str:
    return name.replace("_", " ")
