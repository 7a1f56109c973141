"""Version of the running code: commit and changes of a git checkout, hash of the sources."""

import subprocess
from pathlib import Path

from dist_bert.common import files

ROOT = Path(__file__).parents[2]
_MAX_DIFF = 50_000  # characters; more slows down TensorBoard's page
_GIT_SECONDS = 10.0  # if the file system hangs, a run starts without its commit


def code_fingerprint() -> str:
    """The first digits of a hash over this package's sources; changes with any of its files."""
    package = Path(__file__).parents[1]
    sources = sorted(package.rglob("*.py"))
    hashes = {str(p.relative_to(package)): files.sha256_of_file(p) for p in sources}
    return files.fingerprint(hashes)[:12]


def commit_of(root: Path) -> str | None:
    """The commit of a git checkout; None if `root` is not one, or git is missing or fails."""
    try:
        return _commit(root)
    except (OSError, subprocess.SubprocessError):
        return None


def code_version(root: Path) -> tuple[str | None, str]:
    """The commit of a git checkout, and its uncommitted changes: status and diff.

    Args:
        root: top folder of the checkout.

    Returns:
        None and "" if `root` is not one, or git is missing or fails.
    """
    try:
        commit = _commit(root)
        if commit is None:
            return None, ""
        changes = _git(root, "status", "--short") + _git(root, "diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None, ""
    if len(changes) > _MAX_DIFF:
        changes = f"{changes[:_MAX_DIFF]}\n... and {len(changes) - _MAX_DIFF:,} characters more\n"
    return commit, changes


def _commit(root: Path) -> str | None:
    if _git(root, "rev-parse", "--show-toplevel").strip() != str(root.resolve()):
        return None  # a package installed inside another checkout
    return _git(root, "rev-parse", "HEAD").strip()


def _git(root: Path, *arguments: str) -> str:
    ended = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(root), *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=True,
        timeout=_GIT_SECONDS,
    )
    return ended.stdout
