"""Readers: every layout gives its documents; what is bad is named."""

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import pytest

from data_prep.docstrings import docstrings_of
from data_prep.readers import detect_layout, read_documents, read_sentences
from dist_bert.errors import UserError

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"  # real text, where there is any
TEXT = "First line.\nSecond line: 中文。\n\nA new paragraph."


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(path: Path, layout: str, text_field: str = "") -> list[str]:
    return list(read_documents(path, layout, text_field))


def test_a_text_file_is_a_document(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", TEXT), "text") == [TEXT]


@pytest.mark.parametrize("layout", ["text", "blank_line", "lines", "jsonl"])
def test_marks_and_line_ends_do_not_matter(tmp_path: Path, layout: str) -> None:
    text = json.dumps({"text": TEXT}) + "\n" if layout == "jsonl" else TEXT
    expected = read(write(tmp_path / "plain", text), layout)
    variant = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    assert read(write(tmp_path / "windows", variant), layout) == expected
    assert len(expected) == (2 if layout in ("blank_line", "lines") else 1)
    assert "".join(expected).split() == TEXT.split()


def test_line_ends_inside_json_are_normal(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "a\r\nb\rc"}))
    assert read(path, "jsonl") == ["a\nb\nc"]


def test_blank_lines_end_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\none\ntwo\n \t\n\n\nthree\n\nfour")
    assert read(path, "blank_line") == ["one\ntwo\n", "three\n", "four"]


def test_one_sentence_a_line_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "One. Still one\nTwo\n\nThree\n")
    assert [s for _, s in read_sentences(path, "lines")] == [["One. Still one", "Two"], ["Three"]]
    assert [s for _, s in read_sentences(path, "blank_line")] == [
        ["One.", "Still one", "Two"],
        ["Three"],
    ]


