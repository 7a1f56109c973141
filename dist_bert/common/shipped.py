"""Locates the scripts and configurations of the package: launch/ and configs/ of the checkout.

A wheel has them inside the package (see setup.py). Not for: running the scripts
(`dist_bert.__main__`).
"""

from pathlib import Path


def shipped(name: str) -> Path:
    """Folder of `launch` or `configs`: in a wheel inside the package, in a checkout above it."""
    package = Path(__file__).parents[1]
    return next(path for path in (package / name, package.parent / name) if path.is_dir())


def found(path: str | Path) -> Path:
    """The path as given; the package's own configs/... if the current folder has no such file."""
    path = Path(path)
    if not path.exists() and path.parts[:1] == ("configs",):
        own = shipped("configs").joinpath(*path.parts[1:])
        return own if own.exists() else path
    return path
