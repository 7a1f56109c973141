"""Sentence ends: a gold text with the hard cases, English and Chinese, and layouts of lines."""

import random
import re
import textwrap
import time

import pytest

from data_prep.punctuation import (
    RARE_SENTENCE_TERMINALS,
    RARE_TERMINAL_PUNCTUATION,
    SENTENCE_TERMINALS,
    TERMINAL_PUNCTUATION,
)
from data_prep.sentences import split_lines, split_sentences
from tests.support.corpus import chinese_sentences, english_sentences

# Paragraphs of our own, each a list of its sentences; every third or so is a trap.
ENGLISH = [
    [
        "Dr. Ellen M. Hartley arrived at St. Anne's on Jan. 5 with Mr. and Mrs. Poole.",
        "She carried 3.5 kg of seed, worth approx. $12.40, in a blue bag.",
        "Nobody met her at the gate.",
        '"Is anyone there?" she called.',
        '"Go away!" a voice answered.',
        "She did not go away.",
        "At 6 p.m. the lamps were lit.",
        "Prof. Grey had promised to come by 7 a.m. on Friday, i.e. two days earlier.",
    ],
    [
        "The firm of Baker, Lowe & Co. was founded in 1871.",
        "It moved to the U.S. in 1902.",
        "Its owner, J. R. Lowe Jr., never travelled.",
        "Why should he?",
        "He had clerks, agents, lawyers, etc., and all of them liked ships.",
        "They sold rope, canvas, tar, etc.",
        "The rest came from Hull.",
        "By 1910 the company was called Lowe Shipping Inc. and had forty ships.",
        "See Fig. 3 and pp. 14-19 of vol. 2 for the accounts.",
        "No. 7 on the list is missing.",
        "Was it stolen?",
        "No.",
        "It was burnt.",
    ],
    [
        "“I never saw him,” said Nora.",
        "“Not once?”",
        "“Not once.”",
        "The inspector wrote that down.",
        "“You live at 14 Mill Rd., do you not?” he asked.",
        "“I do.”",
        "(He knew it already.)",
        "“And your brother?” Inspector Wells asked.",
        "“He lives there too... when he is home.”",
        "“Hm!” said Wells.",
        "He closed the book.",
    ],
    [
        "Wait... what was that?",
        "It was only the wind.",
        "The old house (built ca. 1740) creaked and sighed.",
        "What a night!",
        "Well ... I shall not forget it.",
        "The clock struck twelve…",
        "Then it struck thirteen.",
        "“Thirteen!” cried Tom.",
        "He counted again, e.g. with his fingers, but it was no use.",
    ],
    [
        "Version 2.10.3 was released on 4 Oct. 2021 by the group.",
        "It needs at least 1.5 GB of memory vs. 2 GB before.",
        "The file config.json holds the settings; see www.example.org for more.",
        "Does it run on a small machine?",
        "Yes!",
        "It even runs on a telephone.",
        "The authors (Lee et al. 2019) report a gain of 0.4 points.",
        "Other groups, cf. Sec. 4, found less.",
        "In the U.K. it was sold under another name.",
        "That was in Nov. 1988.",
    ],
    [
        "Gen. Stone and Lt. Col. Marsh inspected the fort.",
        "Their report ran to 312 pages.",
        "“Too long,” the Gov. remarked, and he was right.",
        "Sgt. Hill had counted 1,204 barrels; Capt. Moor had counted 1,198.",
        "Who was right?",
        "It did not matter.",
        "By noon they had left for Mt. Arden.",
        "The road was poor (very poor!) and the mules were tired.",
        "They arrived at 9 p.m.",
        "They slept at once.",
        "Morning came too soon.",
    ],
    [
        "A letter lay on the table.",
        "It was signed “T. S. Brown, M.A.” in red ink.",
        "Brown had a Ph.D. in history and no manners.",
        "“Dear Sir,” it began, “I must insist.”",
        "I read it twice.",
        "Then I read it to my wife, who laughed.",
        "“Will you answer?” she asked.",
        "“Never!”",
        "But I did, of course.",
        "My answer was short: “Dear Mr. Brown, no.”",
        "So ended the matter [12].",
        "The footnote says otherwise.[13]",
        "Footnotes often do.",
    ],
    [
        "The meeting began at 10 a.m. sharp.",
        "Sen. Alvarez spoke first, then Rep. Kim.",
        "“Is this legal?” asked Sen. Alvarez.",
        "Rule No. 12 says so; Art. 4 does not.",
        "Messrs. Hale and Finch agreed.",
        "A vote was taken.",
        "It passed 31 to 9!",
    ],
]
CHINESE = [
    ["老师昨天来了。", "他说：“今天不上课。”", "学生们很高兴！", "真的吗？", "当然是真的。"],
    ["“你去哪儿？”母亲问。", "“我去图书馆。”", "她点了点头……", "天黑以前他回来了。"],
    ["「我們走吧。」", "他站起來，關上燈。", "（燈是新買的。）", "門外下著雨！", "誰也沒有說話。"],
    ["圆周率约为3.14。", "2003年的论文见《数学学报》。", "价格是多少？", "太贵了！！", "算了吧。"],
    ["这家公司叫ABC Inc.的分公司。", "它在Yahoo!上做广告。", "你听说过吗?", "没有!", "我也没有。"],
]


