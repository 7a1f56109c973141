"""Which files a preparation reads, and the units of work they form. Not for: reading them."""

import dataclasses
import glob
import os
import sysconfig
from collections.abc import Iterable, Sequence

from dist_bert.errors import UserError

_MIN_UNIT_BYTES, _MAX_UNIT_BYTES = 256 << 10, 4 << 20  # small files are gathered to about this size
_EVEN_UNITS = 32  # aimed at in a small corpus, so that the ranks finish together
_MAX_UNITS = 8_192  # a rank maps four files per unit, and Linux lets a process map 65,530

_SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests"})


@dataclasses.dataclass(frozen=True, order=True)
class InputFile:
    """A file of the corpus."""

    path: str
    bytes: int
    modified_ns: int  # time of its last change: tells a changed file without reading it


def resolve_inputs(patterns: Sequence[str], layout: str) -> tuple[list[InputFile], str]:
    """The files to read and their layout; without patterns, the modules of the installed packages.

    Raises:
        UserError: a pattern matches no file.
    """
    if patterns:
        return find_inputs(patterns), layout
    print("no --input given: reads the documentation of the installed Python packages", flush=True)
    return installed_packages(), "python_docs"


def find_inputs(patterns: Iterable[str]) -> list[InputFile]:
    """All files that match, once each, sorted by path.

    Args:
        patterns: glob patterns (`**` for any depth) or paths of files.

    Raises:
        UserError: a pattern matches no file; lists all such patterns.
    """
    paths: set[str] = set()
    empty = []
    for pattern in patterns:
        found = [p for p in glob.iglob(pattern, recursive=True) if os.path.isfile(p)]
        paths.update(found)
        if not found:
            hint = (
                f" (a folder: give {os.path.join(pattern, '**')!r})"
                if os.path.isdir(pattern)
                else ""
            )
            empty.append(pattern + hint)
    if empty:
        raise UserError(f"--input {' '.join(empty)}: no file matches")
    return [_input_file(p) for p in sorted(paths)]


def installed_packages() -> list[InputFile]:
    """Modules of the standard library and of the installed packages, without their tests."""
    folders = sysconfig.get_paths()
    roots = {os.path.realpath(folders[name]) for name in ("stdlib", "purelib", "platlib")}
    paths: set[str] = set()
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = [s for s in subfolders if s not in _SKIPPED_FOLDERS]
            paths.update(os.path.join(folder, n) for n in names if n.endswith(".py"))
    return [_input_file(p) for p in sorted(paths)]


def plan_units(inputs: Sequence[InputFile]) -> list[list[InputFile]]:
    """Cuts the inputs, in their order, into units of one large file or several small ones."""
    num_bytes = sum(file.bytes for file in inputs)
    unit_bytes = min(max(num_bytes // _EVEN_UNITS, _MIN_UNIT_BYTES), _MAX_UNIT_BYTES)
    unit_bytes = max(unit_bytes, num_bytes // _MAX_UNITS)
    units: list[list[InputFile]] = []
    room = 0
    for file in inputs:
        if not units or file.bytes > room:
            units.append([])
            room = unit_bytes
        units[-1].append(file)
        room -= file.bytes
    return units


def _input_file(path: str) -> InputFile:
    status = os.stat(path)
    return InputFile(path, status.st_size, status.st_mtime_ns)
