"""Configuration: frozen dataclasses, resolved as default < JSON file < flag.

A field, its JSON key and its flag have one name. Each fact has one home: architecture in the model
JSON, run settings in the run JSON, batch sizes, optimizer, precision and ZeRO in the DeepSpeed JSON
(`dist_bert.training.deepspeed_config`), sequence length and masking in the shards' manifest. Not
for: anything that a rank or a batch carries.
"""

import argparse
import dataclasses
import json
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dist_bert.common.errors import UserError
from dist_bert.common.shipped import found

T = TypeVar("T")

# A setting whose value is found out; its type is `int | Literal["auto"]` or alike.
AUTO: typing.Final = "auto"
_SHORT = reprlib.Repr()  # of values that may be large or deep
_SHORT.maxstring = _SHORT.maxother = 200


def setting(
    default: Any,
    help_text: str,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A dataclass field with the line that `--help` shows (unit and range included).

    `parse` reads its flag where that may say more than a value of the field's type.
    """
    metadata = {"help": help_text, "choices": choices, "metavar": metavar, "parse": parse}
    return dataclasses.field(default=default, metadata=metadata)


def raise_all(what: str, problems: list[str]) -> None:
    """Raises one UserError with all problems of the `what` configuration, if there are any."""
    if problems:
        raise UserError(f"{what} configuration: " + "; ".join(problems))


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object from a file; configs/... may be one of the package's own.

    Raises:
        UserError: the file is missing, is not JSON, or does not contain an object.
    """
    try:
        return json_object(found(path).read_bytes(), path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): give the path of a JSON file"
        ) from None


def json_object(data: bytes, path: str | Path) -> dict[str, Any]:
    """A JSON object in UTF-8; `path` names it in errors.

    Raises:
        UserError: it is not JSON, or does not contain an object.
    """
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, must hold a JSON object")
    return value


def resolve(
    cls: type[T], file: str | Path | None = None, flags: Mapping[str, Any] | None = None
) -> T:
    """Builds a config of dataclass `cls`: default < JSON file < flag.

    Args:
        cls: PretrainingConfig, ModelConfig or their like.
        file: path of a JSON object whose keys are fields of `cls`, or None.
        flags: field values from the command line; None means "not given".

    Raises:
        UserError: an unknown key (lists the known ones), or a value of a wrong type or range.
    """
    values = read_json(file) if file is not None else {}
    values.update({name: value for name, value in (flags or {}).items() if value is not None})
    return from_dict(cls, values, str(file or "flags"))


def from_dict(cls: type[T], values: Mapping[str, Any], origin: str) -> T:
    """Builds a config of dataclass `cls` from `values`; `origin` names their source in errors.

    Raises:
        UserError: an unknown key, a missing one that has no default, or a value of a wrong type.
    """
    if not isinstance(values, Mapping):  # an entry of a file
        raise UserError(f"{origin}: holds {_SHORT.repr(values)}, must hold a JSON object")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        named = ", ".join(name if name.isidentifier() else _SHORT.repr(name) for name in unknown)
        raise UserError(f"{origin}: unknown key {named}; known: {', '.join(fields)}")
    problems = [
        f"{name}: is missing, must be given"
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in values
    ]
    checked = {}
    for name, value in values.items():
        if hints[name] is float and type(value) is int:
            value = float(value) if abs(value) < 1 << 1_000 else math.inf
        choices = fields[name].metadata.get("choices")
        if not _has_type(value, hints[name]):
            problems.append(f"{name} = {_SHORT.repr(value)}: must be {_type_name(hints[name])}")
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{name} = {value}: must be a finite number")
        elif choices and value not in choices:
            problems.append(f"{name} = {_SHORT.repr(value)}: must be one of {', '.join(choices)}")
        checked[name] = value
    raise_all(origin, problems)
    return cls(**checked)


def add_flags(parser: argparse.ArgumentParser, cls: type, **defaults: Any) -> None:
    """Adds a `--field value` for every field of dataclass `cls`; what is not given stays None.

    A boolean may be given as `--field` alone, which means true.

    Args:
        parser: of a script.
        cls: the dataclass.
        defaults: of the fields that are something else in this script.
    """
    hints = typing.get_type_hints(cls)
    group = parser.add_argument_group(f"{cls.__name__} (JSON key = flag)")
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        own = defaults.get(field.name)
        usual = field.default if own is None else own
        default = "" if usual in (None, "") else f" (default: {usual})"
        help_text = f"{field.metadata['help']}{default}".replace("%", "%%")
        if _base_type(kind) is bool:
            add_switch(group, f"--{field.name}", help_text, own, _words(kind))
        else:
            group.add_argument(
                f"--{field.name}",
                type=field.metadata.get("parse") or or_word(_base_type(kind), _words(kind)),
                choices=field.metadata.get("choices") or None,
                metavar=field.metadata.get("metavar"),
                default=own,
                help=help_text,
            )


def add_switch(
    parser: argparse._ActionsContainer,
    flag: str,
    help_text: str,
    default: bool | None = False,
    words: tuple[str, ...] = (),
) -> None:
    """Adds a boolean flag: `--flag`, `--flag true`, `--flag false`, or with one of the words."""
    parser.add_argument(
        flag,
        type=or_word(boolean, words),
        nargs="?",
        const=True,
        default=default,
        metavar="|".join((*words, "true", "false")),
        help=help_text,
    )


def flags_of(cls: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of the flags that `add_flags` added for `cls`."""
    return {f.name: getattr(arguments, f.name) for f in dataclasses.fields(cls)}


def boolean(text: str) -> bool:
    """The value of a boolean flag, for argparse."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be true or false")
    return text.lower() == "true"


def or_word(parse: Callable[[str], Any], words: tuple[str, ...]) -> Callable[[str], Any]:
    """Reads one of the words, or what `parse` reads, for argparse."""
    if not words:
        return parse

    def read(text: str) -> Any:
        return text if text in words else parse(text)

    read.__name__ = f"{parse.__name__} or {' or '.join(words)}"  # argparse's errors name it
    return read


def _base_type(kind: Any) -> Any:
    """`int` for `int | None` and `int | Literal["auto"]`, `dict` for `dict[str, float]`."""
    plain = [k for k in _alternatives(kind) if isinstance(k, type) and k is not types.NoneType]
    return plain[0] if plain else typing.get_origin(kind) or kind


def _words(kind: Any) -> tuple[str, ...]:
    """`auto` for `int | Literal["auto"]`."""
    literals = (k for k in _alternatives(kind) if typing.get_origin(k) is typing.Literal)
    return tuple(word for literal in literals for word in typing.get_args(literal))


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union; none of any other type."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if is_union else ()


def _has_type(value: Any, kind: Any) -> bool:
    if value is None:
        return types.NoneType in _alternatives(kind)
    if type(value) is str and value in _words(kind):
        return True
    return type(value) is _base_type(kind)  # bool is not an int here


def _type_name(kind: Any) -> str:
    nothing = ["null"] if types.NoneType in _alternatives(kind) else []
    return " or ".join([_base_type(kind).__name__, *_words(kind), *nothing])
