"""Converts tags of words from the schemes of data sets to IOB2.

IOB2 has B- at the start of every name and I- after it. IOB1 has B- only if a name directly follows
another of its type. BIOES (BILOU, BMES) has other letters for ends and for names of one word.
"""

from collections.abc import Iterable, Sequence

from dist_bert.finetuning.readers.tally import RowError

Tag = tuple[str, str]  # letter and type; ("O", "")

OUTSIDE: Tag = ("O", "")
_ENDS, _SINGLES = "EL", "SU"
_BEGINS = "B" + _SINGLES
_LETTERS = {"iob1": "BI", "iob2": "BI", "bioes": "BIM" + _ENDS + _SINGLES}


def parse_tag(text: str) -> Tag:
    """Letter and type of a tag; the type may contain hyphens.

    Raises:
        RowError: it is not a tag.
    """
    if text == "O":
        return OUTSIDE
    letter, hyphen, kind = text.partition("-")
    if not hyphen or not kind or len(letter) != 1 or letter not in _LETTERS["bioes"]:
        raise RowError(
            "unknown tag", f"tag {text!r} is neither O nor a letter, a hyphen and a type"
        )
    return letter, kind


def scheme_of(sentences: Iterable[Sequence[Tag]]) -> str:
    """The scheme of all tags of a file: iob1, iob2 or bioes."""
    num_bare_begins = num_needless_begins = 0  # invalid in IOB2, and in IOB1
    for tags in sentences:
        kind_before = ""
        for letter, kind in tags:
            if letter not in "BIO":
                return "bioes"
            num_bare_begins += letter == "I" and kind != kind_before
            num_needless_begins += letter == "B" and kind != kind_before
            kind_before = kind
    return "iob1" if num_bare_begins > num_needless_begins else "iob2"


def to_iob2(tags: Sequence[Tag], scheme: str) -> tuple[list[str], list[int]]:
    """Tags of a sentence in IOB2.

    Tags that the scheme does not allow are read as in conlleval: a tag that does not continue a
    name of its type begins one, and a name without its end tag has ended.

    Args:
        tags: of its words.
        scheme: of the tags.

    Returns:
        The tags, and the indices of those that the scheme does not allow at their place.

    Raises:
        RowError: a tag's letter is not in the scheme.
    """
    converted, faults = [], set()
    kind_open = ""  # of a name that may continue
    for index, (letter, kind) in enumerate(tags):
        if letter not in _LETTERS[scheme] + "O":
            raise RowError("unknown tag", f"tag {letter}-{kind} is not in the scheme {scheme}")
        goes_on = letter not in _BEGINS and kind != "" and kind == kind_open
        is_bare = not goes_on and letter not in _BEGINS + "O" and scheme != "iob1"
        lacks_end = scheme == "bioes" and kind_open != "" and not goes_on
        if is_bare:
            faults.add(index)
        if lacks_end:
            faults.add(index - 1)
        converted.append("O" if not kind else f"{'I' if goes_on else 'B'}-{kind}")
        kind_open = "" if letter in _ENDS + _SINGLES else kind
    if scheme == "bioes" and kind_open:
        faults.add(len(tags) - 1)
    return converted, sorted(faults)
