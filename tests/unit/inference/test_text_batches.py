"""Texts from files, and batches of similar length whose results come in order."""

import random
from pathlib import Path

import pytest

from dist_bert.common.errors import UserError
from dist_bert.inference import text_batches
from dist_bert.inference.text_batches import (
    Text,
    given_texts,
    map_in_batches,
    read_texts,
    require_utf8,
)


def test_lines_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone\r\n two \n三".encode())
    assert list(read_texts(str(path))) == [
        Text("one", f"{path}, line 1"),
        Text(" two ", f"{path}, line 2"),
        Text("三", f"{path}, line 3"),
    ]


def test_mistakes_in_a_file_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    for content, problem in (
        (b"one\n \nthree\n", "line 2: is empty; a text is wanted on every line"),
        (b"one\ntwo\n\xff\n", "line 3: is not UTF-8 "),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path}, {problem}"):
            list(read_texts(str(path)))
    path.write_bytes(b"")
    with pytest.raises(UserError, match=f"{path}: is empty; a text is wanted on every line"):
        list(read_texts(str(path)))
    with pytest.raises(UserError, match=r"--input .*nowhere: cannot be read \(No such file"):
        list(read_texts(str(tmp_path / "nowhere")))


def test_texts_are_typed_or_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\n")
    assert [text.text for text in given_texts(["a", "b"], None)] == ["a", "b"]
    assert [text.text for text in given_texts([], str(path))] == ["one"]
    for texts, file in (([], None), (["a"], str(path))):
        with pytest.raises(UserError, match="give either texts or --input FILE"):
            given_texts(texts, file)
    assert Text.given("x" * 70).name == f"text '{'x' * 60}...'"


def test_results_come_in_order_from_batches_of_similar_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_batches, "_WINDOW", 50)
    monkeypatch.setattr(text_batches, "_BATCH_TOKENS", 60)
    rng = random.Random(5)
    items = [(number, rng.randint(1, 70)) for number in range(120)]
    batches: list[list[int]] = []

    def compute(batch: list[tuple[int, int]]) -> list[int]:
        batches.append([length for _, length in batch])
        return [number * 3 for number, _ in batch]

    made = list(map_in_batches(compute, items, lambda item: item[1]))
    assert made == [number * 3 for number in range(120)]
    assert sum(map(len, batches)) == 120 and len(batches) < 120
    for lengths in batches:
        assert sum(lengths) <= 60 or len(lengths) == 1
        assert lengths == sorted(lengths, reverse=True)


def test_arguments_that_are_not_utf8_are_refused() -> None:
    typed = b"caf\xe9 [MASK]".decode(errors="surrogateescape")  # as Python gives them
    with pytest.raises(UserError, match=r"text 'caf.udce9 \[MASK\]': is not UTF-8"):
        given_texts(["fine", typed], None)
    assert require_utf8("café", "--word") == "café"