def test_json_lines_take_the_field_that_is_there(tmp_path: Path) -> None:
    rows = [{"id": 1, "content": "c"}, {"text": "t", "content": "no"}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert read(path, "jsonl") == ["c", "t"]
    with pytest.raises(UserError, match=r"a\.jsonl: line 2: has no text under id; .*text, content"):
        read(write(tmp_path / "a.jsonl", '{"id": "x"}\n{"text": "", "content": ""}'), "jsonl", "id")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("not json", "is not JSON"),
        ("[1]", "has no text"),
        ('{"text": 3}', "has no text"),
        ("{}", "--text_field"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "good"}\n' + line)
    with pytest.raises(UserError, match=f"a.jsonl: line 2: .*{problem}"):
        read(path, "jsonl")


WIKI = """<doc id="1" url="?curid=1" title="Cable &amp; Wireless">
Cable &amp; Wireless

A firm of &lt;old&gt; times. It had ships.

History.
It began in 1852.
</doc>
<doc id="2" url="?curid=2" title="A redirect">
A redirect


</doc>
<doc id="3" url="https://x/wiki?curid=3" title="No title line">
Its text begins at once.
</doc>
"""


@pytest.mark.parametrize("layout", ["wikiextractor", "auto"])
def test_wikiextractor_documents_lose_their_title_and_nothing_else(
    tmp_path: Path, layout: str
) -> None:
    path = tmp_path / "wiki_00"
    path.write_text(WIKI)
    documents = list(read_sentences(path, layout))
    assert [text for text, _ in documents] == [
        "A firm of <old> times. It had ships.\n\nHistory.\n\nIt began in 1852.",
        "",
        "Its text begins at once.",
    ]
    assert documents[0][1] == [
        "A firm of <old> times.",
        "It had ships.",
        "History.",
        "It began in 1852.",
    ]


def test_a_wikiextractor_file_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "wiki_00"
    path.write_text(WIKI[: -len("</doc>\n")])
    with pytest.raises(UserError, match="ends inside the document 'No title line'"):
        list(read_documents(path, "wikiextractor"))


@pytest.mark.parametrize(
    ("folder", "num_documents", "num_empty"),
    [("en-wiki/AA", 77_074, 48_317), ("zh-wiki/AA", 29_359, 11_755)],
)
def test_real_wikipedia_files(folder: str, num_documents: int, num_empty: int) -> None:
    files = sorted((SHARED_DATA / "pretrain" / folder).glob("wiki_*.gz"))
    if not files:
        pytest.skip("the shared data are not on this machine")
    lengths = [len(text) for file in files for text in read_documents(file, detect_layout(file))]
    assert len(lengths) == num_documents
    assert lengths.count(0) == num_empty


def test_half_characters_are_replaced(tmp_path: Path) -> None:
    rows = r'{"text": "a \ud800 b \ud83d\ude00"}'
    assert read(write(tmp_path / "a", rows), "jsonl") == ["a \ufffd b 😀"]
    module = write(tmp_path / "a.py", r'''"""a \ud800 b"""''')
    assert read(module, "python_docs") == ["a \ufffd b"]


@pytest.mark.parametrize("packer", [gzip, bz2, lzma])
def test_packed_files_are_told_by_their_bytes(tmp_path: Path, packer: object) -> None:
    halves = TEXT.encode()[:20], TEXT.encode()[20:]
    path = write(tmp_path / "no_suffix", b"".join(packer.compress(half) for half in halves))  # type: ignore[attr-defined]
    assert read(path, "text") == [TEXT], "several members are one file"
    assert detect_layout(path) == "text"
    with pytest.raises(UserError, match=r"no_suffix: is damaged or cut off"):
        read(write(path, path.read_bytes()[:-9]), "text")


@pytest.mark.parametrize("layout", ["text", "blank_line", "jsonl"])
def test_bad_utf8_is_named_by_file_and_byte(tmp_path: Path, layout: str) -> None:
    good = '{"text": "fine"}\n' if layout == "jsonl" else "fine\n\n中文\n"
    data = good.encode() + b"bad \xff here"
    for path in (
        write(tmp_path / "a", data),
        write(tmp_path / "b", gzip.compress(data)),
        write(tmp_path / "c", data.replace(b"\n", b"\r\n")),
    ):
        offset = len(good.encode()) + 4 + (good.count("\n") if path.name == "c" else 0)
        with pytest.raises(UserError, match=f"{path.name}: byte {offset} is not UTF-8"):
            read(path, layout)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none", "text")


def test_layouts_are_detected_by_content(tmp_path: Path) -> None:
    assert detect_layout(write(tmp_path / "a.txt", '\ufeff\n {"text": "x"}\n')) == "jsonl"
    assert detect_layout(write(tmp_path / "b", gzip.compress(b'{"id": 1}'))) == "jsonl"
    assert detect_layout(write(tmp_path / "c.jsonl", "{not json}")) == "text"
    assert detect_layout(write(tmp_path / "pretty.json", '{\n "text": "x"\n}')) == "text"
    assert detect_layout(write(tmp_path / "d.py", "x = 1")) == "python_docs"
    assert detect_layout(write(tmp_path / "e", "")) == "text"
    path = write(tmp_path / "f", '{"text": "Auto. Found."}')
    assert list(read_sentences(path, "auto")) == [("Auto. Found.", ["Auto.", "Found."])]


MODULE = '''
"""Module.

    Indented.
"""
import nothing_that_exists
raise SystemExit("never run")

def f():
    """Function é."""
    if True:
        class Inner:
            r"""Raw \\d."""
    else:
        x = """no docstring"""

class C:
    """Class.

    Title
    -----
    Text.

    >>> example()
    1

    More.
    """
    async def g(self):
        """Later."""
        try:
            pass
        except ValueError:
            def h(): """Deep."""

def without(): return """no"""
'''


def test_docstrings_come_in_the_order_of_the_source() -> None:
    texts = docstrings_of(MODULE.encode())
    assert [text.split("\n")[0] for text in texts] == [
        "Module.", "Function é.", "Raw \\d.", "Class.", "Later.", "Deep.",
    ]  # fmt: skip
    assert texts[0] == "Module.\n\nIndented."
    assert texts[3].split() == ["Class.", "Title", "Text.", "More."], "no rule line, no example"


def test_a_module_is_a_document_and_the_rest_is_counted(tmp_path: Path) -> None:
    drops: Counter[str] = Counter()
    files = {
        "good.py": MODULE.encode(),
        "latin.py": b'# -*- coding: latin-1 -*-\n"""caf\xe9."""\n',
        "python2.py": b'"""x"""\nprint "no"',
        "binary.py": b'"""\xff\xfe\x00',
        "null.py": b'"""a"""\0',
        "plain.py": b"x = 1",
        "undocumented.py": b'x = """text"""',
    }
    found = {}
    for name, data in files.items():
        path = write(tmp_path / name, data)
        found[name] = list(read_documents(path, "python_docs", drops=drops))
    assert {name: len(texts) for name, texts in found.items() if texts} == {
        "good.py": 1,
        "latin.py": 1,
    }
    assert found["latin.py"] == ["café."]
    assert found["good.py"][0].startswith("Module.\n\nIndented.\n\nFunction é.")
    assert drops == {"not_python": 3, "no_docstring": 2}
