"""Releases of DeepSpeed that train wrongly and say nothing; refused before anything is imported.

setup.py excludes them, but pip can override that, and conda or a site's module does not read
it. Not for: releases that merely were not tested (the ranges of setup.py).
"""

import importlib.metadata
import re

from dist_bert.common.errors import UserError

# DeepSpeed issue 7718: from 0.17.6 on, at ZeRO-2, gradients of earlier micro-steps are dropped;
# mended in 0.18.3.
_FIRST_WRONG, _LAST_WRONG = (0, 17, 6), (0, 18, 2)
REMEDY = "pip install -c constraints.txt -e . in the repository, with this python"


def fault_of(version: str) -> str:
    """What a release of DeepSpeed does wrong; empty if nothing that is known.

    Args:
        version: such as "0.18.2" or "0.18.2+cu128".
    """
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers and _FIRST_WRONG <= tuple(map(int, numbers.groups())) <= _LAST_WRONG:
        return (
            "computes wrong gradients at ZeRO-2 (DeepSpeed issue 7718, releases 0.17.6 to 0.18.2)"
        )
    return ""


def require_sound_release() -> None:
    """Refuses to train with a release that is known to do it wrongly.

    Raises:
        UserError: the installed one is.
    """
    try:
        version = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:  # importing it reports that
        return
    if fault := fault_of(version):
        raise UserError(f"deepspeed {version} {fault}: {REMEDY}")
