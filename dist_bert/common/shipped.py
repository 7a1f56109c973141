"""The scripts and configurations that come with the package: launch/ and configs/ of the checkout.

A wheel has them inside of the package (see setup.py). Not for: running the scripts
(`dist_bert.__main__`).
"""

from pathlib import Path


def shipped(name: str) -> Path:
    """Where `launch` or `configs` lies; in a wheel beside this file, in a checkout above it."""
    package = Path(__file__).parents[1]
    return next(path for path in (package / name, package.parent / name) if path.is_dir())


def found(path: str | Path) -> Path:
    """A path as given; configs/... of the package where the current folder has no such file."""
    path = Path(path)
    if not path.exists() and path.parts[:1] == ("configs",):
        own = shipped("configs").joinpath(*path.parts[1:])
        return own if own.exists() else path
    return path
