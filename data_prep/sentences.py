"""Splits a document into sentences by rules, for the punctuation of all scripts.

A regular expression proposes ends: the marks that Unicode calls sentence terminals. A proposal
after a full stop is checked against abbreviations, initials and list numbers. Paragraphs always end
a sentence; hard-wrapped lines are joined. The rules know English abbreviations and attributions
("...?" Tom asked); other Latin languages work well without. In scripts without such marks (Thai,
Lao), a paragraph is one sentence. Not for: sentences that are too long (`data_prep.clauses`).

Sources: Unicode Standard Annex 29, section 5, "Sentence Boundaries", for the kinds of marks and
for lower case after a full stop; Kiss and Strunk 2006, "Unsupervised multilingual sentence boundary
detection", for the classes of words: they sort full stops into abbreviation, initial and ordinal,
and check the next word.
"""

import re

from data_prep.punctuation import RARE_SENTENCE_TERMINALS, SENTENCE_TERMINALS

_OPENERS = "\"'“‘«\\(\\[{「『（【《〈*_"
_CLOSERS = "\"'”’»)\\]}」』）】》〉*_"
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# In addition to Unicode's terminals: the ellipsis, Tibetan shads, which end a clause or a sentence,
# and the Ethiopic word space; two of those make a full stop (`_is_end` checks this).
_SHADS = "\u0f0d-\u0f12"
_MARKS = f"{SENTENCE_TERMINALS}…{_SHADS}\u1361"
_FULL_STOPS = ".\u2024\ufe52\uff0e"  # UAX 29's ATerm: also in numbers and abbreviations
_NO_SPACE_MARKS = _MARKS.replace("!.?", "").replace("…", "").replace("\u2024", "")
_COMMAS = ",;:，、；：\u060c\u061b"
_ASKING = f"{_FULL_STOPS}!?"  # followed by a space in scripts that have spaces
_WORD_SPACE = "\u1361"
_LONGEST_LIST_NUMBER = 32  # characters, with brackets and spaces


def _proposal(rare: str) -> re.Pattern[str]:
    """Marks with their closing quotes and notes; group 1 matches where they may end a sentence.

    The next characters are a space and a possible sentence start, or, for scripts without spaces,
    any letter. The possessive `+` keeps closing quotes with their sentence: backtracking would
    split before a quote. A run of marks is one match, proposed or not, so no run is scanned twice.

    Args:
        rare: terminals to look for besides the usual ones.
    """
    return re.compile(
        rf"[{_MARKS}{rare}]++(?: ?[{_SHADS}]+)*+(?:\[\d+\])*+[{_CLOSERS}…]*+"
        rf"(?:(?=\s+[{_OPENERS}—–-]*+[^\sa-z{_COMMAS}]|[{_CJK}“‘「『《（]"
        rf"|(?<=[{_NO_SPACE_MARKS}{rare}”’」』）】])[^\sa-z{_COMMAS}])())?"
    )


_PROPOSAL, _RARE_PROPOSAL = _proposal(""), _proposal(RARE_SENTENCE_TERMINALS)
_NEXT_WORD = re.compile(rf"\s+[{_OPENERS}—–-]*+(\w+)")
_LIST_NUMBER = re.compile(r"\(?(?:\d+|[a-z]|[ivx]+)$")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A sentence never ends after these: a name, an example or a case follows.
_TITLES = _words(
    "mr mrs ms messrs mme mlle dr drs prof rev revd hon gen col capt cpt lt sgt maj cpl cmdr gov"
    " sen rep pres supt insp adm brig esq st mt ft fr e.g i.e eg ie cf vs viz approx resp ca"
)
# Abbreviations before a number: "No. 5", "Jan. 3", "pp. 7-9".
_BEFORE_NUMBERS = _words(
    "no nos nr fig figs vol vols p pp ch chap sec art eq eqs op cl tab ref par verse lib"
    " jan feb mar apr jun jul aug sep sept oct nov dec"
)
# After these, a sentence ends only if the next word typically begins a sentence.
_ABBREVIATIONS = _words(
    "etc inc ltd co corp jr sr bros al dept est ave blvd rd min max avg tel ext misc ed eds trans"
    " jan feb mar apr jun jul aug sep sept oct nov dec"
)
_STARTERS = _words(
    "The He She It They We You I This That These Those There Here His Her Its Their Our My In On"
    " At By For From With As If When While Where After Before Since Although Though Because"
    " However But And Or So Yet Then Now What Why How Who Which All Some Many Most Both Each Every"
    " One Two Three No Not Nor Another Other Such Also Only Even During Under Over To Of An Once"
    " Until Unless Moreover Thus"
)
_ATTRIBUTION = re.compile(
    r"\s+(?:[A-Z][\w.'’-]*\s+){1,3}(?:said|says|asked|cried|replied|answered|exclaimed|shouted|whispered"
    r"|returned|demanded|inquired|enquired|added|called|muttered|murmured|remarked|repeated|continued)\b"
)
_CJK_ATTRIBUTION = re.compile(rf"[{_CJK}]{{0,5}}[说說道问問喊叫答曰]")

