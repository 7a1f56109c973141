"""Readers of classified texts: tables, JSON lines, parallel files; every fault is named."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dist_bert.common.errors import UserError
from dist_bert.finetuning.examples import TextExample
from dist_bert.finetuning.readers import Labelled, ReadConfig, read_examples

SENTENCE, PAIR = "sentence_classification", "pair_classification"
Fields = tuple[str, str | None, tuple[str, ...] | None]


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def read(
    path: Path | str, task: str = SENTENCE, is_labelled: bool = True, **settings: Any
) -> Labelled:
    return read_examples(task, str(path), ReadConfig(**settings), is_labelled)


def fields_of(labelled: Labelled) -> list[Fields]:
    found = []
    for example in labelled.examples:
        assert isinstance(example, TextExample)
        found.append((example.text_a, example.text_b, example.labels))
    return found


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    return lambda data: write(tmp_path / "set", data)


File = Callable[[str | bytes], Path]
A, B = ("red", None, ("warm",)), ("blue, dark", None, ("cold",))


@pytest.mark.parametrize(
    "text,layout",
    [
        (
            "text\tlabel\nred\twarm\nblue, dark\tcold\n",
            "TSV with header text,label; text: text, label: label",
        ),
        (
            "Category\tid\tSentence\nwarm\t0\tred\ncold\t1\tblue, dark",
            "TSV with header Category,id,Sentence; text: Sentence, label: Category",
        ),
        (
            "red\twarm\t17\nblue, dark\tcold\t18\n",
            "TSV without header, 3 columns; text: 0, label: 1",
        ),
        (
            'text,label\nred,warm\n"blue, dark",cold\n',
            "CSV with header text,label; text: text, label: label",
        ),
        (
            '"red",warm\n"blue, dark","cold"\n\n\n',
            "CSV without header, 2 columns; text: 0, label: 1",
        ),
        (
            '{"text": "red", "label": "warm"}\n\n{"label": "cold", "text": "blue, dark"}\n',
            "JSON lines; text: text, label: label",
        ),
    ],
)
def test_layouts_are_told_by_content(file: File, text: str, layout: str) -> None:
    found = read(file(text))
    assert fields_of(found) == [A, B]
    assert found.layout == layout
    assert (found.num_rows, found.bad_rows, found.first_bad, found.label_names) == (2, {}, [], None)
    assert fields_of(read(file("\ufeff" + text.replace("\n", "\r\n")))) == [A, B]
    named = layout.partition(" with")[0].partition("; ")[0].lower()
    if named in ("tsv", "csv"):
        assert fields_of(read(file(text), format=named)) == [A, B]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_packed_files_are_told_by_their_bytes(file: File, pack: Callable[[bytes], bytes]) -> None:
    first, second = pack(b"text\tlabel\nred\tw"), pack(b"arm\nblue, dark\tcold")
    for padding in (b"", bytes(8)):
        assert fields_of(read(file(first + padding + second + padding))) == [A, B]
    middle = len(second) // 2
    damaged = second[:middle] + bytes([second[middle] ^ 255]) + second[middle + 1 :]
    for behind in (second[:-9], damaged, b"foreign"):
        with pytest.raises(UserError, match=r"set: is damaged or cut off .*; fetch it again"):
            read(file(first + behind))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_bomb_is_refused(
    file: File, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    """Also one in many streams, of which each is small. `test_packed` bounds the memory."""
    monkeypatch.setattr("dist_bert.finetuning.readers.source._MAX_BYTES", 4 << 20)
    row = b"word " * 25_000 + b"\tlabel\n"
    whole, parts = pack(row * 256), b"".join(pack(row * 2) for _ in range(128))
    for data in (whole, parts):
        path = file(data)
        with pytest.raises(UserError, match=r"set: holds more than 4 MiB of text.*give a part"):
            read(path)
    assert len(fields_of(read(file(pack(row * 7))))) == 7


def test_a_place_is_a_file_and_the_first_line_of_a_row(file: File) -> None:
    path = file('text,label\n"one\ntwo\r\nthree",a\nfour,b\n')
    found = read(path)
    assert fields_of(found) == [("one\ntwo\nthree", None, ("a",)), ("four", None, ("b",))]
    assert [example.name for example in found.examples] == [f"{path}, line 2", f"{path}, line 5"]


def test_quotes_are_literal_in_tsv_and_not_in_csv(file: File) -> None:
    text = '"Hi" he said\ta\n"all ""of"" it"\tb\nan "odd one\tc\n'
    literal = ['"Hi" he said', '"all ""of"" it"', 'an "odd one']
    assert [row[0] for row in fields_of(read(file(text)))] == literal
    quoted = read(file('"a\tb"\tx\n"all ""of"" it"\ty\n'), quoting="true")
    assert [row[0] for row in fields_of(quoted)] == ["a\tb", 'all "of" it']
    plain = read(file('5" pipe,a\n"x,b\n'), quoting="false")
    assert [row[0] for row in fields_of(plain)] == ['5" pipe', '"x']
    with pytest.raises(
        UserError, match=r"set, line 3: a quote that is opened here is never closed;.*--quoting"
    ):
        read(file('text,label\nx,y\n"z,y\nx,y\n'))
    mended = read(file('text,label\nx,y\n"z"z,y\nv,w\n'), max_bad_share=0.5)
    assert [row[0] for row in fields_of(mended)] == ["x", "v"]
    assert mended.bad_rows == {"quotes do not match": 1}
    long = read(file(f"text,label\n{'x' * 200_000},y\n"))
    assert len(fields_of(long)[0][0]) == 200_000


def test_columns_are_chosen_by_name_and_by_number(file: File) -> None:
    text = "a\tb\tc\nx\twarm\tred\ny\tcold\tblue, dark\n"
    by_name = read(file(text), text_column="c", label_column="b")
    assert fields_of(by_name) == [A, B]
    assert by_name.layout == "TSV with header a,b,c; text: c, label: b"
    assert fields_of(read(file(text), header="true", text_column="2", label_column="1")) == [A, B]
    without = text.partition("\n")[2]
    assert fields_of(read(file(without), text_column="2", label_column="1")) == [A, B]
    assert [row[2] for row in fields_of(read(file(without), text_column="2"))] == [("x",), ("y",)]
    assert fields_of(read(file("warm\tred\ncold\tblue, dark\n"), label_column="0")) == [A, B]
    assert fields_of(read(file("text\tlabel\n"), header="false")) == [("text", None, ("label",))]
    pair = "Quality\t#1\t#2\n1\tred\tblue\n"
    chosen = read(file(pair), PAIR, text_column="#1", text_b_column="#2", label_column="Quality")
    assert fields_of(chosen) == [("red", "blue", ("1",))]
    assert fields_of(read(file("label\tx\tsentence\na\tb\tc\n"), text_column="2")) == [
        ("c", None, ("a",))
    ]


@pytest.mark.parametrize(
    "text",
    [
        "index\tquestion\tsentence\tlabel\n0\tred?\tblue\tno\n",
        "red?\tblue\tno\n",
        "premise,hypothesis,gold_label\nred?,blue,no\n",
        '{"s1": "red?", "s2": "blue", "label": "no"}\n',
        # GLUE's QQP and MNLI
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tred?\tblue\tno\n",
        "index\tgenre\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\tx\t(y)\tred?\tblue\tyes\tno\n",
    ],
)
def test_pairs(file: File, text: str) -> None:
    assert fields_of(read(file(text), PAIR)) == [("red?", "blue", ("no",))]
    assert fields_of(read(file(text), PAIR, False)) == [("red?", "blue", None)]


def test_parallel_files(tmp_path: Path) -> None:
    one = write(tmp_path / "s1", "a, b . \nc\u2028d\n")
    two = write(tmp_path / "s2", gzip.compress(b"e\nf"))
    labels = write(tmp_path / "labels", "yes\nno\n")
    found = read(f"{one},{two},{labels}", PAIR)
    assert fields_of(found) == [("a, b .", "e", ("yes",)), ("c\u2028d", "f", ("no",))]
    assert (found.layout, found.examples[1].name) == ("3 parallel files", f"{one}, line 2")
    assert fields_of(read(f"{one},{labels}")) == [
        ("a, b .", None, ("yes",)),
        ("c\u2028d", None, ("no",)),
    ]
    for given in (f"{one},{two}", f"{one},{two},{labels}"):
        assert fields_of(read(given, PAIR, False)) == [
            ("a, b .", "e", None),
            ("c\u2028d", "f", None),
        ]
    comma = write(tmp_path / "a,b", "x\ty\n")
    assert fields_of(read(comma)) == [("x", None, ("y",))]
    with pytest.raises(
        UserError, match="2 parallel files are given, 3 are expected: TEXTS,SECOND_TEXTS,LABELS"
    ):
        read(f"{one},{two}", PAIR)
    write(labels, "yes\nno\nno\n")
    with pytest.raises(
        UserError, match=r"equal numbers of lines: .*s1 has 2, .*s2 has 2, .*labels has 3"
    ):
        read(f"{one},{two},{labels}", PAIR)


def test_without_labels_they_may_be_absent(file: File) -> None:
    texts = [("red", None, None), ("blue, dark", None, None)]
    for text in (
        "text\tlabel\nred\t\nblue, dark\t?\n",
        "red\twarm\nblue, dark\tcold\n",
        "text\nred\nblue, dark\n",
        "red\nblue, dark\n",
        '{"text": "red"}\n{"text": "blue, dark"}',
    ):
        found = read(file(text), is_labelled=False, label_column="3", labels="")
        assert fields_of(found) == texts, text
    lines = read(file("one, two\nthree, four\n\nfive, six"), is_labelled=False, max_bad_share=0.25)
    assert [row[0] for row in fields_of(lines)] == ["one, two", "three, four", "five, six"]
    assert lines.bad_rows == {"empty text": 1}
    assert lines.first_bad[0].endswith("set, line 3: empty text")


def test_several_labels_and_a_list_of_names(file: File, tmp_path: Path) -> None:
    names = write(tmp_path / "names.txt", "\ufeffjoy\r\nfear \r\nanger")
    path = file("a\t0\nb\t2,1,2\nc\tfear\nd\t\ne\t1, 0\n")
    found = read(path, label_separator=",", labels=str(names))
    assert [row[2] for row in fields_of(found)] == [
        *(("joy",), ("anger", "fear"), ("fear",), (), ("fear", "joy"))
    ]
    assert found.label_names == ("joy", "fear", "anger")
    assert found.notes == {"has none of the labels": 1}
    single = read(
        path, label_separator=",", labels=str(names), drop_several_labels=True, max_bad_share=0.2
    )
    assert [row[0] for row in fields_of(single)] == ["a", "c"]
    assert (single.num_rows, single.bad_rows) == (5, {"empty label": 1})
    assert single.notes == {"left out for its several labels": 2}
    assert single.summary() == [
        "2 examples of 5 rows; TSV without header, 2 columns; text: 0, label: 1",
        "bad rows, empty label: 1",
        "note, left out for its several labels: 2",
        f"{path}, line 4: empty label",
    ]
    lists = file(
        '{"text": "a", "label": [2, "joy"]}\n{"text": "b", "label": []}\n{"text": "c", "label": 1}'
    )
    write(names, '["joy", "fear", "anger"]')
    several = read(lists, labels=str(names), label_separator=",")
    assert [row[2] for row in fields_of(several)] == [("anger", "joy"), (), ("fear",)]
    one = read(lists, labels=str(names), max_bad_share=0.7)
    assert [row[2] for row in fields_of(one)] == [("fear",)]
    assert one.bad_rows == {"several labels": 1, "empty label": 1}
    assert one.first_bad[0].endswith(
        "line 1: has labels anger, joy; give --label_separator or --drop_several_labels"
    )
    kept = read(lists, labels=str(names), drop_several_labels=True, max_bad_share=0.4)
    assert (len(kept.examples), kept.notes.total(), kept.bad_rows) == (1, 1, {"empty label": 1})
    digits = write(tmp_path / "digits", "1\n0\n")  # a name goes before a number
    assert fields_of(read(file("a\t0\n"), labels=str(digits)))[0][2] == ("0",)


ROWS = "".join(f"{i},some text {i},{'xy'[i % 2]}\n" for i in range(24))
READ = [(f"some text {i}", None, ("xy"[i % 2],)) for i in range(24)]


@pytest.mark.parametrize(
    "text,columns",
    [
        (f",text,label\n{ROWS}", "text: text, label: label"),
        (f",text,Mood\n{ROWS}", "text: text, label: Mood"),
        (f",words,label\n{ROWS}", "text: words, label: label"),
        (f"Unnamed: 0,text,Mood\n{ROWS}", "text: text, label: Mood"),
        (f'"text","label"\n{ROWS}', "text: text, label: label"),  # R names no row names
        (f"id,text,label\n{ROWS}", "text: text, label: label"),
        (ROWS, "text: 1, label: 2"),
        (",text,label\n" + "\n".join(sorted(ROWS.splitlines())), "text: text, label: label"),
    ],
)
def test_an_index_column_is_neither_text_nor_label(tmp_path: Path, text: str, columns: str) -> None:
    path = write(tmp_path / "set.csv", text)
    found = read(path)
    assert found.layout.endswith(f"; {columns}")
    assert sorted(fields_of(found)) == sorted(READ)
    assert (found.bad_rows, found.notes) == ({}, {})
    unlabelled = read(path, is_labelled=False)
    assert [row[0] for row in fields_of(unlabelled)] == [row[0] for row in fields_of(found)]
    tabs = write(tmp_path / "tabs", text.replace(",", "\t").replace('"', ""))
    assert fields_of(read(tabs)) == fields_of(found)


def test_an_index_column_of_pairs(file: File) -> None:
    rows = "".join(f"{i},one {i},two {i},{'xy'[i % 2]}\n" for i in range(24))
    expected = [(f"one {i}", f"two {i}", ("xy"[i % 2],)) for i in range(24)]
    for header in ("", ",sentence1,sentence2,label\n", ",a,b,label\n", ",text_a,b,label\n"):
        assert fields_of(read(file(header + rows), PAIR)) == expected, header
    labels_first = "".join(f"{i % 2},some text {i},17\n" for i in range(24))
    with pytest.raises(UserError, match="read as texts has many repetitions"):
        read(file(labels_first))  # a column of classes is no index


def test_the_names_of_a_header_count_before_positions(file: File) -> None:
    rows = "".join(f"n{i}\tsome text {i}\t{'xy'[i % 2]}\n" for i in range(24))
    assert fields_of(read(file(f"id\ttext\tMood\n{rows}"))) == READ
    with pytest.raises(UserError, match=r"usual name for --label_column; name one of kind, text"):
        read(file(f"kind\ttext\tMood\n{rows}"))
    assert fields_of(read(file(f"kind\ttext\tMood\n{rows}"), label_column="Mood")) == READ
    assert fields_of(read(file(f"Tweet\tMood\n{TWENTY}")))[0] == ("text 0", None, ("x",))
    classes = read(file("What is it?\ttopic\nWho?\tquestion\nWhere?\ttopic\n"))
    assert [row[2] for row in fields_of(classes)] == [("topic",), ("question",), ("topic",)]


@pytest.mark.parametrize(
    "given,kept,missing",
    [
        (["yes", "no", "-"], ["yes", "no"], "-"),
        (["0", "1", "2", "-1"], ["0", "1", "2"], "-1"),
        (["0.0", "1.0", "2.0", "-1.0"], ["0", "1", "2"], "-1.0"),
        (["1", "2", "-1"], ["1", "2"], "-1"),
        (["yes", "no", "-1"], ["yes", "no"], "-1"),
        (["yes", "NaN"], ["yes"], "NaN"),
        (["+", "-"], ["+", "-"], None),
        (["0", "1", "-1"], ["0", "1", "-1"], None),
        (["1", "-1"], ["1", "-1"], None),
        (["-2", "-1", "0", "1", "2"], ["-2", "-1", "0", "1", "2"], None),
        (["none", "favor", "NA"], ["none", "favor", "NA"], None),
    ],
)
def test_labels_that_mean_none_are_left_out_in_every_layout(
    tmp_path: Path, given: list[str], kept: list[str], missing: str | None
) -> None:
    texts = [f"text {i}" for i in range(len(given))]
    write(tmp_path / "texts", "\n".join(texts))
    write(tmp_path / "labels", "\n".join(given))
    rows = list(zip(texts, given, strict=True))
    layouts: list[Path | str] = [
        f"{tmp_path / 'texts'},{tmp_path / 'labels'}",
        write(tmp_path / "tsv", "".join(f"{text}\t{label}\n" for text, label in rows)),
        write(tmp_path / "csv", "text,label\n" + "".join(f"{t},{n}\n" for t, n in rows)),
        write(
            tmp_path / "jsonl",
            "".join(f'{{"text": "{text}", "label": "{label}"}}\n' for text, label in rows),
        ),
    ]
    for path in layouts:
        found = read(path)
        assert [row[2] for row in fields_of(found)] == [(label,) for label in kept]
        assert (found.num_rows, found.bad_rows) == (len(given), {})
        reason = f"no label ({missing}), left out"
        assert found.notes[reason] == (missing is not None)
        if missing:
            assert found.first_bad[-1].endswith(f"line {texts.index(texts[-1]) + 1}: {reason}") or (
                "csv" in str(path) or given[-1] != missing
            )
    as_pairs = write(tmp_path / "pairs", "".join(f"{t}\tb\t{n}\n" for t, n in rows))
    assert len(read(as_pairs, PAIR).examples) == len(kept)


def test_what_is_no_label_in_json_and_beside_a_label_list(file: File, tmp_path: Path) -> None:
    path = file(
        "".join(
            f'{{"text": "t{i}", "label": {label}}}\n'
            for i, label in enumerate(("0", "1.0", "-1", "null", "NaN", '"-"', "2"))
        )
    )
    found = read(path)
    assert [row[2] for row in fields_of(found)] == [("0",), ("1",), ("2",)]
    assert found.notes == {
        "no label (-, -1, nan, null), left out": 4,
        "label written as 1.0 is the class 1": 1,
    }
    names = write(tmp_path / "names", "a\nb\nc\n")
    listed = read(path, labels=str(names))
    assert [row[2] for row in fields_of(listed)] == [("a",), ("b",), ("c",)]
    write(names, "-\n0\n1\n2\n-1\n")
    assert len(read(path, labels=str(names)).examples) == 5
    three = read(file("a\t-1\nb\t0\nc\t1\n"))
    assert three.first_bad[0].endswith("list the two classes in a file (--labels)")


def test_labels_of_whole_numbers_may_be_written_as_floats(file: File, tmp_path: Path) -> None:
    text = "a\t1.0\nb\t0.0\nc\t10.00\n"
    found = read(file(text))
    assert [row[2] for row in fields_of(found)] == [("1",), ("0",), ("10",)]
    assert found.notes == {"label written as 1.0 is the class 1": 3}
    names = write(tmp_path / "names", "\n".join(f"class {i}" for i in range(11)))
    assert fields_of(read(file(text), labels=str(names)))[2] == ("c", None, ("class 10",))
    mixed = read(file("a\tv1.0\nb\t2.0\n"))
    assert [row[2] for row in fields_of(mixed)] == [("v1.0",), ("2.0",)]
    with pytest.raises(UserError, match=r"label '9{5000}' is neither among"):
        read(file(f"a\t{'9' * 5000}\n"), labels=str(names))


def test_labels_that_differ_only_in_case_or_blanks_are_named(file: File, tmp_path: Path) -> None:
    found = read(file("a\tYes\nb\tno\nc\tyes\nd\tYes\n"))
    assert found.notes == {"labels that differ only in case or blanks": 1}
    assert found.first_bad[0].endswith(
        "labels 'Yes' (2), 'yes' (1) differ only in case or blanks and are separate classes"
    )
    assert read(file("a\tvery good\nb\tverygood\n")).notes.total() == 1
    names = write(tmp_path / "names", "yes\nno\n")
    with pytest.raises(UserError, match="it differs from 'yes' only in case or blanks"):
        read(file("a\tYes\n"), labels=str(names))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [";", "|"])
def test_columns_may_be_separated_by_semicolons_and_bars(
    file: File, separator: str, end: str
) -> None:
    rows = f'"red""{separator}"{separator}warm\nblue dark, (1,2){separator}cold\n'
    expected = [(f'red"{separator}', None, ("warm",)), ("blue dark, (1,2)", None, ("cold",))]
    header = f"text{separator}label\n"
    for start in ("", f"sep={separator}\n", f'"sep={separator}"\n', f"SEP={separator}\n"):
        path = file((start + header + rows).replace("\n", end))
        assert fields_of(read(path)) == expected
        found = read(path, format="csv", is_labelled=False)
        assert [row[0] for row in fields_of(found)] == [row[0] for row in expected]
    assert read(path).layout.startswith(f"CSV with {separator!r} with header text,label")
    name = {";": "semicolon", "|": "bar"}[separator]
    assert fields_of(read(file(rows), separator=name)) == expected


def test_semicolons_and_commas_are_told_apart(file: File) -> None:
    commas = "".join(f"one{', two' * (i % 3)}; three;{'xy'[i % 2]}\n" for i in range(9))
    assert read(file(commas)).layout.startswith("CSV with ';' without header, 3 columns")
    assert fields_of(read(file("text,label\na; b,c\nd; e,f\n"))) == [
        ("a; b", None, ("c",)),
        ("d; e", None, ("f",)),
    ]


def test_carriage_returns_alone_end_lines_where_most_lines_end_so(file: File) -> None:
    assert fields_of(read(file("text\tlabel\rred\twarm\rblue, dark\tcold\r"))) == [A, B]
    inside = read(file("one\rtwo\ta\nthree\tb\n"))
    assert [row[0] for row in fields_of(inside)] == ["one\rtwo", "three"]


def test_quotes_may_be_escaped_by_backslashes(file: File) -> None:
    text = 'text,label\n"He said \\"red, blue\\" twice",x\n"plain, too",y\n"\\"",z\n'
    found = read(file(text))
    assert [row[0] for row in fields_of(found)] == ['He said "red, blue" twice', "plain, too", '"']
    assert found.layout.startswith("CSV whose quotes are escaped by backslashes with header")
    assert found.bad_rows == {}
    path = read(file('text,label\n"C:\\dir\\",x\n"a ""b"" \\",y\n'))
    assert [row[0] for row in fields_of(path)] == ["C:\\dir\\", 'a "b" \\']


def test_a_quote_that_is_missing_takes_no_other_row_along(file: File) -> None:
    rows = [f"text {i},{'xy'[i % 2]}\n" for i in range(200)]
    rows[20] = '"text 20,x\n'
    rows[120] = 'text "120,x\n'
    rows[140] = '"text 140" and more,x\n'
    found = read(file("".join(rows)), max_bad_share=0.05)
    assert (found.num_rows, len(found.examples), found.bad_rows.total()) == (200, 198, 2)
    rows[120] = "text 120,x\n"
    rows[140] = 'text 140",x\n'  # ends the field that began at 20
    swallowed = read(file("".join(rows)), max_bad_share=0.05)
    assert (swallowed.num_rows, swallowed.bad_rows) == (80, {})
    assert swallowed.notes == {"a quoted field holds lines that look like rows": 1}
    assert "line 21: a quoted field holds 119 lines" in swallowed.first_bad[0]


def test_a_bad_row_costs_no_pass_over_those_before_it(file: File) -> None:
    """With one, these rows would take minutes."""
    text = "text,label\n" + '"A" lamp,x\n' * 300_000
    with pytest.raises(UserError, match="lines 2 to 2 are not a row of CSV"):
        read(file(text))


def test_json_lists_and_mixed_fields(file: File) -> None:
    rows = '[\n {"text": "red", "label": "warm"},\n {"label": "cold", "text": "blue, dark"}\n]'
    found = read(file(rows))
    assert fields_of(found) == [A, B]
    assert found.layout == "JSON list; text: text, label: label"
    assert found.examples[1].name.endswith("set, [1]")
    assert fields_of(read(file(f'{{"version": 1, "data": {rows}}}'))) == [A, B]
    assert fields_of(read(file(rows.replace("\n", "")))) == [A, B]
    late = '{"id": 1}\n{"text": "red", "label": "warm"}\n'
    assert fields_of(read(file(late), max_bad_share=0.5)) == [A]


SCORED, SCORED_PAIR = "sentence_regression", "pair_regression"


def targets_of(labelled: Labelled) -> list[float | None]:
    return [example.target for example in labelled.examples]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    [
        # GLUE's STS-B
        "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\ta\tb\t5.000\n1\tx\tc\td\t3.8\n",
        "sentence_A,sentence_B,relatedness_score\na,b,5\nc,d,3.8\n",
        ",sentence1,sentence2,similarity\n0,a,b,5.0\n1,c,d,3.8\n",
        "a\tb\t5e0\nc\td\t+3.8\n",
        '{"sentence1": "a", "sentence2": "b", "label": 5}\n'
        '{"sentence1": "c", "sentence2": "d", "label": 3.8}\n',
    ],
)
def test_numbers_of_pairs(file: File, text: str) -> None:
    found = read(file(text), SCORED_PAIR)
    assert fields_of(found) == [("a", "b", None), ("c", "d", None)]
    assert targets_of(found) == [5.0, 3.8]
    assert (found.bad_rows, found.notes, found.label_names) == ({}, {}, None)
    assert targets_of(read(file(text), SCORED_PAIR, is_labelled=False)) == [None, None]


def test_numbers_of_texts(file: File, tmp_path: Path) -> None:
    path = file('text,stars\na,4\nb,.5\nc,-\nd,nan\ne,-1\nf,high\ng,\nh,"2,5"\ni,1e999\nj,2e18\n')
    found = read(path, SCORED, max_bad_share=0.5)
    assert targets_of(found) == [4.0, 0.5]
    assert found.notes == {"no label (-, -1, nan), left out": 3}
    assert found.bad_rows == {"score is not a number": 3, "empty score": 1, "score too large": 1}
    assert found.first_bad[:3] == [
        f"{path}, line 7: score 'high' is not a number",
        f"{path}, line 8: empty score",
        f"{path}, line 9: score '2,5' is not a number; write it with a decimal point",
    ]
    assert f"{path}, line 11: score '2e18' is not from -1e+18 to 1e+18" in found.first_bad
    below = read(file("text,score\na,-1\nb,0.5\nc,-0.25\n"), SCORED)
    assert targets_of(below) == [-1.0, 0.5, -0.25]  # one of several below 0
    texts, numbers = write(tmp_path / "t", "a\nb\n"), write(tmp_path / "n", "1.5\n2\n")
    assert targets_of(read(f"{texts},{numbers}", SCORED)) == [1.5, 2.0]
    with pytest.raises(UserError, match="labels = x: has no effect on sentence_regression"):
        read(path, SCORED, labels="x")


@pytest.mark.parametrize(
    "names,problem",
    [
        ("a\n\nb", "has an empty name"),
        ("a\nb\na", "names a twice"),
        ('{"a": 0}', "must be a JSON list of names"),
        ('["a", 1]', "must be a JSON list of names"),
        ("[a", "is not valid JSON"),
        ("", "is empty"),
    ],
)
def test_label_lists_are_checked(file: File, tmp_path: Path, names: str, problem: str) -> None:
    path = write(tmp_path / "names", names)
    with pytest.raises(UserError, match=f"names: {problem}"):
        read(file("x\ta\n"), labels=str(path))


def test_bad_rows_are_counted_and_named(file: File, tmp_path: Path) -> None:
    names = write(tmp_path / "names.txt", "x\ny\n")
    good = "t\tx\n" * 7
    path = file(good + "t\n \tx\nt\t\nt\t2\nt\tx\tx\nt\tx,y\n")
    found = read(path, labels=str(names), max_bad_share=0.5)
    assert len(found.examples) == 7
    assert found.bad_rows == {
        "wrong number of columns": 2,
        "empty text": 1,
        "empty label": 1,
        "unknown label": 2,
    }
    unknown = "is neither among the 2 names of the label list nor a number from 0 to 1"
    assert found.first_bad == [
        f"{path}, line 8: number of columns is 1, that of the file is 2",
        f"{path}, line 9: empty text",
        f"{path}, line 10: empty label",
        f"{path}, line 11: label '2' {unknown}",
        f"{path}, line 12: number of columns is 3, that of the file is 2",
        f"{path}, line 13: label 'x,y' {unknown}; several labels in a field need --label_separator",
    ]
    with pytest.raises(UserError) as error:
        read(path, labels=str(names))
    assert str(error.value) == (
        f"{path}, line 8: number of columns is 1, that of the file is 2"
        f" (6 of 13 rows of {path} are bad, more than --max_bad_share 0.01 allows)"
    )
    many = read(file("t\tx\n" * 19 + "t\n" * 13), max_bad_share=0.5)
    assert many.bad_rows.total() == 13
    assert len(many.first_bad) == 10


def test_bad_json_lines(file: File) -> None:
    path = file(
        '{"text": "a", "label": true}\n{"text": 5, "label": "x"}\n{"text": "b"\n["c"]\n'
        '{"text": "d", "label": 0.5}\n{"text": "e"}\n{"text": "half \\ud83d", "label": -1}\n'
    )
    found = read(path, max_bad_share=0.9)
    assert fields_of(found) == [("a", None, ("true",)), ("half \ufffd", None, ("-1",))]
    assert found.bad_rows == {
        "text is no string": 1,
        "no JSON object": 2,
        "label is no name": 1,
        "empty label": 1,
    }
    with pytest.raises(UserError, match="no line is a JSON object; give --format"):
        read(file("a\tb\n"), format="jsonl")


TWENTY = "".join(f"text {i}\t{'xyz'[i % 3]}\n" for i in range(24))


@pytest.mark.parametrize(
    "text,settings,problem",
    [
        (b"", {}, "set: is empty"),
        (b"a\tb\nc\xff\td\n", {}, "set, line 2: byte 5 is not UTF-8 .invalid start byte.; convert"),
        (b"\xef\xbb\xbfa\tb\n\nc\xff\td\n", {}, "set, line 3: byte 9 is not UTF-8"),
        (b"text\tlabel\n", {}, "set: has no examples .read as TSV with header text,label"),
        (b"a\tb\nc\td\n", {"text_column": "e"}, "no column 'e' .--text_column.; there are a, b"),
        (b"a\tb\nc\td\n", {"header": "true"}, "usual name for --text_column; name one of a, b"),
        (
            b"a\tb\nc\td\n",
            {"text_column": "2"},
            "no column '2' .--text_column.; it has 2, counted from 0",
        ),
        (
            b"a\nb\n",
            {},
            "neither a tab nor a comma, semicolon or bar, so they have one column; give --form",
        ),
        (b"a\nb\n", {"format": "tsv"}, "none of its 1 columns is left for --label"),
        (b'[\n{"text": "a"},\n{"te', {}, "so they have one column; give --format"),
        (f"Words\tMood\n{TWENTY}", {}, "set, line 1: its label 'Mood' is in no other row"),
        (b"text,text,label\na,b,c\n", {}, "has two columns 'text'; give the number .--text_column"),
        (b"a; b,c\nd; e,f\n", {}, "separated by any of comma, semicolon; give one as --separator"),
        (b"a\tb\n", {"format": "tsv", "separator": "comma"}, "format = tsv: has other separators"),
        (b"PK\x03\x04...", {}, "set: is a zip archive or an Excel file; write its rows as CSV"),
        (b"text,label\na,-1\nb,-\n", {}, "has no examples .*no label .-, -1., left out: 2"),
        (
            b"text\tlabel\na\t3.8\nb\t5.000\n",
            {},
            "labels are numbers such as 3.8; to predict them give --task sentence_regression or",
        ),
        (
            b'{"text": "a", "label": 3.8}\n',
            {},
            "label 3.8 is neither a name nor a whole number; to predict numbers, give --",
        ),
        (
            TWENTY,
            {"text_column": "1"},
            "read as labels has few repetitions .24 different in 24",
        ),
        (
            TWENTY.replace("text", "t\tx\ttext"),
            {},
            "read as texts has many repetitions .1 different in 24",
        ),
        (f"{TWENTY}t\tx,y\n", {}, "label 'x,y' joins other labels; give --label_separator"),
        (TWENTY, {"format": "squad"}, "format = squad: must be one of tsv"),
        (TWENTY, {"tag_scheme": "iob1"}, "tag_scheme = iob1: has no effect on sentence_class"),
        (TWENTY, {"text_b_column": "1"}, "text_b_column = 1: has no effect on sentence_class"),
        (TWENTY, {"labels": "nowhere"}, "nowhere: cannot be read .No such file"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    file: File, text: str | bytes, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as error:
        read(file(text), **settings)
    assert "\n" not in str(error.value)


def test_what_looks_wrong_can_be_insisted_on(file: File, tmp_path: Path) -> None:
    path = file(f"Words\tMood\n{TWENTY}")
    assert fields_of(read(path, header="false"))[0] == ("Words", None, ("Mood",))
    assert len(read(path, text_column="Words", label_column="Mood").examples) == 24
    names = write(tmp_path / "names", "x\ny\nz\nx,y\n")
    assert fields_of(read(file(f"{TWENTY}t\tx,y\n"), labels=str(names)))[-1][2] == ("x,y",)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for given in (f"{tmp_path}/none.tsv", f"{tmp_path}/none.tsv,{tmp_path}/none.labels"):
        with pytest.raises(UserError, match=r"none.tsv: cannot be read .No such file or directory"):
            read(given)
    with pytest.raises(UserError, match=r"cannot be read .Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    "settings,problem",
    [
        ({"max_bad_share": 1.5}, "max_bad_share = 1.5: must be 0 to 1"),
        ({"text_column": "a", "label_column": "a"}, "label_column = a: must be different columns"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        ReadConfig(**settings)
