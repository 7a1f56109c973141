"""Labels as they stand in a file, and the names that they mean."""

import dataclasses
import json
from typing import Any

from dist_bert.errors import UserError
from dist_bert.tasks.readers.source import lines_of, read_text
from dist_bert.tasks.readers.tally import RowError


def read_label_list(path: str) -> tuple[str, ...]:
    """The names of a label list: one a line, or a JSON list.

    Raises:
        UserError: it cannot be read, or holds something else, an empty name or one name twice.
    """
    text = read_text(path)
    if text.lstrip().startswith(("[", "{")):
        try:
            names = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}: is not valid JSON ({error})") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"{path}: must be a JSON list of names, or have one name a line (--labels)"
            )
    else:
        names = lines_of(text)
    names = [name.strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not all(names) or twice:
        problem = f"names {', '.join(twice)} twice" if twice and twice[0] else "has an empty name"
        raise UserError(f"{path}: {problem}; a label list has each name once (--labels)")
    return tuple(names)


@dataclasses.dataclass(frozen=True)
class LabelRule:
    """How the label of a row is read."""

    names: tuple[str, ...] | None  # of the label list
    separator: str  # between several labels; empty = there is one

    def labels_of(self, value: Any) -> tuple[str, ...]:
        """The names that a field holds; () where it may hold several and holds none.

        Args:
            value: a field's text, or a JSON value: a name, a number, or a list of them.

        Raises:
            RowError: it is no label, or none that the list knows.
        """
        if isinstance(value, list):
            values = [_text_of(v) for v in value]
        elif self.separator:
            whole = _text_of(value)
            values = [part.strip() for part in whole.split(self.separator)] if whole else []
        else:
            values = [_text_of(value)]
        if not all(values):
            raise RowError("empty label")
        return tuple(dict.fromkeys(self._name_of(text) for text in values))

    def label_of(self, value: Any) -> str:
        """The one name that a field holds, as `labels_of` reads it."""
        text = _text_of(value)
        if not text:
            raise RowError("empty label")
        return self._name_of(text)

    def _name_of(self, text: str) -> str:
        if self.names is None or text in self.names:
            return text
        if text.isdecimal() and int(text) < len(self.names):
            return self.names[int(text)]
        hint = "; several labels in a field need --label_separator" if "," in text else ""
        raise RowError(
            "unknown label",
            f"label {text!r} is neither among the {len(self.names)} names of the label list nor a"
            f" number from 0 to {len(self.names) - 1}{hint}",
        )


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()  # as JSON writes it
    if isinstance(value, int):
        return str(value)
    if value is None:
        return ""
    raise RowError("label is no name", f"label {value!r} is neither a name nor a whole number")
