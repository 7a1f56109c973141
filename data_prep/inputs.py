"""Which files a preparation reads. Not for: reading them (`data_prep.readers`)."""

import dataclasses
import glob
import os
import sysconfig
from collections.abc import Iterable, Sequence

from dist_bert.errors import UserError

_SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests"})


@dataclasses.dataclass(frozen=True, order=True)
class InputPart:
    """A file of the corpus, or a part of it between two documents."""

    path: str
    start: int  # bytes of the file before the part, as it lies on disk
    bytes: int  # of the part
    modified_ns: int  # time of the file's last change: tells a changed file without reading it


def resolve_inputs(patterns: Sequence[str], layout: str) -> tuple[list[InputPart], str]:
    """The files to read and their layout; without patterns, the modules of the installed packages.

    Raises:
        UserError: a pattern matches no file.
    """
    if patterns:
        return find_inputs(patterns), layout
    print("no --input given: reads the documentation of the installed Python packages", flush=True)
    return installed_packages(), "python_docs"


def find_inputs(patterns: Iterable[str]) -> list[InputPart]:
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
    return [whole_file(p) for p in sorted(paths)]


def installed_packages() -> list[InputPart]:
    """Modules of the standard library and of the installed packages, without their tests."""
    folders = sysconfig.get_paths()
    roots = {os.path.realpath(folders[name]) for name in ("stdlib", "purelib", "platlib")}
    paths: set[str] = set()
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = [s for s in subfolders if s not in _SKIPPED_FOLDERS]
            paths.update(os.path.join(folder, n) for n in names if n.endswith(".py"))
    return [whole_file(p) for p in sorted(paths)]


def whole_file(path: str) -> InputPart:
    """A file as one part."""
    status = os.stat(path)
    return InputPart(path, 0, status.st_size, status.st_mtime_ns)
