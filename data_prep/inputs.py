"""Selects the files that a preparation reads. Not for: reading them (`data_prep.readers`)."""

import dataclasses
import glob
import os
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

from dist_bert.common.errors import UserError

_SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests"})


@dataclasses.dataclass(frozen=True, order=True)
class InputPart:
    """A file of the corpus, or a part of it between two documents."""

    path: str
    start: int  # offset of the part in the file on disk, in bytes
    bytes: int  # of the part
    modified_ns: int  # time of the file's last change: detects a changed file without reading it


def resolve_inputs(
    patterns: Sequence[str], layout: str, written: Iterable[Path] = ()
) -> tuple[list[InputPart], str]:
    """The files to read and their layout; without patterns, modules of the installed packages.

    Args:
        patterns: as for `find_inputs`.
        layout: as requested.
        written: as for `find_inputs`.

    Raises:
        UserError: a pattern matches no file.
    """
    if patterns:
        return find_inputs(patterns, written), layout
    print(
        "no --input given: reading the documentation of the installed Python packages", flush=True
    )
    return installed_packages(), "python_docs"


def find_inputs(patterns: Iterable[str], written: Iterable[Path] = ()) -> list[InputPart]:
    """All files that match, once each even if it has several paths, sorted by path.

    Args:
        patterns: paths of files, or glob patterns (`**` for any depth). If a file of exactly this
            name exists, it is a path.
        written: files and folders that are not input even if a pattern matches them: those that
            the preparation itself reads and writes.

    Raises:
        UserError: a pattern matches no file, or is a URL; lists all such patterns. Or a name is not
            UTF-8.
    """
    own = {os.path.realpath(path) for path in written}
    paths: set[str] = set()
    empty = []
    num_own = 0
    for pattern in patterns:
        matches = [pattern] if os.path.isfile(pattern) else glob.iglob(pattern, recursive=True)
        found = [path for path in matches if os.path.isfile(path)]
        others = [path for path in found if not _is_within(path, own)]
        paths.update(others)
        num_own += len(found) - len(others)
        if not others:
            empty.append(pattern + _hint(pattern, bool(found)))
    if empty:
        raise UserError(f"--input {' '.join(empty)}: no file matches")
    _check_names(paths)
    if num_own:
        print(f"left out {num_own:,} files that this preparation wrote or uses", flush=True)
    by_file: dict[str, str] = {}  # a file may have other names: by links, or with "./"
    for path in sorted(paths):
        by_file.setdefault(os.path.realpath(path), path)
    if num_others := len(paths) - len(by_file):
        print(f"left out {num_others:,} other names of the same files", flush=True)
    return [whole_file(path) for path in by_file.values()]


def _is_within(path: str, places: set[str]) -> bool:
    """Whether a path is one of some places, or inside one."""
    path = os.path.realpath(path)
    while places:
        if path in places:
            return True
        parent = os.path.dirname(path)
        if parent == path:
            break
        path = parent
    return False


def _hint(pattern: str, has_own: bool) -> str:
    if "://" in pattern:
        return " (a URL: fetch the files first, and give their paths)"
    if has_own:
        return " (other than what this preparation wrote or uses)"
    if os.path.isdir(pattern):
        return f" (a folder: give {os.path.join(pattern, '**')!r})"
    return ""


def _check_names(paths: Iterable[str]) -> None:
    """Raises an error for a name that the manifest (JSON in UTF-8) cannot hold."""
    for path in sorted(paths):
        try:
            path.encode()
        except UnicodeEncodeError:
            name = os.fsencode(path).decode(errors="backslashreplace")
            raise UserError(
                f"--input {name}: the name of this file is not UTF-8; rename the file"
            ) from None


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


def check_unchanged(parts: Iterable[InputPart]) -> None:
    """Checks that files are as they were listed: of one that grows, a document may be cut off.

    Raises:
        UserError: one has changed.
    """
    for part in parts:
        if os.stat(part.path).st_mtime_ns != part.modified_ns:
            raise UserError(
                f"{part.path}: has changed while this preparation was running; start it again when"
                " nothing writes to the file"
            )
