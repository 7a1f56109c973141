"""Readers of labelled files on arbitrary bytes and damaged files: examples or one clear error.

Nothing else may come out, and never fewer examples than an independent count without a word.
"""

import bz2
import functools
import gzip
import json
import lzma
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.errors import UserError
from dist_bert.finetuning.examples import TASKS, QuestionExample, TextExample, WordsExample
from dist_bert.finetuning.readers import Labelled, ReadConfig, read_examples
from dist_bert.finetuning.readers.read_config import FORMATS_OF, SEPARATORS
from tests.support import labelled
from tests.support.corpus import chinese_sentences

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Arguments of what fails are printed; the same ones are drawn in every run.
FUZZ = settings(
    max_examples=300,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SENTENCE, PAIR = "sentence_classification", "pair_classification"
WORDS, QUESTIONS = "token_classification", "question_answering"


def _tsv(folder: Path) -> Path:
    labelled.write_texts(folder / "texts.tsv", labelled.texts(30))
    return folder / "texts.tsv"


def _csv(folder: Path) -> Path:
    rows = [
        f'{i},"{example.text_a}, ""{i}""\nso",{label}'
        for i, example in enumerate(labelled.texts(30))
        for label in example.labels or ()
    ]
    (folder / "texts.csv").write_text("\n".join([",text,label", *rows, ""]))
    return folder / "texts.csv"


def _pairs(folder: Path) -> Path:
    rows = [f"{e.text_a}|{e.text_b}|{i % 3}.0" for i, e in enumerate(labelled.pairs(30))]
    (folder / "pairs").write_text("\r".join(["premise|hypothesis|gold_label", *rows, ""]))
    return folder / "pairs"


def _json_lines(folder: Path) -> Path:
    sentences = chinese_sentences(30, seed=3)
    rows = [{"text": text, "label": [1, -1, 0, None][i % 4]} for i, text in enumerate(sentences)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "texts.jsonl"


def _conll(folder: Path) -> Path:
    labelled.write_tagged(folder / "words.conll", labelled.tagged(20))
    return folder / "words.conll"


def _iob2(folder: Path) -> Path:
    blocks = []
    for example in labelled.tagged(20):
        tagged = enumerate(zip(example.words, example.tags or (), strict=True), 1)
        words = "".join(f"{number}\t{word}\t{tag}\t-\n" for number, (word, tag) in tagged)
        blocks.append(f"# text = {example.words[0]}\n1-2\t_\t_\t-\n{words}")
    (folder / "words.iob2").write_text("\n".join(blocks))
    return folder / "words.iob2"


def _word_lists(folder: Path) -> Path:
    rows = [{"tokens": e.words, "ner_tags": e.tags} for e in labelled.tagged(20)]
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "words.jsonl"


def _squad(folder: Path) -> Path:
    labelled.write_questions(folder / "squad.json", labelled.questions(12))
    return folder / "squad.json"


def _cmrc(folder: Path) -> Path:
    paragraphs = [
        {
            "context_id": f"{i}",
            "context_text": e.context,
            "qas": [
                {
                    "query_id": e.id,
                    "query_text": e.question,
                    "answers": [a.text for a in e.answers or ()] or ["nowhere"],
                }
            ],
        }
        for i, e in enumerate(labelled.questions(12, is_chinese=True))
    ]
    (folder / "cmrc.json").write_text(json.dumps(paragraphs, ensure_ascii=False))
    return folder / "cmrc.json"


def _question_rows(folder: Path) -> Path:
    rows = [
        {
            "id": e.id,
            "question": e.question,
            "context": e.context,
            "answers": {
                "text": [a.text for a in e.answers or ()],
                "answer_start": [a.start for a in e.answers or ()],
            },
        }
        for e in labelled.questions(12)
    ]
    (folder / "rows.json").write_text(json.dumps({"data": rows}, indent=1))
    return folder / "rows.json"


# What makes a file, its task, and what counts its examples otherwise than the reader does.
def _count_lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.split("\n"))


def _count_rows(text: str) -> int:
    """Lines, those inside of quotes with the one that opened them; without the header."""

    def count(lines: list[str]) -> int:
        is_open = [False, *(n % 2 == 1 for n in accumulate(line.count('"') for line in lines))]
        return sum(not o and bool(line.strip()) for o, line in zip(is_open, lines, strict=False))

    unescaped = text.replace('\\"', "")  # a backslash escapes a quote, or is part of a text
    return min(count(text.split("\n")), count(unescaped.split("\n"))) - 1


def _count_sentences(text: str) -> int:
    lines = ["" if line.startswith("#") and "\t" not in line else line for line in text.split("\n")]
    blank = [not line.strip() for line in lines]
    return sum(not b and (i == 0 or blank[i - 1]) for i, b in enumerate(blank))


def _count_questions(text: str) -> int:
    """Objects that have a question, however deep."""

    def count(value: Any) -> int:
        if isinstance(value, list):
            return sum(map(count, value))
        if not isinstance(value, dict):
            return 0
        return ("question" in value or "query_text" in value) + sum(map(count, value.values()))

    return count(json.loads(text))


LAYOUTS: dict[str, tuple[str, Callable[[Path], Path], Callable[[str], int]]] = {
    "tsv": (SENTENCE, _tsv, lambda text: _count_lines(text) - 1),
    "csv": (SENTENCE, _csv, _count_rows),
    "bars": (PAIR, _pairs, lambda text: _count_lines(text) - 1),
    "json lines": (SENTENCE, _json_lines, _count_lines),
    "conll": (WORDS, _conll, _count_sentences),
    "iob2": (WORDS, _iob2, _count_sentences),
    "word lists": (WORDS, _word_lists, _count_lines),
    "squad": (QUESTIONS, _squad, _count_questions),
    "cmrc": (QUESTIONS, _cmrc, _count_questions),
    "question rows": (QUESTIONS, _question_rows, _count_questions),
}
# Bytes that mean something to one of the readers.
TELLING = [
    *(b"\n", b"\r", b"\r\n", b"\t", b",", b";", b"|", b'"', b'""', b"\\", b'\\"', b"\0", b" "),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b"null",
        b"NaN",
        b"1e999",
        b"-1",
        b"-",
        b"1.0",
        b"9" * 5000,
        b"sep=;\n",
    ),
    *(b"\xef\xbb\xbf", b"\xc2\xa0", b"\xe2\x80\xa8", b"\xff", b"\xed\xa0\x80", b"\\ud83d", b"\x85"),
    *(b"-DOCSTART-", b"O", b"I-", b"#", b"text", b"label", b"question", b"context", b"data"),
]
edits = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "repeat", "replace", "cut"]),
        st.integers(0, 1 << 20),
        st.integers(1, 60),
        st.sampled_from(TELLING) | st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)
