"""Assigns the columns of a table to parts: by settings, by names in a header, by position.

Names take precedence over positions. A first column of consecutive numbers is an index, not a part.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from dist_bert.common.errors import UserError
from dist_bert.finetuning.readers.read_config import ReadConfig, column_number
from dist_bert.finetuning.readers.source import shown

TEXT, TEXT_B, LABEL = "text_column", "text_b_column", "label_column"  # parts, as settings call them

# Column names of public data sets, in order of preference.
_TEXT_NAMES = (
    *("text", "sentence", "text_a", "sentence1", "content", "review", "question"),
    *("utterance", "query", "tweet", "comment", "comment_text", "title", "document", "excerpt"),
)
_PAIR_NAMES = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("s1", "s2"),
    ("query", "passage"),
    ("text", "text_pair"),
)
_NUMBER_NAMES = (
    *("score", "similarity_score", "similarity", "relatedness_score", "relatedness"),
    *("rating", "stars"),
)
_CLASS_NAMES = (
    *("label", "gold_label", "labels", "category", "class", "intent", "emotion", "sentiment"),
    *("target", "topic", "is_duplicate", "label_text"),
)
# For regression, numeric names come first; for classes, last, since they may be ratings.
_SCORE_NAMES = (*_NUMBER_NAMES, *_CLASS_NAMES)
_LABEL_NAMES = (*_CLASS_NAMES, *_NUMBER_NAMES)
_ID_NAMES = ("id", "idx", "index", "guid", "uid")  # neither text nor label
_NAMELESS = re.compile(r"(Unnamed: \d+)?")  # as pandas writes and reads an index
_ENOUGH_ROWS = 20  # to see that a name is only in the first row


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The parts of an example."""

    is_pair: bool
    is_labelled: bool
    is_score: bool = False  # the label is a number

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts' settings: texts first, label last."""
        texts = (TEXT, TEXT_B) if self.is_pair else (TEXT,)
        return (*texts, LABEL) if self.is_labelled else texts


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table.

    Attributes:
        has_header: whether the first row has their names.
        is_named: whether each part's column is from a setting or a usual name, none by position.
        names: of all columns; their numbers if there is no header.
        index_of: part -> number of its column.
    """

    has_header: bool
    is_named: bool
    names: list[str]
    index_of: dict[str, int]

    def told(self) -> str:
        """The parts with their columns, as readable text."""
        return told(self.index_of, [self.names[index] for index in self.index_of.values()])


def told(parts: Iterable[str], columns: Iterable[str]) -> str:
    """Parts with the names of their columns, as readable text."""
    return ", ".join(
        f"{part.removesuffix('_column')}: {shown(name)}"
        for part, name in zip(parts, columns, strict=True)
    )


def find_columns(
    rows: Sequence[Sequence[str]], num_columns: int, wanted: Wanted, config: ReadConfig, path: str
) -> Columns:
    """Finds the columns of a table without bad rows.

    Args:
        rows: all of them; the first one may be a header.
        num_columns: of most rows.
        wanted: the parts needed.
        config: settings that name columns.
        path: of the file.

    Raises:
        UserError: a column is missing, or no rule identifies it.
    """
    names = [name.strip() for name in rows[0]] if rows else []
    body = [row for row in rows[1:] if len(row) == num_columns]
    if len(names) == num_columns - 1 and _are_whole_numbers(body):
        names = ["", *names]  # R's row names: they have no header field
    if _has_header(names, body, wanted, config):
        has_index = bool(names) and _is_index_name(names[0]) and _are_whole_numbers(body)
        index_of, is_named = columns_by_name(names, wanted, config, path, has_index)
        return Columns(True, is_named, names, index_of)
    equal_rows = [row for row in rows if len(row) == num_columns]
    has_index = num_columns > len(wanted.parts) and _are_different_numbers(equal_rows)
    index_of = _columns_by_position(num_columns, wanted, config, path, has_index)
    is_named = all(getattr(config, part) for part in wanted.parts)
    return Columns(False, is_named, [str(index) for index in range(num_columns)], index_of)


def columns_by_name(
    names: Sequence[str], wanted: Wanted, config: ReadConfig, path: str, has_index: bool = False
) -> tuple[dict[str, int], bool]:
    """Part -> number of its column, by settings and usual names; else the only one left.

    Args:
        names: of the columns, in their order.
        wanted: the parts needed.
        config: settings that name columns.
        path: of the file.
        has_index: whether the first column is an index.

    Returns:
        The columns, and whether each was named by a setting or a usual name.

    Raises:
        UserError: a column is missing, two have its name, or no rule identifies it.
    """
    usual = _usual_columns(names, wanted)
    columns: dict[str, int] = {}
    missing = []
    for part in wanted.parts:
        value = getattr(config, part)
        if value and value in names:
            columns[part] = names.index(value)
        elif value.isdecimal():
            columns[part] = column_number(part, value, len(names), path)
        elif value:
            raise UserError(
                f"{path}: has no column {value!r} (--{part}); there are"
                f" {', '.join(map(shown, names))}"
            )
        elif part in usual:
            columns[part] = usual[part]
        else:
            missing.append(part)
    for part, index in columns.items():
        if names.count(names[index]) > 1 and not getattr(config, part).isdecimal():
            raise UserError(f"{path}: has two columns {names[index]!r}; give the number (--{part})")
    taken = {*columns.values(), *([0] if has_index else []), usual.get(LABEL)}
    taken |= {index for index, name in enumerate(names) if name.lower() in _ID_NAMES}
    free = [index for index in range(len(names)) if index not in taken]
    are_alike = len({part == LABEL for part in missing}) == 1  # all texts, or the label
    if missing and are_alike and len(free) == len(missing) and (columns or LABEL in usual):
        columns.update(zip(missing, free, strict=True))
    elif missing:
        raise UserError(
            f"{path}: none of its columns has a usual name for --{missing[0]}; name one of"
            f" {', '.join(map(shown, filter(None, names)))}"
        )
    return {part: columns[part] for part in wanted.parts}, not missing


def has_usual_names(names: Sequence[str], wanted: Wanted) -> bool:
    """Whether a row has the usual names of all parts, like a header."""
    return _usual_columns([name.strip() for name in names], wanted).keys() >= set(wanted.parts)


def _has_header(
    names: Sequence[str], body: Sequence[Sequence[str]], wanted: Wanted, config: ReadConfig
) -> bool:
    """Whether the first row names the columns: by the setting, or if its cells are usual names."""
    if config.header != "auto":
        return config.header == "true"
    chosen = {part: value for part in wanted.parts if (value := getattr(config, part))}
    if any(not value.isdecimal() for value in chosen.values()):
        return True
    usual = _usual_columns(names, wanted)
    if usual and usual.keys() | chosen.keys() >= set(wanted.parts):
        return True
    if names and _is_index_name(names[0]) and len(names) > 1 and _are_whole_numbers(body):
        return True
    # Only some names: a class may have such a name, but then it also occurs in other rows.
    is_alone = all(row[index].strip() != names[index] for row in body for index in usual.values())
    is_telling = TEXT in usual or len(body) >= _ENOUGH_ROWS
    return bool(usual) and is_telling and is_alone and len(body) > 1


def _usual_columns(names: Sequence[str], wanted: Wanted) -> dict[str, int]:
    """Part -> number of its column, for those parts that have one of the usual names.

    Includes the label even if it is not needed: its column is not a text.
    """
    lower = [name.lower() for name in names]
    texts = tuple(part for part in wanted.parts if part != LABEL)
    choices = _PAIR_NAMES if wanted.is_pair else tuple((name,) for name in _TEXT_NAMES)
    labels = tuple((name,) for name in (_SCORE_NAMES if wanted.is_score else _LABEL_NAMES))
    found: dict[str, int] = {}
    for parts, sets in ((texts, choices), ((LABEL,), labels)):
        chosen = next((usual for usual in sets if set(usual) <= set(lower)), ())
        found.update(zip(parts, map(lower.index, chosen), strict=False))
    return found


def _columns_by_position(
    num_columns: int, wanted: Wanted, config: ReadConfig, path: str, has_index: bool
) -> dict[str, int]:
    """Part -> number of its column, by settings, or the first free one; labels come after texts."""
    columns: dict[str, int] = {}
    for part in wanted.parts:
        if value := getattr(config, part):
            columns[part] = column_number(part, value, num_columns, path)
    for part in wanted.parts:
        if part in columns:
            continue
        free = [
            index for index in range(int(has_index), num_columns) if index not in columns.values()
        ]
        if not free:
            raise UserError(
                f"{path}: has no header with usual names, and none of its {num_columns} columns is"
                f" left for --{part}; give --format, --separator, --header or its number"
            )
        behind = [index for index in free if index > max(columns.values(), default=-1)]
        columns[part] = (behind if part == LABEL and behind else free)[0]
    return {part: columns[part] for part in wanted.parts}


def _is_index_name(name: str) -> bool:
    return _NAMELESS.fullmatch(name) is not None


def _are_whole_numbers(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first cells are whole numbers, as in a shuffled index of pandas."""
    return bool(rows) and all(row and row[0].strip().isdecimal() for row in rows)


def _are_different_numbers(rows: Sequence[Sequence[str]]) -> bool:
    """The same, all different: an index in a table without header, not labels."""
    return len(rows) > 1 and _are_whole_numbers(rows) and len({r[0] for r in rows}) == len(rows)
