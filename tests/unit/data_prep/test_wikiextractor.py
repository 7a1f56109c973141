"""WikiExtractor's files: every dialect's documents come apart, and no tag becomes text."""

import gzip
from pathlib import Path

import pytest

from data_prep.inputs import InputPart, whole_file
from data_prep.readers import detect_layout, read_documents, wikiextractor
from data_prep.readers.source import RecordTally, Source
from dist_bert.common.errors import UserError

TITLED = '<doc id="1" url="https://en.wikipedia.org/wiki?curid=1" title="A">'


def read(
    path: Path, data: str, layout: str = "wikiextractor", max_bad_share: float = 0.0
) -> tuple[list[str], RecordTally]:
    path.write_bytes(data.encode())
    tally = RecordTally(str(path), max_bad_share)
    source = Source(whole_file(str(path)), tally)
    return [document.text for document in read_documents(source, layout)], tally


@pytest.mark.parametrize(
    "tags",
    [
        TITLED,
        '<doc id="2" url="u" title="A" revid="7">',
        '<doc id="2" title="A" nonfiltered="1" processed="1" dbindex="1">',
        "<doc id='2' title='A'>",
        '<doc title="A" id=2>',
        '  <doc id="2" title="A" >\t',
        '<DOC ID="2" TITLE="A">',
        '<doc id="2"\nurl="u"\ntitle="A">',
        '\ufeff<doc id="2" title="A">',
    ],
)
def test_a_tag_has_many_dialects(tmp_path: Path, tags: str) -> None:
    data = f"{TITLED}\nA\n\nFirst.\n</doc>\n{tags}\nA\n\nOne.\nTwo.\n</doc>\n"
    for ending in ("\n", "\r\n"):
        texts, tally = read(tmp_path / "a", data.replace("\n", ending))
        assert texts == ["First.", "One.\n\nTwo."]
        assert not tally.bad and not tally.drops
    assert detect_layout(str(tmp_path / "a")) == "wikiextractor"
    assert read(tmp_path / "b", f"{tags}\nA\nx\n</doc>", "auto")[0] == ["x"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ('<doc id="1">\nA\n\nx\n</doc>', ["A\n\nx"]),  # no title to leave out
        ("<doc>\nx\n</doc>\n<doc>y</doc>", ["x", "y"]),
        (f"{TITLED}\nx.</doc>\n{TITLED}\ny.  </doc>  \n", ["x.", "y."]),
        (f"{TITLED}x</doc>{TITLED}y</doc>", ["x", "y"]),
        (f"{TITLED}\nx\n</doc> \ufeff{TITLED}\ny\n</doc>", ["x", "y"]),
        (f"{TITLED}\nA\n</doc>\n<doc id='2' title='B'/>\n<doc>z</doc >", ["", "", "z"]),
        ('<doc title="The "x" y">\nThe "x" y\nz\n</doc>', ["z"]),
        ('<doc title="a > b">\na > b\nz\n</doc>', ["z"]),
        ("<doc title='Tom&#39;s'>\nTom&#39;s\nz &lt;doc&gt;\n</doc>", ["z <doc>"]),
        (f"{TITLED}\nThe <doc> element and <docs> are text.\n</doc>",
         ["The <doc> element and <docs> are text."]),
        (f"{TITLED}\nx\nENDOFARTICLE.\n</doc>", ["x"]),
        (f"{TITLED}\nA\nA\n</doc>", ["A"]),  # the title once
    ],
)  # fmt: skip
def test_where_tags_stand_on_their_lines(tmp_path: Path, data: str, expected: list[str]) -> None:
    texts, tally = read(tmp_path / "a", data)
    assert texts == expected
    assert not tally.bad


@pytest.mark.parametrize(
    ("data", "expected", "bad", "problem"),
    [
        (f"{TITLED}\nx\n{TITLED}\ny\n</doc>", ["x", "y"], {"no_end": 1}, "line 3: <doc> inside"),
        (f"{TITLED}\nx {TITLED}\ny\n</doc>", ["x", "y"], {"no_end": 1}, "line 2: <doc> inside"),
        (f"before\n{TITLED}\nx\n</doc>", ["x"], {"outside": 1}, "line 1 is outside"),
        (f"{TITLED}\nx\n</doc>\nbetween\n{TITLED}\ny\n</doc>", ["x", "y"], {"outside": 1},
         "line 4 is outside"),
        (f"{TITLED}\nx\n</doc> behind\n", ["x"], {"outside": 1}, "line 3 is outside"),
        (f"</doc>\n{TITLED}\nx\n</doc>", ["x"], {"outside": 1}, "line 1: </doc> ends no document"),
        (f'{TITLED}\nx\n</doc>\n<doc id="2"\n{TITLED}\ny\n</doc>', ["x", "y"], {"outside": 1},
         "line 4 is outside"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_bad_and_named(
    tmp_path: Path, data: str, expected: list[str], bad: dict[str, int], problem: str
) -> None:
    texts, tally = read(tmp_path / "a", data, max_bad_share=1.0)
    assert texts == expected
    assert tally.bad == bad
    assert problem in tally.first_bad
    with pytest.raises(UserError, match=f"a: {problem}"):
        read(tmp_path / "a", data)


def test_tags_around_all_documents_are_counted(tmp_path: Path) -> None:
    data = f'<?xml version="1.0"?>\n<corpus>\n{TITLED}\nx\n</doc>\n</corpus>\n'
    texts, tally = read(tmp_path / "a", data)
    assert (texts, tally.drops) == (["x"], {"other_tag": 3})


def test_a_document_without_end_comes_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wikiextractor, "MAX_DOCUMENT", 10)
    lines = ["aaaa", "bbbb", "cccc", "d" * 13, "e"]
    texts, _ = read(tmp_path / "a", f"{TITLED}\nA\n" + "\n".join(lines) + "\n</doc>\n<doc></doc>")
    assert texts == ["aaaa\n\nbbbb", "cccc", "d" * 13, "e", ""]


def test_a_part_that_ends_inside_a_document_is_as_bad_as_the_whole(tmp_path: Path) -> None:
    data = f"{TITLED}\nx\n{TITLED}\ny\n</doc>\n"
    texts, whole = read(tmp_path / "a", data, max_bad_share=1.0)
    border = data.index("<doc", 9)
    found, bad = [], 0
    for start, stop in ((0, border), (border, len(data))):
        tally = RecordTally("a", 1.0)
        part = InputPart(str(tmp_path / "a"), start, stop - start, 0)
        found += [d.text for d in read_documents(Source(part, tally), "wikiextractor")]
        bad += tally.bad["no_end"]
    assert (found, bad) == (texts, whole.bad["no_end"]) == (["x", "y"], 1)


def test_files_that_were_put_into_one(tmp_path: Path) -> None:
    part = f"\ufeff{TITLED}\nA\n\nx\n</doc>\n"
    (tmp_path / "a.gz").write_bytes(gzip.compress(part.encode()) * 3)
    tally = RecordTally("a", 0.0)
    source = Source(whole_file(str(tmp_path / "a.gz")), tally)
    assert [document.text for document in read_documents(source, "auto")] == ["x"] * 3
    assert tally.mended == {"byte_order_mark": 2}
