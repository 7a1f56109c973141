"""Rules of normalising: joiners inside words, files of rules, and what the text decides."""

import random
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.errors import UserError
from dist_bert.huggingface.tokenizer import ODD_TEXTS, compare, fast_tokenizer, read_model
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.normalization import chosen
from dist_bert.tokenizer.tokenizer import Tokenizer, choose_normalization, train_tokenizer
from tests.support.corpus import chinese_sentences, english_sentences

JOINED = [
    "می\u200cخواهم به خانه\u200cها بروم.",
    "کتاب\u200cهای او را نمی\u200cخوانند.",
    "సాఫ్ట్\u200cవేర్ మరియు హార్డ్\u200cవేర్ ఉన్నాయి.",
]
PLAIN = english_sentences(500, seed=1) + chinese_sentences(200, seed=2)
# Of one and of several characters, to one, several and none.
RULES = "# a comment\n41\t61\n0042\t62 62\tB\n\n00e9\t65\n78\t\n2026\t2e 2e 2e\n9\t20\n65 302\tea\n"


def sentences() -> list[str]:
    rng = random.Random(3)
    return PLAIN + [" ".join(rng.sample(JOINED, 2)) for _ in range(300)]


def train(folder: Path, **settings: Any) -> Tokenizer:
    config = TokenizerConfig(vocab_size=640, character_coverage=1.0, **settings)
    return Tokenizer(train_tokenizer(sentences(), folder, config))


def test_the_text_decides_unless_the_settings_do() -> None:
    auto = TokenizerConfig()
    assert chosen(PLAIN, auto) == "nmt_nfkc"
    assert chosen([*PLAIN, *JOINED], auto) == "nfkc"
    assert chosen([], auto) == "nmt_nfkc"
    stray = "x" * 1_000 + " \u200c \u200cx x\u200c"
    assert chosen([stray] * 9, auto) == "nmt_nfkc", "outside words"
    assert chosen(["a\u200cb", *["a b"] * 1_000], auto) == "nmt_nfkc", "one in a thousand is stray"
    assert chosen(["a\u200cb", *["a b"] * 900], auto) == "nfkc"
    assert choose_normalization(JOINED, auto).normalization == "nfkc"
    for named in ("nmt_nfkc", "identity", "nfkc", "a/file"):
        assert chosen(JOINED, TokenizerConfig(normalization=named)) == named


@pytest.mark.parametrize("lower_case", [False, True])
def test_a_word_with_a_non_joiner_is_one_word(tmp_path: Path, lower_case: bool) -> None:
    tokenizer = train(tmp_path, lower_case=lower_case)
    word, two = "می\u200cخواهم", "می خواهم"
    assert tokenizer.encode(word) != tokenizer.encode(two)
    assert tokenizer.decode(tokenizer.encode(word)) == word
    starts = tokenizer.word_starts[tokenizer.encode(word)]
    assert starts.tolist() == [True] + [False] * (starts.size - 1), "masked as a whole"
    _, offsets = tokenizer.encode_with_offsets(f"او {word} ")
    own = [(begin, end) for begin, end in offsets.tolist() if 3 <= begin < end]
    assert (own[0][0], own[-1][1]) == (3, 3 + len(word))
    assert tokenizer.find_word(f"او {word}", word) is not None
    assert tokenizer.find_word(f"او {word}", "خواهم") is None, "a part of a word"
    assert tokenizer.encode("ＡＢ\t½\x01") == tokenizer.encode("AB 1⁄2"), "else as nmt_nfkc"
    plain = train(tmp_path, lower_case=lower_case, normalization="nmt_nfkc")
    assert plain.encode(word) == plain.encode(two)


def test_identity_changes_nothing_and_a_file_what_it_says(tmp_path: Path) -> None:
    identity = train(tmp_path / "identity", normalization="identity", byte_fallback=True)
    for text in ("ＡＢ", "e\u0301 é", "½…", "می\u200cخواهم"):
        assert identity.decode(identity.encode(text)) == text
    rules = tmp_path / "rules.tsv"
    rules.write_text(RULES)
    ruled = train(tmp_path / "ruled", normalization=str(rules), byte_fallback=True)
    for text, expected in {
        "ABé": "abbe",
        "axb…\tc": "ab... c",
        "e\u0302E\u0302": "êE\u0302",
    }.items():
        assert ruled.decode(ruled.encode(text)) == expected
    rules.rename(tmp_path / "elsewhere.tsv")
    again = train(
        tmp_path / "again", normalization=str(tmp_path / "elsewhere.tsv"), byte_fallback=True
    )
    assert again.fingerprint == ruled.fingerprint, "the path is not in the model"


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("normalization", ["nfkc", "nfkc, lower case", "identity", "rules"])
def test_the_export_has_the_same_ids(
    tmp_path: Path, normalization: str, byte_fallback: bool, model_type: str
) -> None:
    (tmp_path / "rules").write_text(RULES)
    name, _, lower_case = normalization.partition(", ")
    tokenizer = train(
        tmp_path,
        normalization=str(tmp_path / "rules") if name == "rules" else name,
        model_type=model_type,
        byte_fallback=byte_fallback,
        lower_case=bool(lower_case),
    )
    proto = read_model(tokenizer.path)
    fast = fast_tokenizer(proto)
    odd = [
        "[MASK]\u200cha",
        "a\u200c y \u200c z\u200d",
        "\u200cab",
        "e\u0301e\u0302Ax…\u3000\t B",
        *JOINED,
    ]
    texts = [*english_sentences(150, seed=5), *chinese_sentences(150, seed=6), *odd, *ODD_TEXTS]

    def encode(window: list[str]) -> list[list[int]]:
        return [made.ids for made in fast.encode_batch(window, add_special_tokens=False)]

    result = compare(tokenizer, proto, encode, texts)
    assert result.num_compared == len(texts)
    assert [d for d in result.differences if not d.is_tie] == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"cannot be read \(No such file"),
        (b"\xff", "it is not UTF-8"),
        (b"", "contains no rule"),
        (b"41\t61\nzz\t61", "line 2 is not a rule"),
        (b"\t61", "line 1 is not a rule"),
        (b"110000\t61", "line 1 is not a rule"),
        (b"d800\t61", "line 1 is not a rule"),
        (b"0\t61", "line 1 is not a rule"),
        (b"-41\t61", "line 1 is not a rule"),
    ],
)
def test_files_of_rules_that_do_not_do_are_one_line(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "rules").write_bytes(content)
    with pytest.raises(UserError, match=rf"^--normalization .*rules: .*{problem}") as caught:
        train(tmp_path, normalization=str(tmp_path / "rules"))
    assert "\n" not in str(caught.value)


def test_case_cannot_be_folded_by_other_rules() -> None:
    with pytest.raises(UserError, match="normalization = identity does not fold case"):
        TokenizerConfig(lower_case=True, normalization="identity")