_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*")
_RUNNING_ON = re.compile(r"[a-z,;]\n[ \t]*[a-z]")
_LAYOUT_CHARACTERS = 1 << 16  # from the middle of a document, enough to detect wrapping
_WRAPPED_SHARE = 0.15  # of line breaks inside a phrase; near 0 with one paragraph per line


def split_sentences(text: str) -> list[str]:
    """Splits a document into non-empty sentences without line breaks; no word is lost."""
    sentences: list[str] = []
    has_rare = _has_rare_characters(text)
    for paragraph in _paragraphs(text):
        is_rare = has_rare and _has_rare_characters(paragraph)
        _split_paragraph(paragraph, _RARE_PROPOSAL if is_rare else _PROPOSAL, sentences)
    return sentences


def split_lines(text: str) -> list[str]:
    """The sentences of a document with one sentence per line."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def _has_rare_characters(text: str) -> bool:
    """Whether a character is beyond the Basic Multilingual Plane; 3 GB/s, faster than a regex."""
    return not text.isascii() and len(text.encode("utf-16-le", "surrogatepass")) > 2 * len(text)


def _paragraphs(text: str) -> list[str]:
    """Paragraphs on one line each: split at blank lines and at line breaks not due to wrapping."""
    if "\n" not in text:
        return [text]
    middle = max(len(text) - _LAYOUT_CHARACTERS, 0) // 2
    example = text[middle : middle + _LAYOUT_CHARACTERS]
    if len(_RUNNING_ON.findall(example)) < _WRAPPED_SHARE * example.count("\n"):
        return text.split("\n")
    widths = sorted(len(line) for line in example.split("\n") if line)
    short = widths[len(widths) * 9 // 10] * 6 // 10
    # A short line, before a line that does not continue it, is a heading or ends a paragraph.
    text = re.sub(
        rf"(?m)^(.{{1,{max(short, 1)}}})\n(?=[^a-z\n]*[^a-z\s])(?![ \t]*[a-z])", r"\1\n\n", text
    )
    return [paragraph.replace("\n", " ") for paragraph in _BLANK_LINE.split(text)]


def _split_paragraph(text: str, proposal: re.Pattern[str], sentences: list[str]) -> None:
    """Appends the sentences of one paragraph."""
    start = 0
    for marks in proposal.finditer(text):
        if marks.lastindex is None:
            continue
        mark, end = marks.span()
        if _is_end(text, start, mark, end):
            if sentence := text[start:end].strip():
                sentences.append(sentence)
            start = end
    if sentence := text[start:].strip():
        sentences.append(sentence)


def _is_end(text: str, start: int, mark: int, end: int) -> bool:
    """Whether a sentence that began at `start` ends with the marks in [mark, end)."""
    first = text[mark]
    if first in _ASKING and not text[end].isspace():
        before = text[mark - 1]
        if before.isascii() or (first in _FULL_STOPS and before.isdigit()):
            return False  # "ABC Inc.的", "Yahoo!上", "３．１４"; but "是吗?当然"
    if first == "…" or text[mark : mark + 2] == "..":
        return _next_word(text, end) != "I"
    if first == ".":
        return _full_stop_ends(text, start, mark, end)
    if first == _WORD_SPACE and text[mark + 1] != _WORD_SPACE:
        return False
    if end - mark == 1:
        return True
    # After closing quotes, an attribution may follow.
    is_latin = first in "!?" and _ATTRIBUTION.match(text, end)
    return not (is_latin or _CJK_ATTRIBUTION.match(text, end))


def _full_stop_ends(text: str, start: int, mark: int, end: int) -> bool:
    following = text[end + 1 : end + 2]
    if following > "\x7f" and following.title() != following:  # lower case, like a-z above
        return False
    word = text[max(start, mark - 16) : mark]
    word = word[word.rfind(" ") + 1 :].lstrip("\"'“‘«([{*_—-")
    lower = word.lower()
    if len(word) > 6 and "." not in word:  # longer than any abbreviation: most words
        return True
    if lower in _TITLES:
        return False
    is_near = mark - start <= _LONGEST_LIST_NUMBER
    if is_near and _LIST_NUMBER.match(lower) and text[start:mark].strip(" (") == word:
        return False  # "1. Introduction"
    if lower in _BEFORE_NUMBERS:
        following = _next_word(text, end)
        if following[:1].isdigit():
            return False
    is_initial = len(word) == 1 and word.isalpha() and word != "I"
    if is_initial or "." in word or lower in _ABBREVIATIONS:
        return _next_word(text, end) in _STARTERS
    return True


def _next_word(text: str, end: int) -> str:
    found = _NEXT_WORD.match(text, end)
    return found[1] if found else ""
