"""Preview: shows how each layout of a corpus is read, and no more than asked for."""

import json
from pathlib import Path

import pytest

from data_prep import preview as module
from data_prep.inputs import find_inputs
from data_prep.prepare_config import TextConfig
from data_prep.preview import preview, show_preview
from dist_bert.common.errors import UserError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two text files, then JSON lines: one empty, one of another language, one bad."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name} one. Two is here. Three! Four? Five.\n")
    rows = [{"text": "", "lang": "en"}, {"text": "nein", "lang": "de"}, {"no": "text"}]
    rows += [{"text": f"Number {n}.\u001b[31m It is red. 中文", "lang": "en"} for n in range(9)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def previewed(corpus: Path, count: int, **settings: str) -> list[str]:
    return list(preview(find_inputs([f"{corpus}/*"]), TextConfig(**settings), 0.5, count))  # type: ignore[arg-type]


def test_documents_of_each_layout_come_in_turn(corpus: Path) -> None:
    shown = previewed(corpus, 5)
    names = [Path(line.split(" (")[0]).name for line in shown if line.startswith(str(corpus))]
    assert names == ["a.txt", "c.jsonl", "b.txt", "c.jsonl", "c.jsonl"]
    assert shown[:7] == [
        f"{corpus}/a.txt (text)",
        "  39 characters, 5 sentences (median 6, longest 12 characters)",
        "  | a one.",
        "  | Two is here.",
        "  | Three!",
        "  | ... and 2 more",
        "",
    ]
    assert "  | nein" in shown
    assert "\x1b" not in "".join(shown), "a terminal would obey it"


def test_the_end_counts_what_was_looked_at(corpus: Path) -> None:
    assert previewed(corpus, 3, languages="en")[-3:] == [
        "layouts of 3 of 3 files: 2 text, 1 jsonl",
        "left out so far: 1 empty, 3 other_language",
        f"bad records so far: 1 no_text ({corpus}/c.jsonl: line 3: has no text under text or"
        " content; name its field with --text_field (no))",
    ]
    assert previewed(corpus, 1)[-2:] == ["left out so far: none", "bad records so far: none"]


def test_lengths_of_sentences_are_shown_and_warned_of(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One is here. " * 3 + "\n\n" + "word " * 400)
    (tmp_path / "b.txt").write_text("One is here. Two are there. ")
    shown = previewed(tmp_path, 9)
    assert "  2,041 characters, 5 sentences (median 12, longest 999 characters)" in shown
    assert (
        "of these: 7 sentences (median 12, longest 999 characters), 97% of the text in sentences of"
        " more than 400" in shown
    )
    assert [line[:40] for line in shown if line.startswith("warning")] == [
        "warning: few sentence ends are found, so"
    ]
    (tmp_path / "c.txt").write_text("Only one.")
    (tmp_path / "a.txt").write_text("Only one\0, too.")
    (tmp_path / "d.txt").write_text("\ufeff \0 \u200b\n")
    shown = previewed(tmp_path, 9)
    assert [line[:46] for line in shown if line.startswith("warning")] == [
        "warning: 67% of the documents are a single sen"
    ]
    assert shown[-3:] == [
        "left out so far: 1 empty",
        "characters removed so far: 2 nul, 1 zero_width",
        "bad records so far: none",
    ]
    assert not any("of these" in line for line in previewed(tmp_path, 0))


def test_a_given_layout_is_taken(corpus: Path) -> None:
    shown = previewed(corpus, 99, format="text")
    assert shown[0].endswith("a.txt (text)")
    assert sum(line.endswith("(text)") for line in shown) == 3
    assert shown[-3] == "layouts of 3 of 3 files: 3 text"


def test_only_the_first_files_are_opened(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_FILES", 2)
    (corpus / "c.jsonl").chmod(0)
    (corpus / "d.gz").write_bytes(b"\x1f\x8bno")
    assert previewed(corpus, 9)[-3] == "layouts of 2 of 4 files: 2 text"


def test_long_sentences_are_cut_to_the_width(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 96 + "\n\n" + "y" * 97 + "\n\n" + "中" * 49)
    assert previewed(tmp_path, 1)[2:5] == [
        "  | " + "x" * 96,
        "  | " + "y" * 96 + " ...",
        "  | " + "中" * 48 + " ...",
    ]


def test_bad_files_are_errors_as_later(corpus: Path) -> None:
    inputs = find_inputs([f"{corpus}/*"])
    with pytest.raises(UserError, match=r"c\.jsonl: line 3: has no text"):
        list(preview(inputs, TextConfig(), 0.0, 99))


def test_it_is_printed(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_preview([f"{corpus}/*.txt"], TextConfig(), 0.0, 2)
    printed = capsys.readouterr().out.split("\n")
    assert printed[0].endswith("a.txt (text)")
    assert "layouts of 2 of 2 files: 2 text" in printed
    show_preview([], TextConfig(), 0.0, 1)
    assert "(python_docs)" in capsys.readouterr().out
