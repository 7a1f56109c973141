"""Which code runs: commit and changes of a git checkout, and a fingerprint of the sources."""

import subprocess
from pathlib import Path

from dist_bert.common import files

ROOT = Path(__file__).parents[2]
_MAX_DIFF = 50_000  # characters; TensorBoard's page gets slow with more
_GIT_SECONDS = 10.0  # on a file system that hangs, a run starts without its commit


def code_fingerprint() -> str:
    """The first digits of a hash over this package's sources: tells changed files, too."""
    package = Path(__file__).parents[1]
    sources = sorted(package.rglob("*.py"))
    hashes = {str(p.relative_to(package)): files.sha256_of_file(p) for p in sources}
    return files.fingerprint(hashes)[:12]


def commit_of(root: Path) -> str | None:
    """The commit of a git checkout; None where `root` is none, or git is missing or fails."""
    try:
        return _commit(root)
    except (OSError, subprocess.SubprocessError):
        return None


def code_version(root: Path) -> tuple[str | None, str]:
    """The commit of a git checkout, and what is not committed: its status and its diff.

    Args:
        root: top folder of the checkout.

    Returns:
        None and "" where `root` is none, or git is missing or fails.
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
        return None  # a package installed below somebody else's checkout
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