Edit = tuple[str, int, int, bytes]  # kind, place, size, new bytes


def edited(data: bytes, all_edits: list[Edit]) -> bytes:
    """Data with all edits done one after the other."""
    for kind, place, size, new in all_edits:
        at = place % (len(data) + 1)
        if kind == "insert":
            data = data[:at] + new + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + size :]
        elif kind == "repeat":
            data = data[: at + size] + data[at:]
        elif kind == "replace":
            data = data[:at] + new + data[at + len(new) :]
        else:
            data = data[:at]
    return data


def examined(task: str, path: str, config: ReadConfig, is_labelled: bool) -> Labelled | None:
    """Reads a file; None where it is refused in one line, as a terminal can show it."""
    try:
        found = read_examples(task, path, config, is_labelled)
    except UserError as error:
        assert "\n" not in str(error)
        str(error).encode()
        return None
    num_left_out = (
        sum(
            number
            for reason, number in found.notes.items()
            if reason.partition(",")[2] == " left out"
        )
        + found.notes["left out for its several labels"]
    )
    told = found.summary()
    assert not any("\n" in line for line in told)
    "".join(told).encode()
    num_no_sentence = found.notes["empty word, left out"] + found.notes["empty answer, left out"]
    assert len(found.examples) + found.bad_rows.total() + num_left_out - num_no_sentence == (
        found.num_rows
    ), told
    for example in found.examples:
        example.name.encode()
        if isinstance(example, TextExample):
            texts = [example.text_a, *([] if example.text_b is None else [example.text_b])]
            texts += example.labels or ()
            assert all(text.strip() for text in texts)
            assert (example.text_b is not None) == (task.startswith("pair"))
        elif isinstance(example, WordsExample):
            texts = [*example.words, *(example.tags or ())]
            assert all(text.strip() for text in texts)
            assert not is_labelled or len(example.tags or ()) == len(example.words)
        else:
            assert isinstance(example, QuestionExample)
            texts = [example.id, example.question, example.context]
            for answer in example.answers or ():
                assert answer.text.strip()
                if answer.start is not None:
                    assert example.context.startswith(answer.text, answer.start)
        "".join(texts).encode()
    return found


