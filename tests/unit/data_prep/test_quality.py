"""Quality: what is asked for is kept and mended, the rest is counted, nothing else is touched."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from data_prep.corpus import read_sentences
from data_prep.inputs import whole_file
from data_prep.prepare_config import TextConfig
from data_prep.quality import kept
from data_prep.readers.source import Document, RecordTally
from dist_bert.common.errors import UserError

DOCUMENTS = [
    Document("four", "en"),
    Document("", "EN-us"),
    Document("a long text", "en_XX"),
    Document("vier", "de"),
    Document("eng", "eng"),
    Document("unnamed"),
    Document("中文", "zh-Hant"),
]


def keep(config: TextConfig, documents: list[Document]) -> tuple[list[str], dict[str, int]]:
    drops: Counter[str] = Counter()
    return [document.text for document in kept(documents, config, drops)], dict(drops)


def test_nothing_happens_unless_asked_for() -> None:
    drops: Counter[str] = Counter()
    broken = [*DOCUMENTS, Document("schÃ¶n\x07")]
    assert list(kept(iter(broken), TextConfig(), drops)) == broken
    assert not drops


@pytest.mark.parametrize(
    ("languages", "expected"),
    [
        ("en", ["four", "", "a long text"]),
        (" En ,DE,", ["four", "", "a long text", "vier"]),
        ("en-US", [""]),
        ("en_xx", ["a long text"]),
        ("zh,eng", ["eng", "中文"]),
        ("zh-Hant", ["中文"]),
        ("fr", []),
        (" , ", [document.text for document in DOCUMENTS]),
    ],
)
def test_languages_are_compared_by_their_first_part(languages: str, expected: list[str]) -> None:
    texts, drops = keep(TextConfig(languages=languages), DOCUMENTS)
    assert texts == expected
    assert drops.get("other_language", 0) == len(DOCUMENTS) - len(expected)
    assert drops.keys() <= {"other_language"}


def test_lengths_are_in_characters_and_both_bounds_are_kept() -> None:
    texts, drops = keep(TextConfig(min_characters=4, max_characters=7), DOCUMENTS)
    assert texts == ["four", "vier", "unnamed"]
    assert drops == {"too_short": 3, "too_long": 1}
    texts, drops = keep(TextConfig(max_characters=4), DOCUMENTS)
    assert texts == ["four", "", "vier", "eng", "中文"], "an empty document is counted later"
    assert drops == {"too_long": 2}


@pytest.mark.parametrize(
    ("broken", "right"),
    [
        ("schÃ¶n and cafÃ©", "schön and café"),
        ("dâ€™Artagnan said â€œnoâ€\x9d", "d’Artagnan said “no”"),
        ("ä¸\xadæ–‡çš„å\xad—", "中文的字"),
        ("rang\x07 the bell\x00", "rang the bell"),
        ("line\x85s", "line…s"),
    ],
)
def test_what_was_decoded_wrongly_is_mended(broken: str, right: str) -> None:
    pytest.importorskip("ftfy")
    documents = [Document(f"First line.\n{broken}\n", "en")]
    assert keep(TextConfig(repair_unicode=True), documents)[0] == [f"First line.\n{right}\n"]


@pytest.mark.parametrize(
    "text",
    [
        "He said “yes” – it’s ‘fine’…",
        "ﬁne ﬂow, œuvre, Æsop",
        "中文，（全角）：ＡＢＣ１２３！",
        "ｶﾀｶﾅ",
        "&lt;b&gt; &amp; &eacute;",
        "e\u0301 and é, 10³ µm",
        "tabs\tand\n\nparagraphs\nhere",
        "two\u2028lines\u2029three",
        "naïve façade, Ã is a letter, São Tomé",
        "नमस्ते\u200d और \u200cમ",
        "😀👨\u200d👩\u200d👧",
    ],
)
def test_what_is_right_stays(text: str) -> None:
    pytest.importorskip("ftfy")
    assert keep(TextConfig(repair_unicode=True), [Document(text)])[0] == [text]


def test_lengths_are_those_of_the_mended_text() -> None:
    pytest.importorskip("ftfy")
    config = TextConfig(repair_unicode=True, max_characters=5)
    assert keep(config, [Document("schÃ¶n")]) == (["schön"], {})


def test_a_missing_ftfy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UserError, match="repair_unicode: needs the package ftfy"):
        keep(TextConfig(repair_unicode=True), DOCUMENTS)
    assert keep(TextConfig(), DOCUMENTS)[0], "it is not needed otherwise"


def test_a_corpus_is_read_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "One. Two.", "lang": "en"}\n{"text": "Eins.", "lang": "de"}\n'
        '{"text": "x", "lang": "en"}\n'
    )
    tally = RecordTally(str(path), 0.0)
    config = TextConfig(languages="en", min_characters=3)
    documents = list(read_sentences(whole_file(str(path)), config, tally))
    assert documents == [("One. Two.", ["One.", "Two."])]
    assert tally.drops == {"other_language": 1, "too_short": 1}