def f1(gold: list[str], found: list[str]) -> float:
    """Of sentence ends, as offsets into the text without spaces."""

    def ends(sentences: list[str]) -> set[int]:
        lengths = [len("".join(s.split())) for s in sentences]
        return {sum(lengths[: i + 1]) for i in range(len(lengths))}

    right = len(ends(gold) & ends(found))
    return 2 * right / (len(ends(gold)) + len(ends(found)))


def test_english_gold_text() -> None:
    gold = [sentence for paragraph in ENGLISH for sentence in paragraph]
    assert len(gold) >= 80
    found = split_sentences("\n\n".join(" ".join(paragraph) for paragraph in ENGLISH))
    missed = sorted(set(found) ^ set(gold))
    assert f1(gold, found) >= 0.96, missed


def test_hard_wrapped_english_gives_the_same_sentences() -> None:
    text = "\n\n".join(textwrap.fill(" ".join(paragraph), 67) for paragraph in ENGLISH)
    joined = split_sentences("\n\n".join(" ".join(paragraph) for paragraph in ENGLISH))
    assert split_sentences(text) == joined
    indented = textwrap.indent(text, "    ")
    assert [" ".join(s.split()) for s in split_sentences(indented)] == joined


@pytest.mark.parametrize("gold", CHINESE)
def test_chinese_gold_text(gold: list[str]) -> None:
    assert split_sentences("".join(gold)) == gold


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He left. She stayed.", ["He left.", "She stayed."]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("It is (I think.) Then it was.", ["It is (I think.)", "Then it was."]),
        ("Mr. Smith met Dr. Jones.", ["Mr. Smith met Dr. Jones."]),
        ("It cost 3.50 dollars. Cheap!", ["It cost 3.50 dollars.", "Cheap!"]),
        ("1. Introduction follows. 2. Methods.", ["1. Introduction follows.", "2. Methods."]),
        ("No end mark", ["No end mark"]),
        ("“你好。”他笑了。", ["“你好。”", "他笑了。"]),
        ("“你好。”他说。", ["“你好。”他说。"]),
        ("Heading\n\nText here. More.", ["Heading", "Text here.", "More."]),
        ("", []),
        (" \n\n \n", []),
        ("...", ["..."]),
        ("Really?! Yes.", ["Really?!", "Yes."]),
        ("I saw J. K. Rowe. He saw me.", ["I saw J. K. Rowe.", "He saw me."]),
        ("So did I. Peter did not.", ["So did I.", "Peter did not."]),
        ("В г. Минске жил. Он умер.", ["В г. Минске жил.", "Он умер."]),
        ("Er kam z. B. über Wien. Über Wien?", ["Er kam z. B. über Wien.", "Über Wien?"]),
        ("又哭了。。真的", ["又哭了。。", "真的"]),
    ],
)
def test_single_rules(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_a_line_is_a_paragraph_unless_lines_are_wrapped() -> None:
    lines = ["A first title", *english_sentences(9, seed=3), "A second title"]
    assert split_sentences("\n".join(lines)) == lines


def test_a_short_line_ends_a_paragraph_of_wrapped_text() -> None:
    body = textwrap.fill(" ".join(english_sentences(9, seed=4)), 60)
    found = split_sentences(f"Chapter One\n{body}\nThe end of it\nChapter Two\n{body}")
    assert found[0] == "Chapter One"
    assert "Chapter Two" in found


# Three sentences in the marks of each script.
SCRIPTS = {
    "Hindi": ["वह घर गया।", "उसने खाना खाया ।", "क्या वह सोया?"],
    "Bengali": ["সে বাড়ি গেল।", "সে খেল।", "সে কি ঘুমাল?"],
    "Sanskrit": ["धर्मक्षेत्रे कुरुक्षेत्रे।", "मामकाः पाण्डवाश्चैव॥", "किमकुर्वत सञ्जय॥"],
    "Urdu": ["وہ گھر گیا۔", "اس نے کھانا کھایا۔", "کیا وہ سو گیا؟"],
    "Arabic": ["ذهب إلى البيت.", "أكل الطعام، ثم نام.", "هل نام؟"],
    "Armenian": ["Նա գնաց տուն։", "Նա կերավ։", "Նա քնեց։"],
    "Amharic": ["ወደ ቤት ሄደ።", "ምግብ በላ፡፡", "ተኛ፧"],
    "Khmer": ["គាត់ទៅផ្ទះ។", "គាត់ញ៉ាំបាយ។", "គាត់គេង៕"],
    "Burmese": ["သူအိမ်ပြန်သွားသည်။", "သူထမင်းစားသည်။", "သူအိပ်သည်။"],
    "Tibetan": ["ཁོ་ནང་ལ་ཕྱིན།", "ཁོས་ཁ་ལག་བཟས། །", "ཁོ་གཉིད།"],
    "Georgian": ["ის სახლში წავიდა.", "მან ჭამა.", "დაიძინა?"],
    "Greek": ["Πήγε σπίτι.", "Έφαγε π.χ. ψωμί.", "Κοιμήθηκε!"],
    "Russian": ["Он пошёл домой.", "Он ел, т. е. обедал.", "Он спал?"],
    "Mongolian": ["ᠲᠡᠷᠡ ᠭᠡᠷ ᠲᠡᠭᠡᠨ ᠶᠠᠪᠤᠪᠠ᠃", "ᠲᠡᠷᠡ ᠢᠳᠡᠪᠡ᠃", "ᠤᠨᠲᠠᠪᠠ᠃"],
    "Chakma": ["𑄃𑄟𑄢𑄴 𑄊𑄧𑄢𑄴𑅁", "𑄖𑄬 𑄈𑄬𑄣𑄧𑅁", "𑄖𑄬 𑄊𑄪𑄟𑄴 𑄉𑄬𑄣𑄧𑅃"],
    "full-width": ["これは文である．", "値は３．１４である．", "次の文だ．"],
}
SPACELESS = ("Hindi", "Bengali", "Urdu", "Burmese", "Khmer", "Amharic", "full-width")


@pytest.mark.parametrize("script", SCRIPTS)
def test_sentences_end_in_every_script(script: str) -> None:
    gold = SCRIPTS[script]
    assert split_sentences(" ".join(gold)) == gold
    if script in SPACELESS:
        assert split_sentences("".join(gold)) == gold


def test_the_marks_are_those_of_the_standard() -> None:
    regex = pytest.importorskip("regex")
    classes = {
        "Sentence_Terminal": SENTENCE_TERMINALS + RARE_SENTENCE_TERMINALS,
        "Terminal_Punctuation": TERMINAL_PUNCTUATION + RARE_TERMINAL_PUNCTUATION,
    }
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    for name, characters in classes.items():
        assert re.findall(f"[{characters}]", everything) == regex.findall(
            rf"\\p{{{name}}}".replace("\\\\", "\\"), everything
        )
    assert max(SENTENCE_TERMINALS + TERMINAL_PUNCTUATION) <= "\uffff"


def test_no_character_is_lost_in_random_text() -> None:
    rng = random.Random(5)
    alphabet = "abAB 12.。!?！？…”\"'」）) \n\n\n,，中文[]:;-।॥۔؟։።፡།𑅁．क"
    for _ in range(500):
        text = "".join(rng.choices(alphabet, k=rng.randrange(60)))
        sentences = split_sentences(text)
        assert "".join("".join(sentences).split()) == "".join(text.split())
        assert all(s.strip() == s and s and "\n" not in s for s in sentences)


def test_lines_are_taken_as_they_are() -> None:
    assert split_lines(" One. Two.\nThree \n\n") == ["One. Two.", "Three"]


def test_templates_come_apart_again() -> None:
    english, chinese = english_sentences(700, seed=6), chinese_sentences(300, seed=7)
    assert split_sentences(" ".join(english)) == english
    assert split_sentences("".join(chinese)) == chinese


def test_splitting_is_fast_and_linear() -> None:
    text = " ".join(english_sentences(20_000, seed=8))
    start = time.process_time()
    split_sentences(text)
    seconds = time.process_time() - start
    assert len(text) / seconds > 5e6, "some 30 MB/s on an idle core"
    start = time.process_time()
    split_sentences("." * 200_000 + '"' * 200_000 + " ." * 200_000)
    split_sentences("!" * 500_000 + "x")
    split_sentences("a. " * 200_000)
    assert time.process_time() - start < 5.0
