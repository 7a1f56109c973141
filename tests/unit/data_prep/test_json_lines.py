"""JSON lines: told by most lines, whatever the first one is; what joins files is taken out."""

import json
from collections import Counter
from pathlib import Path

import pytest

from data_prep.inputs import whole_file
from data_prep.readers import detect_layout, read_documents, source
from data_prep.readers.source import RecordTally, Source
from dist_bert.common.errors import UserError

ROWS = [json.dumps({"text": f"document {n}"}) for n in range(6)]
TEXTS = [f"document {n}" for n in range(6)]


def read(
    path: Path, data: str | bytes, max_bad_share: float = 0.0
) -> tuple[list[str], RecordTally]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    tally = RecordTally(str(path), max_bad_share)
    found = Source(whole_file(str(path)), tally)
    return [document.text for document in read_documents(found, "auto")], tally


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("{}", "no_text"),
        ("null", "no_text"),
        ('"a string"', "no_text"),
        ("17", "no_text"),
        ("[1, 2]", "not_json"),
        ("# made on Monday", "not_json"),
    ],
)
def test_the_first_line_may_be_anything(tmp_path: Path, first: str, reason: str) -> None:
    texts, tally = read(tmp_path / "a", "\n".join([first, *ROWS]), max_bad_share=0.2)
    assert (texts, tally.bad) == (TEXTS, {reason: 1})
    with pytest.raises(UserError, match="a: line 1: "):
        read(tmp_path / "a", "\n".join([first, *ROWS]))
    if first.startswith("#"):
        return
    long = json.dumps({"text": "word " * 60_000})  # longer than what is looked at
    assert read(tmp_path / "a", f"{first}\n{long}\n", max_bad_share=0.5)[0] == ["word " * 60_000]


@pytest.mark.parametrize(
    "text",
    [
        "1\n2\n3\n",
        '"One."\n"Two."\n',
        "null\n",
        "{} are braces.\n" * 9,
        "A text.\nMore of it.\n" + '{"key": 1}\n',
        "{curly}\n{braces}\n",
    ],
)
def test_text_with_a_little_json_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text)
    assert detect_layout(str(tmp_path / "a")) == "text"


def test_line_separators_inside_strings_end_no_line(tmp_path: Path) -> None:
    rows = [json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False)] * 3
    assert read(tmp_path / "a", "\n".join(["{}", *rows]), 0.5)[0] == ["a\u2028b\x85c"] * 3


@pytest.mark.parametrize("joint", ["\n\ufeff", "\ufeff", "\n\ufeff\ufeff", "\r\n\ufeff"])
def test_byte_order_marks_between_files_that_were_joined(tmp_path: Path, joint: str) -> None:
    data = "\ufeff" + "\n".join(ROWS[:3]) + joint + "\n".join(ROWS[3:])
    texts, tally = read(tmp_path / "a", data)
    assert (texts, tally.mended) == (TEXTS, {"byte_order_mark": joint.count("\ufeff")})
    text = '{"text": "zero\ufeffwidth"}'
    assert read(tmp_path / "a", text)[0] == ["zero\ufeffwidth"], "inside of a string it is text"


@pytest.mark.parametrize("num_zeros", [1, 512, 5_000])
@pytest.mark.parametrize("end", ["", "\n"])
def test_padding_is_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_zeros: int, end: str
) -> None:
    monkeypatch.setattr(source, "MAX_RECORD_BYTES", 1_000)
    zeros = "\0" * num_zeros
    texts, tally = read(tmp_path / "a", "\n".join(ROWS) + end + zeros)
    assert texts == TEXTS
    assert tally.mended["padding"] >= 1 and not tally.bad
    texts, tally = read(tmp_path / "b", "\n".join(ROWS[:3]) + end + zeros[:900] + ROWS[3])
    assert texts == TEXTS[:4]
    assert tally.mended == {"padding": 1}


@pytest.mark.parametrize("num_zeros", [1, 512, 20_000])
def test_padding_of_a_text_file_is_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_zeros: int
) -> None:
    monkeypatch.setattr("data_prep.readers.lines.MAX_DOCUMENT", 6_000)
    data = b"One.\n\xef\xbb\xbfTwo, a joined file.\n" + bytes(num_zeros)
    texts, tally = read(tmp_path / "a", data)
    assert texts == ["One.\nTwo, a joined file.\n"]
    assert tally.mended == {"byte_order_mark": 1, "padding": max(-(-len(data) // 6_000), 1)}


def test_a_null_is_no_damage(tmp_path: Path) -> None:
    rows = ['{"text": null}', *ROWS, '{"text": null, "id": 7}']
    texts, tally = read(tmp_path / "a", "\n".join(rows))
    assert (texts, tally.drops, tally.bad) == (TEXTS, {"null": 2}, Counter())