@functools.cache
def original(name: str) -> bytes:
    """A whole file of a layout."""
    with tempfile.TemporaryDirectory() as folder:
        return LAYOUTS[name][1](Path(folder)).read_bytes()


@functools.cache
def whole(name: str) -> Labelled:
    """What is read of it."""
    with tempfile.TemporaryDirectory() as folder:
        found = examined(LAYOUTS[name][0], str(LAYOUTS[name][1](Path(folder))), ReadConfig(), True)
    assert found is not None
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_whole_files_are_counted_alike(name: str) -> None:
    """Else the counts below would prove nothing."""
    found, count = whole(name), LAYOUTS[name][2]
    assert found.bad_rows == {}
    assert found.num_rows == count(original(name).decode().replace("\r", "\n")) >= 12


@pytest.mark.parametrize("name", LAYOUTS)
@FUZZ
@given(all_edits=edits, is_labelled=st.booleans())
def test_damaged_files_lose_nothing_in_silence(
    tmp_path: Path, name: str, all_edits: list[Edit], is_labelled: bool
) -> None:
    task, _, count = LAYOUTS[name]
    data = edited(original(name), all_edits)
    path = tmp_path / ("set.csv" if name in ("csv", "bars") else "set")
    path.write_bytes(data)
    found = examined(task, str(path), ReadConfig(max_bad_share=1.0), is_labelled)
    kind = whole(name).layout.split()[0]
    if found is None or found.layout.split()[0] != kind:
        return  # of another layout, and said so
    text = data.decode().lstrip("\ufeff").rstrip("\0")
    ends = "\r" if text.count("\r") > 2 * text.count("\n") else "\r\n"
    expected = count(text.replace(ends, "\n"))
    has_word = bool(found.bad_rows or found.notes)
    assert found.num_rows >= expected or has_word, (found.summary(), expected)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@FUZZ
@given(all_edits=edits)
def test_damaged_packed_files_are_whole_or_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes], all_edits: list[Edit]
) -> None:
    lines = original("tsv").splitlines(keepends=True)
    packed = pack(b"".join(lines[:9])) + pack(b"".join(lines[9:]))
    data = edited(packed, all_edits)
    (tmp_path / "set").write_bytes(data)
    found = examined(SENTENCE, str(tmp_path / "set"), ReadConfig(max_bad_share=1.0), True)
    if found is not None and data[:6] == packed[:6] and data[-4:] == packed[-4:]:
        assert found.num_rows >= len(lines) - 1


@FUZZ
@given(
    data=st.binary(max_size=400)
    | st.lists(st.sampled_from(TELLING), max_size=40).map(b"".join)
    | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")),
    task=st.sampled_from(TASKS),
    is_labelled=st.booleans(),
    draw=st.data(),
)
def test_arbitrary_bytes_are_examples_or_one_error(
    tmp_path: Path, data: bytes, task: str, is_labelled: bool, draw: st.DataObject
) -> None:
    (tmp_path / "set").write_bytes(data)
    names = ["", "", "", "0", "1", "text", "9" * 5000, "\u0663"]
    chosen = {
        "format": st.sampled_from(["auto", "auto", *FORMATS_OF[task]]),
        "separator": st.sampled_from(["auto", "auto", *SEPARATORS]),
        "header": st.sampled_from(["auto", "auto", "true", "false"]),
        "quoting": st.sampled_from(["auto", "auto", "true", "false"]),
        "text_column": st.sampled_from(names),
        "text_b_column": st.sampled_from(names),
        "label_column": st.sampled_from(names),
        "label_separator": st.sampled_from(["", "", ",", " "]),
        "drop_several_labels": st.booleans(),
        "token_column": st.sampled_from(names),
        "tag_column": st.sampled_from(names),
        "tag_scheme": st.sampled_from(["auto", "auto", "iob1", "iob2", "bioes"]),
        "labels": st.sampled_from(["", "", str(tmp_path / "names")]),
    }
    if "names" in str(chosen["labels"]):
        (tmp_path / "names").write_bytes(
            draw.draw(st.sampled_from([b"0\n1", b"O\nB-X\nI-X", data]))
        )
    drawn = {
        name: draw.draw(strategy, name)
        for name, strategy in chosen.items()
        if draw.draw(st.integers(0, 3)) == 0
    }
    try:
        config = ReadConfig(max_bad_share=1.0, **drawn)
    except UserError as error:
        assert "\n" not in str(error)
        return
    examined(task, str(tmp_path / "set"), config, is_labelled)
