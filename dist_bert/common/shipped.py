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
    """The path as given; if there is no such file, the package's own launch/... or configs/..."""
    path = Path(path)
    if not path.exists() and path.parts and path.parts[0] in ("launch", "configs"):
        own = shipped(path.parts[0]).joinpath(*path.parts[1:])
        return own if own.exists() else path
    return path
