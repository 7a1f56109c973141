"""Names of modules and files in code and docs: each is there."""

import importlib
import re
from pathlib import Path

import pytest

from tests.support.processes import ROOT

DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "Makefile",
    ROOT / "setup.py",
]
SOURCES = [
    path
    for folder in ("dist_bert", "data_prep", "launch", "tests", "configs")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".sh", ".sbatch", ".def", ".json"}
]
DOTTED = re.compile(r"`((?:dist_bert|data_prep|tests)(?:\.\w+)+)`")
FILES = re.compile(
    r"(?<![\w/.-])((?:dist_bert|data_prep|launch|configs|docs|tests)(?:/[\w.-]+)+\.(?:py|md|json|sh))"
)

MADE_UP = {"configs/none.json", "dist_bert/configs/model/bert_base.json"}  # of tests


def is_there(dotted: str) -> bool:
    """Whether a dotted name is that of a module, or of what is in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


@pytest.mark.parametrize("path", [*DOCUMENTS, *SOURCES], ids=lambda p: str(p.relative_to(ROOT)))
def test_names_and_files_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    gone = {name for name in DOTTED.findall(text) if not is_there(name)}
    gone |= {file for file in FILES.findall(text) if not (ROOT / file).exists()} - MADE_UP
    assert not gone


def test_a_name_that_is_gone_is_seen() -> None:
    assert is_there("dist_bert.model.config.ModelConfig") and is_there("dist_bert.data")
    assert not is_there("dist_bert.model.config.Model") and not is_there("dist_bert.model.none")
