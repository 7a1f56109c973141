"""The runbook quotes what the programs say: a message that changes must change there, too."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs/runbook.md"
OURS = "the line says"  # head of the first column of a table of our own messages
# What stands for what changes: one letter for numbers, an ellipsis for anything.
PLACEHOLDER = re.compile(r"\.\.\.|\b[NMK]\b")
CHANGING = "\0"  # where a text of the sources has a value


def literals() -> Iterator[str]:
    """All texts of the sources, as one where they are joined, with marks for values in them.

    Scripts of a shell are one text each.
    """
    for package in ("dist_bert", "data_prep", "launch"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else CHANGING
                        for part in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
    for path in (ROOT / "launch/slurm").iterdir():
        yield path.read_text(encoding="utf-8")


def quoted(markdown: str) -> Iterator[str]:
    """What the first column of our tables has between backticks."""
    is_ours = False
    for line in markdown.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            is_ours = False
        elif not is_ours:
            is_ours = cells[0] == OURS
        else:
            yield from re.findall(r"`([^`]+)`", cells[0])


def parts(fragment: str) -> list[str]:
    """The words of a quotation that do not change."""
    return [part.strip() for part in PLACEHOLDER.split(fragment) if part.strip(" ,;:()")]


def missing(fragment: str, sources: str) -> list[str]:
    return [part for part in parts(fragment) if part not in sources]


def test_every_message_that_is_called_ours_is_in_the_sources() -> None:
    sources = "\n".join(literals())
    fragments = list(quoted(RUNBOOK.read_text(encoding="utf-8")))
    assert len(fragments) > 80
    assert {fragment: m for fragment in fragments if (m := missing(fragment, sources))} == {}


def test_a_message_that_has_changed_is_noticed() -> None:
    table = "| the line says |\n|---|\n| `has N bytes, the manifest says M`, `gone for ever` |\n"
    assert list(quoted(table)) == ["has N bytes, the manifest says M", "gone for ever"]
    assert list(quoted(table.replace("the line says", "others say"))) == []
    sources = "\n".join(literals())
    assert missing("has N bytes, the manifest says M", sources) == []
    assert missing("gone for ever", sources) == ["gone for ever"]
    assert missing("has N octets, the manifest says M", sources) == ["octets, the manifest says"]
