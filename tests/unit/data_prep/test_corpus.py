"""The stream of documents: what shows nothing is taken out and counted."""

from pathlib import Path

import pytest

from data_prep.corpus import read_sentences
from data_prep.inputs import whole_file
from data_prep.prepare_config import TextConfig
from data_prep.readers.source import RecordTally


def read(path: Path, layout: str = "text") -> tuple[list[tuple[str, list[str]]], RecordTally]:
    part, tally = whole_file(str(path)), RecordTally(str(path), 0.0)
    return list(read_sentences(part, TextConfig(format=layout), tally)), tally


@pytest.mark.parametrize(
    ("text", "expected", "removed"),
    [
        ("One\0.\n\n\0\0Two\0.", ["One.", "Two."], {"nul": 4}),
        ("One.\n\n\u200b\n\nTwo. \ufeff Three.", ["One.", "Two.", "Three."], {"zero_width": 2}),
        ("می\u200cخواهم. क्\u200dष ක්\u200d රි", ["می\u200cخواهم.", "क्\u200dष ක්\u200d රි"], {}),
        ("One.\u200b Two.", ["One.\u200b Two."], {}),  # behind a word: it is the tokenizer's
    ],
)  # fmt: skip
def test_what_shows_nothing_is_taken_out(
    tmp_path: Path, text: str, expected: list[str], removed: dict[str, int]
) -> None:
    (tmp_path / "a.txt").write_text(text)
    [(_, sentences)], tally = read(tmp_path / "a.txt")
    assert sentences == expected
    assert tally.removed == removed


@pytest.mark.parametrize("layout", ["lines", "blank_line"])
def test_blank_documents_are_dropped_and_counted(tmp_path: Path, layout: str) -> None:
    (tmp_path / "a.txt").write_text("One.\n\n\u200b\n\n\u3000\xa0\n\n\0\0\n\nTwo.\n")
    documents, tally = read(tmp_path / "a.txt", layout)
    assert [sentences for _, sentences in documents] == [["One."], ["Two."]]
    assert tally.drops == {"empty": 1}  # blank lines alone are no document
    assert tally.removed == {"zero_width": 1}
    assert tally.mended == {"padding": 1}


def test_long_lines_are_cut_in_every_layout(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 900)
    for layout in ("text", "lines", "sentences", "blank_line"):
        [(_, sentences)], _ = read(tmp_path / "a.txt", layout)
        assert len(sentences) == 5 and max(map(len, sentences)) <= 1_000
