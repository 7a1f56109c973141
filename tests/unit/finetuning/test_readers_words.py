"""Readers of tagged words: CoNLL, iob2, JSON lines, and the schemes of tags."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.errors import UserError
from dist_bert.finetuning.examples import WordsExample
from dist_bert.finetuning.readers import Labelled, ReadConfig, read_examples

Sentence = tuple[str, str | None]  # words and tags, a space between


def read(path: Path, is_labelled: bool = True, **settings: Any) -> Labelled:
    return read_examples("token_classification", str(path), ReadConfig(**settings), is_labelled)


def sentences_of(labelled: Labelled) -> list[Sentence]:
    found: list[Sentence] = []
    for example in labelled.examples:
        assert isinstance(example, WordsExample)
        tags = example.tags
        assert tags is None or len(tags) == len(example.words)
        found.append((" ".join(example.words), None if tags is None else " ".join(tags)))
    return found


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "set"
        path.write_bytes(text.encode())
        return path

    return write


File = Callable[[str], Path]


def of_tags(tags: str) -> str:
    """A sentence whose words are numbers."""
    return "".join(f"w{i} {tag}\n" for i, tag in enumerate(tags.split())) + "\n"


def test_conll_by_tabs_with_odd_separators(file: File) -> None:
    path = file(
        "#tag\tB-creative-work\n# \tI-creative-work\nof\tO\n\t\nAda\tB-person\n  \n\n \t \n"
        "#end\tO\nke s \tO"
    )
    found = read(path)
    assert sentences_of(found) == [
        ("#tag # of", "B-creative-work I-creative-work O"),
        ("Ada", "B-person"),
        ("#end ke s", "O O"),
    ]
    assert found.examples[2].words == ("#end", "ke s")  # type: ignore[union-attr]
    assert [example.name for example in found.examples] == [
        *(f"{path}, line 1", f"{path}, line 5", f"{path}, line 9")
    ]
    assert found.layout == "CoNLL with 2 columns by tabs; token: 0, tag: 1; tags in IOB2"
    assert (found.num_rows, found.bad_rows, found.notes) == (3, {}, {})


def test_conll_of_four_columns_by_spaces(file: File) -> None:
    text = (
        "-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nsays VBZ  I-VP O \n\n"
        "-DOCSTART- -X- -X- O\nHi UH O O\n"
    )
    found = read(file(text), tag_scheme="iob1")
    assert sentences_of(found) == [("U.N. says", "B-ORG O"), ("Hi", "O")]
    assert found.layout == "CoNLL with 4 columns by spaces; token: 0, tag: 3; tags in IOB1"
    chosen = read(file(text.replace(" O\n", " I-A\n")), token_column="1", tag_column="2")
    assert sentences_of(chosen) == [("NNP VBZ", "B-NP B-VP"), ("UH", "O")]
    assert sentences_of(read(file(text), is_labelled=False)) == [("U.N. says", None), ("Hi", None)]


def test_iob2_has_numbers_comments_and_ranges(file: File) -> None:
    path = file(
        "# newdoc id = a\n# text = # du Rhin\n1-2\tdu\t_\t-\t-\n1\tde\tO\t-\t-\n2\tle\tO\t-\t\n"
        "3\tRhin\tB-LOC\t-\tann\n3.1\tempty\tO\t-\t-\n\n#text\n1\t#\tO\t-\tann\n"
    )
    found = read(path)
    assert sentences_of(found) == [("de le Rhin", "O O B-LOC"), ("#", "O")]
    assert found.layout == "iob2 with 5 columns by tabs; token: 1, tag: 2; tags in IOB2"
    assert sentences_of(read(path, False)) == [("de le Rhin", None), ("#", None)]
    assert found.bad_rows == {}
    with pytest.raises(UserError, match="line 1: number of columns is 1, that of the file is 5"):
        read(path, format="conll")
    joined = file("1\ta\tO\n# text = b\n1\tb\tO\n")
    assert sentences_of(read(joined)) == [("a", "O"), ("b", "O")]


def test_json_lines(file: File, tmp_path: Path) -> None:
    names = tmp_path / "tags.txt"
    names.write_text("O\nB-PER\nI-PER\nB-LOC\nI-LOC\n")
    path = file(
        '{"id": 1, "tokens": ["Ada", "L", "in"], "ner_tags": [1, 2, 0]}\n'
        '{"tokens": ["Rome"], "ner_tags": ["B-LOC"]}\n'
    )
    found = read(path, labels=str(names))
    assert sentences_of(found) == [("Ada L in", "B-PER I-PER O"), ("Rome", "B-LOC")]
    assert found.label_names == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert found.layout == "JSON lines; token: tokens, tag: ner_tags; tags in IOB2"
    assert sentences_of(read(path, False)) == [("Ada L in", None), ("Rome", None)]
    bad = read(
        file(
            '{"w": ["a"], "t": ["O"]}\n{"w": ["a"], "t": ["O", "O"]}\n{"w": 3}\n[]\n'
            '{"w": [3], "t": ["O"]}\n'
        ),
        token_column="w",
        tag_column="t",
        max_bad_share=0.9,
    )
    assert sentences_of(bad) == [("a", "O")]
    assert bad.bad_rows == {"no list of words, or of as many tags": 3, "word is no string": 1}
    with pytest.raises(
        UserError, match="no field tokens or words; give --token_column, one of w, t"
    ):
        read(file('{"w": ["a"], "t": ["O"]}'))
    names.write_text("PER\nLOC\n")
    with pytest.raises(UserError, match="--labels: tag 'PER' is neither O nor"):
        read(path, labels=str(names))


@pytest.mark.parametrize(
    "tags,scheme,expected",
    [
        ("B-A I-A O B-A B-A", "IOB2", "B-A I-A O B-A B-A"),
        ("I-A I-A O I-A B-A I-B", "IOB1", "B-A I-A O B-A B-A B-B"),
        ("I-A O I-B I-B", "IOB1", "B-A O B-B I-B"),
        ("B-A E-A S-A O B-B I-B E-B", "BIOES", "B-A I-A B-A O B-B I-B I-B"),
        ("B-A L-A U-A O B-B I-B L-B", "BIOES", "B-A I-A B-A O B-B I-B I-B"),
        ("B-A M-A E-A S-a-b O", "BIOES", "B-A I-A I-A B-a-b O"),
        ("O O", "IOB2", "O O"),
    ],
)
def test_schemes_are_told_by_all_tags_and_become_iob2(
    file: File, tags: str, scheme: str, expected: str
) -> None:
    found = read(file(of_tags("O O") + of_tags(tags)))
    assert found.layout.endswith(f"tags in {scheme}")
    assert sentences_of(found)[1][1] == expected
    assert (found.notes, found.bad_rows) == ({}, {})


@pytest.mark.parametrize(
    "tags,scheme,expected,faults",
    [
        ("B-A O I-A I-B B-C I-D I-D", "iob2", "B-A O B-A B-B B-C B-D I-D", [2, 3, 5]),
        ("I-A O B-A I-A I-A", "iob1", "B-A O B-A I-A I-A", []),
        ("E-A O B-A B-A E-A I-A S-A E-A", "bioes", "B-A O B-A B-A I-A B-A B-A B-A", [0, 2, 5, 7]),
        ("B-A I-B E-B O B-A I-A", "bioes", "B-A B-B I-B O B-A I-A", [0, 1, 5]),
    ],
)
def test_tags_against_the_scheme_are_mended_and_named(
    file: File, tags: str, scheme: str, expected: str, faults: list[int]
) -> None:
    path = file(of_tags(tags))
    found = read(path, tag_scheme=scheme)
    assert sentences_of(found)[0][1] == expected
    assert found.notes.total() == len(faults)
    assert [told.partition(" of ")[0] for told in found.first_bad] == [
        f"{path}, line {i + 1}: tag {tags.split()[i]}" for i in faults
    ]


def test_the_first_sentences_do_not_tell_the_scheme_alone(file: File) -> None:
    """Of one I- without a B- and many needless B-, the I- is the fault."""
    found = read(file(of_tags("I-A O") + of_tags("B-A I-A") * 2))
    assert found.layout.endswith("IOB2")
    assert found.notes == {"tag against its scheme, read as in IOB2": 1}
    assert found.first_bad[0].endswith(
        "set, line 1: tag I-A of 'w0' is not valid here in IOB2; read as B-A"
    )


def test_columns_are_divided_at_spaces_and_tabs_alone(file: File) -> None:
    """A no-break space stands inside of a word; so may what Python splits at, too."""
    words = ["10\u00a0000", "a\u202fb", "c\u3000d", "e\x85f", "g\x1fh"]
    for separator in (" ", "  \t"[:2], "\t"):
        text = "".join(f"{word}{separator}NN{separator}O\n" for word in words)
        found = read(file(text))
        assert found.examples[0].words == tuple(words)  # type: ignore[union-attr]
        assert (found.bad_rows, found.notes) == ({}, {})
    numbered = "".join(f"{i + 1}\t{word}\tO\n" for i, word in enumerate(words))
    assert read(file(numbered)).layout.startswith("iob2 with 3 columns by tabs")
    assert read(file(numbered)).examples[0].words == tuple(words)  # type: ignore[union-attr]


def test_tags_that_are_numbers_need_their_names(file: File, tmp_path: Path) -> None:
    told = r"tag '3' is a number; list the tags in the order of their numbers in a file .--labels"
    for text in ("a O\nb 3\n", '{"tokens": ["a", "b"], "ner_tags": [0, 3]}\n'):
        with pytest.raises(UserError, match=told.replace("3", "[03]")):
            read(file(text))
    names = tmp_path / "tags"
    names.write_text("O\nB-PER\nI-PER\nB-LOC\nI-LOC\n")
    text = '{"tokens": ["a", "b"], "ner_tags": [0.0, 3.0]}\n'
    assert sentences_of(read(file(text), labels=str(names))) == [("a b", "O B-LOC")]


def test_types_that_differ_only_in_case_are_named(file: File) -> None:
    found = read(file(of_tags("B-PER I-PER O B-Per")))
    assert found.notes == {"labels that differ only in case or blanks": 1}
    assert "labels 'PER' (2), 'Per' (1) differ only in case" in found.first_bad[0]


def test_a_json_list_of_sentences(file: File) -> None:
    found = read(file('[{"tokens": ["a"], "tags": ["O"]},\n {"tokens": ["b"], "tags": ["B-X"]}]'))
    assert sentences_of(found) == [("a", "O"), ("b", "B-X")]
    assert found.examples[1].name.endswith("set, [1]")


def test_bad_sentences_are_left_out_and_named(file: File) -> None:
    path = file("a\tO\n\nb\tO\tO\nc\tO\n\nd\tPER\n\n\tB-A\n\n \tB-A\ne\tI-A\n\nf\tE-A\n")
    found = read(path, tag_scheme="iob2", max_bad_share=0.9)
    assert sentences_of(found) == [("a", "O"), ("e", "B-A")]
    assert found.num_rows == 6
    assert found.bad_rows == {"wrong number of columns": 1, "unknown tag": 2, "no words": 1}
    assert found.notes["empty word, left out"] == 2
    assert found.first_bad[:4] == [
        f"{path}, line 3: number of columns is 3, that of the file is 2",
        f"{path}, line 6: tag 'PER' is neither O nor a letter, a hyphen and a type",
        f"{path}, line 8: no words",
        f"{path}, line 13: tag E-A is not in the scheme iob2",
    ]
    with pytest.raises(
        UserError, match=r"line 3: number of columns is 3, .*\(4 of 6 rows of .*max_bad_share"
    ):
        read(path, tag_scheme="iob2")


@pytest.mark.parametrize(
    "text,settings,problem",
    [
        ("a\nb\n", {}, "no column '1' .--tag_column.; it has 1, counted from 0"),
        ("a O\n", {"tag_column": "2"}, "no column '2' .--tag_column.; it has 2, counted"),
        ("a O\n", {"token_column": "word"}, "no column 'word' .--token_column."),
        ("-DOCSTART- O\n", {}, "no column '0' .--token_column.; it has 0, counted"),
        ("a O\n", {"format": "tsv"}, "format = tsv: must be one of conll"),
        ("a O\n", {"header": "true"}, "header = true: has no effect on token_classification"),
        ("", {}, "is empty"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    file: File, text: str, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        read(file(text), **settings)


def test_words_without_tags(file: File) -> None:
    found = read(file("1 2\n\na\nb\n\nc\n"), is_labelled=False, max_bad_share=0.5)
    assert sentences_of(found) == [("a b", None), ("c", None)]
    assert found.bad_rows == {"wrong number of columns": 1}
