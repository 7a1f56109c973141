"""Reads sentences of tagged words: CoNLL, UNER's iob2 and JSON lines."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.finetuning.examples import WordsExample
from dist_bert.finetuning.readers.labels import LabelRule, note_alike
from dist_bert.finetuning.readers.read_config import ReadConfig, column_number
from dist_bert.finetuning.readers.source import (
    first_lines,
    is_json,
    json_records,
    lines_of,
    read_text,
    shown,
    whole_characters,
)
from dist_bert.finetuning.readers.tags import Tag, parse_tag, scheme_of, to_iob2
from dist_bert.finetuning.readers.tally import RowError, Tally, wrong_columns

_TOKEN_FIELDS = ("tokens", "words")  # of JSON lines, in order of preference
_TAG_FIELDS = ("ner_tags", "tags", "labels")
_DOCUMENT = "-DOCSTART-"
# Column separator in files without tabs; a no-break space may be inside a word.
_BLANKS = re.compile(r"[ \t]+")
_NUMBER = re.compile(r"\d+([-.]\d+)?")  # 1-2 spans the words 1 and 2, 1.1 is not a word of the text
Row = list[tuple[str, Any, Any]] | RowError  # place, word and tag of each word


@dataclasses.dataclass(frozen=True)
class _Sentence:
    name: str
    words: list[str]
    tags: list[Tag]  # empty if not requested
    places: list[str]  # of each word


def tag_names(names: Sequence[str]) -> tuple[str, ...]:
    """The tags of a label list converted to IOB2, O first."""
    kinds = dict.fromkeys(kind for name in names if (kind := _listed_tag(name)[1]))
    return ("O", *(f"{letter}-{kind}" for kind in kinds for letter in "BI"))


def _listed_tag(name: str) -> Tag:
    try:
        return parse_tag(name)
    except RowError as bad:
        raise UserError(f"--labels: {bad.detail}; for words, list their tags") from None


def read_words(
    path: str,
    config: ReadConfig,
    names: tuple[str, ...] | None,
    is_labelled: bool,
    tally: Tally,
) -> tuple[list[WordsExample], str]:
    """Reads the examples of token_classification.

    Args:
        path: of a file.
        config: how to read it.
        names: the tags of the label list, if there is one.
        is_labelled: whether to read tags.
        tally: counts bad rows and corrections.

    Returns:
        The examples, and the layout that was read.
    """
    text = read_text(path)
    layout = _layout_of(text, path) if config.format == "auto" else config.format
    rule = LabelRule(names, "", missing=frozenset(), are_whole=names is not None)
    if layout == "jsonl":
        rows, told = _json_rows(text, path, config, is_labelled)
    else:
        rows, told = _column_rows(lines_of(text), path, layout == "iob2", config, is_labelled)
    sentences = []
    for place, row in rows:
        tally.num_rows += 1
        try:
            sentences.append(_sentence(place, row, rule, is_labelled, tally))
        except RowError as bad:
            tally.count_bad(place, bad)
    if not is_labelled:
        return [WordsExample(tuple(s.words), None, s.name) for s in sentences], told
    note_alike((kind for s in sentences for _, kind in s.tags if kind), path, tally)
    scheme = config.tag_scheme
    if scheme == "auto":
        scheme = scheme_of(sentence.tags for sentence in sentences)
    examples = []
    for sentence in sentences:
        try:
            examples.append(_example(sentence, scheme, tally))
        except RowError as bad:
            tally.count_bad(sentence.name, bad)
    return examples, f"{told}; tags in {scheme.upper()}"


def _layout_of(text: str, path: str) -> str:
    """Layout by the first lines: jsonl, iob2 or conll."""
    if is_json(text, path):
        return "jsonl"
    rows = [_cells(line, has_tabs=False) for line in first_lines(text) if not _is_comment(line)]
    is_numbered = all(len(row) > 1 and _NUMBER.fullmatch(row[0]) for row in rows)
    return "iob2" if rows and is_numbered else "conll"


def _is_comment(line: str) -> bool:
    """Whether a line is a comment of iob2; in other layouts, a word may begin so."""
    return line.startswith("#") and "\t" not in line


def _column_rows(
    lines: Sequence[str], path: str, is_iob2: bool, config: ReadConfig, is_labelled: bool
) -> tuple[list[tuple[str, Row]], str]:
    """Sentences with one word per line, columns separated by tabs, or else spaces."""
    # A comment precedes a sentence: it ends the previous one, like a blank line.
    blocks = [
        list(block)
        for is_border, block in itertools.groupby(
            enumerate(lines, 1),
            lambda item: _is_border(item[1]) or (is_iob2 and _is_comment(item[1])),
        )
        if not is_border
    ]
    all_words = [line for block in blocks for _, line in block]
    has_tabs = 2 * sum("\t" in line for line in all_words) > len(all_words)
    sizes = Counter(len(_cells(line, has_tabs)) for line in all_words)
    num_columns = sizes.most_common(1)[0][0] if sizes else 0
    usual_token, usual_tag = (1, 2) if is_iob2 else (0, max(num_columns - 1, 1))
    token = column_number(
        "token_column", config.token_column or str(usual_token), num_columns, path
    )
    tag = None
    if is_labelled:
        tag = column_number("tag_column", config.tag_column or str(usual_tag), num_columns, path)
    rows: list[tuple[str, Row]] = []
    for block in blocks:
        words: list[tuple[str, Any, Any]] = []
        for number, line in block:
            cells = _cells(line, has_tabs)
            place = f"{path}, line {number}"
            if len(cells) != num_columns:
                rows.append((place, wrong_columns(len(cells), num_columns)))
                break
            if not is_iob2 or cells[0].isdecimal():
                words.append((place, cells[token], None if tag is None else cells[tag]))
        else:
            rows.append((f"{path}, line {block[0][0]}", words))
    kind = "iob2" if is_iob2 else "CoNLL"
    told = f", tag: {tag}" if tag is not None else ""
    by = "tabs" if has_tabs else "spaces"
    return rows, f"{kind} with {num_columns} columns by {by}; token: {token}{told}"


def _is_border(line: str) -> bool:
    """Whether a line separates sentences: it is white space, or begins a document."""
    return not line.strip() or _cells(line, has_tabs=False)[0] == _DOCUMENT


def _cells(line: str, has_tabs: bool) -> list[str]:
    """The columns of a line."""
    if has_tabs:
        return [cell.strip() for cell in line.split("\t")]
    return _BLANKS.split(line.strip(" \t\r"))


def _json_rows(
    text: str, path: str, config: ReadConfig, is_labelled: bool
) -> tuple[list[tuple[str, Row]], str]:
    """Sentences from JSON objects with a list of words and one of tags."""
    records = json_records(text, path)
    fields = next((list(record) for _, record in records if record is not None), [])
    token = _field("token_column", config.token_column, _TOKEN_FIELDS, fields, path)
    tag = None
    if is_labelled:
        tag = _field("tag_column", config.tag_column, _TAG_FIELDS, fields, path)
    rows: list[tuple[str, Row]] = []
    for place, record in records:
        record = record or {}
        words = record.get(token)
        tags = words if tag is None else record.get(tag)
        if not (isinstance(words, list) and isinstance(tags, list) and len(words) == len(tags)):
            told = f"{token} is not a list" if tag is None else f"{token}, {tag}: not equal lists"
            rows.append((place, RowError("no list of words, or of as many tags", told)))
        else:
            rows.append((place, [(place, *pair) for pair in zip(words, tags, strict=True)]))
    told = f", tag: {tag}" if tag is not None else ""
    return rows, f"JSON lines; token: {token}{told}"


def _field(name: str, value: str, usual: Sequence[str], fields: Sequence[str], path: str) -> str:
    found = next((field for field in ([value] if value else usual) if field in fields), None)
    if found is None:
        raise UserError(
            f"{path}: has no field {value or ' or '.join(usual)}; give --{name}, one of"
            f" {', '.join(map(shown, fields)) or '(there is no JSON object)'}"
        )
    return found


def _sentence(place: str, row: Row, rule: LabelRule, is_labelled: bool, tally: Tally) -> _Sentence:
    if isinstance(row, RowError):
        raise row
    words, tags, places = [], [], []
    for word_place, word, tag in row:
        if not isinstance(word, str):
            raise RowError("word is no string", f"word {word!r} is not a string")
        word = whole_characters(word).strip()
        if not word:
            tally.note("empty word, left out", word_place)
            continue
        words.append(word)
        places.append(word_place)
        if is_labelled:
            tags.append(_tag(rule.label_of(tag), rule))
    if not words:
        raise RowError("no words")
    return _Sentence(place, words, tags, places)


def _tag(text: str, rule: LabelRule) -> Tag:
    if rule.names is None and text.isdecimal():
        raise RowError(
            "tag is a number",
            f"tag {text!r} is a number; list the tags in the order of their numbers in a file"
            " (--labels), or give another column (--tag_column)",
        )
    return parse_tag(text)


def _example(sentence: _Sentence, scheme: str, tally: Tally) -> WordsExample:
    tags, faults = to_iob2(sentence.tags, scheme)
    for index in faults:
        letter, kind = sentence.tags[index]
        tally.note(
            f"tag against its scheme, read as in {scheme.upper()}",
            sentence.places[index],
            f"tag {letter}-{kind} of {sentence.words[index]!r} is not valid here in"
            f" {scheme.upper()}; read as {tags[index]}",
        )
    return WordsExample(tuple(sentence.words), tuple(tags), sentence.name)
