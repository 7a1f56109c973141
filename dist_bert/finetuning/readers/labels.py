"""Converts labels of a file to names of classes."""

import dataclasses
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.finetuning.readers.source import lines_of, read_text, shown, whole_characters
from dist_bert.finetuning.readers.tally import RowError, Tally


def read_label_list(path: str) -> tuple[str, ...]:
    """The names of a label list: one per line, or a JSON list.

    Raises:
        UserError: it cannot be read, has other contents, an empty name or a name twice.
    """
    text = read_text(path)
    if text.lstrip().startswith(("[", "{")):
        try:
            names = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}: is not valid JSON ({error})") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"{path}: must be a JSON list of names, or have one name per line (--labels)"
            )
    else:
        names = lines_of(text)
    names = [whole_characters(name).strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not all(names) or twice:
        problem = (
            f"names {', '.join(map(shown, twice))} twice"
            if twice and twice[0]
            else "has an empty name"
        )
        raise UserError(f"{path}: {problem}; a label list has each name once (--labels)")
    return tuple(names)


# How programs write missing values; "none" and "NA" are classes of public data sets.
_NOTHING = frozenset({"nan", "NaN", "null", "NULL", "<NA>", "\\N"})
_NO_GOLD = "-"  # SNLI: the annotators did not agree
_NO_GOLD_NUMBER = -1.0  # the same in converted sets; also every label of a test set
_NUMBER = re.compile(r"[-+]?(\d{1,15}(\.\d*)?|\.\d+)([eE][-+]?\d{1,2})?")
_WHOLE = re.compile(r"([-+]?\d{1,15})\.0*")
_LARGEST_SCORE = 1e18  # float32 holds squares up to 3e38
_MAX_DIGITS = 9  # of a number that is an index into a label list


@dataclasses.dataclass(frozen=True)
class LabelRule:
    """How to read the label of a row, given all labels of the file."""

    names: tuple[str, ...] | None  # of the label list
    separator: str  # between several labels; empty = one label
    missing: frozenset[str]  # values that mean no label
    are_whole: bool  # 1.0 is the class 1: whole numbers that were converted to floats

    @classmethod
    def of(
        cls,
        values: Iterable[Any],
        names: tuple[str, ...] | None = None,
        separator: str = "",
        is_score: bool = False,
    ) -> "LabelRule":
        """The rule of a file.

        Args:
            values: its labels as written.
            names: of the label list, if there is one.
            separator: between several labels of a field.
            is_score: labels are numbers to predict; anything else is bad.
        """
        texts = set(_parts_of(values, separator))
        if is_score:
            texts = {t for t in texts if _NUMBER.fullmatch(t) or t in {_NO_GOLD, *_NOTHING}}
        if names is not None:
            return cls(names, separator, (missing_of(texts, True)) - set(names), True)
        missing = missing_of(texts, False)
        numbers = [text for text in texts - missing if _NUMBER.fullmatch(text)]
        is_all = len(numbers) == len(texts - missing)
        are_whole = is_all and all(float(text).is_integer() for text in numbers)
        return cls(None, separator, missing, are_whole)

    def is_missing(self, value: Any) -> bool:
        """Whether a field means that there is no label."""
        return not self.missing.isdisjoint(_parts_of([value], self.separator))

    def is_float(self, value: Any) -> bool:
        """Whether a field contains a whole number written as 1.0."""
        return any(_WHOLE.fullmatch(text) for text in _parts_of([value], self.separator))

    def labels_of(self, value: Any) -> tuple[str, ...]:
        """The names in a field; () if several are allowed and it has none.

        Args:
            value: a field's text, or a JSON value: a name, a number, or a list of them.

        Raises:
            RowError: it is not a label, or not in the label list.
        """
        if isinstance(value, list):
            values = [_class_text(v) for v in value]
        elif self.separator:
            whole = _class_text(value)
            values = [part.strip() for part in whole.split(self.separator)] if whole else []
        else:
            values = [_class_text(value)]
        if not all(values):
            raise RowError("empty label")
        return tuple(dict.fromkeys(map(self._name_of, values)))

    def label_of(self, value: Any) -> str:
        """The single name in a field, read like `labels_of`."""
        text = _class_text(value)
        if not text:
            raise RowError("empty label")
        return self._name_of(text)

    def _name_of(self, text: str) -> str:
        if self.names is not None and text in self.names:
            return text
        if self.are_whole and (found := _WHOLE.fullmatch(text)):
            text = found[1]
        if self.names is None:
            return text
        if text.isdecimal() and len(text) <= _MAX_DIGITS and int(text) < len(self.names):
            return self.names[int(text)]
        hint = "; several labels in a field need --label_separator" if "," in text else ""
        alike = next((name for name in self.names if _folded(name) == _folded(text)), None)
        if alike is not None:
            hint = f"; it differs from {alike!r} only in case or blanks"
        raise RowError(
            "unknown label",
            f"label {text!r} is neither among the {len(self.names)} names of the label list nor a"
            f" number from 0 to {len(self.names) - 1}{hint}",
        )


def missing_of(texts: AbstractSet[str], has_names: bool) -> frozenset[str]:
    """The labels of a file that mean a missing label.

    "-" does, unless "+" is also a label. -1 does if the others are names or non-negative numbers,
    except if they are just 0 and 1: then it may be the third class.

    Args:
        texts: all labels of the file, as texts.
        has_names: whether there is a label list, with indices from 0.
    """
    missing = {text for text in texts if text in _NOTHING}
    if "+" not in texts:
        missing |= texts & {_NO_GOLD}
    negative = {t for t in texts if _NUMBER.fullmatch(t) and float(t) == _NO_GOLD_NUMBER}
    others = texts - missing - negative
    numbers = [float(text) for text in others if _NUMBER.fullmatch(text)]
    are_binary = set(numbers) <= {0.0, 1.0}
    is_odd = len(numbers) == len(others) and min(numbers, default=0.0) >= 0.0 and not are_binary
    if has_names or not numbers or is_odd:
        missing |= negative
    return frozenset(missing)


def number_of(value: Any) -> float:
    """The number in a field.

    Raises:
        RowError: it has no number, or one whose square float32 cannot hold.
    """
    text = _text_of(value)
    if not text:
        raise RowError("empty score")
    if not _NUMBER.fullmatch(text):
        hint = (
            "; write it with a decimal point" if _NUMBER.fullmatch(text.replace(",", ".")) else ""
        )
        raise RowError("score is not a number", f"score {text!r} is not a number{hint}")
    number = float(text)
    if abs(number) > _LARGEST_SCORE:
        problem = f"score {text!r} is not from -{_LARGEST_SCORE:g} to {_LARGEST_SCORE:g}"
        raise RowError("score too large", problem)
    return number


def are_scores(labels: Iterable[str]) -> bool:
    """Whether names of classes are all numbers, and not all of them whole."""
    names = set(labels)
    are_numbers = bool(names) and all(_NUMBER.fullmatch(name) for name in names)
    return are_numbers and not all(float(name).is_integer() for name in names)


def note_alike(labels: Iterable[str], path: str, tally: Tally) -> None:
    """Notes labels that differ only in case or blanks: they may be one class by intention."""
    counts = Counter(labels)
    groups = defaultdict(list)
    for name in counts:
        groups[_folded(name)].append(name)
    for names in groups.values():
        if len(names) > 1:
            told = ", ".join(f"{name!r} ({counts[name]:,})" for name in sorted(names))
            detail = f"labels {told} differ only in case or blanks and are separate classes"
            tally.note("labels that differ only in case or blanks", path, detail)


def _folded(label: str) -> str:
    return "".join(label.casefold().split())


def _parts_of(values: Iterable[Any], separator: str) -> Iterator[str]:
    """All labels of a file as texts, without missing ones."""
    for value in values:
        for item in value if isinstance(value, list) else [value]:
            try:
                text = _text_of(item)
            except RowError:
                continue
            if separator and not isinstance(value, list):
                yield from filter(None, (part.strip() for part in text.split(separator)))
            elif text:
                yield text


def _class_text(value: Any) -> str:
    if isinstance(value, float) and not (value.is_integer() or math.isnan(value)):
        raise RowError(
            "label is no name",
            f"label {value!r} is neither a name nor a whole number; to predict numbers, give"
            " --task sentence_regression or pair_regression",
        )
    return _text_of(value)


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return whole_characters(value).strip()
    if isinstance(value, bool):
        return str(value).lower()  # as in JSON
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if value is None:
        return "null"
    raise RowError("label is no name", f"label {value!r} is neither a name nor a number")
