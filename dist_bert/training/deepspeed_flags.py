"""Flags for values of the DeepSpeed JSON, which count as if they stood in the file.

Not for: what the values mean (`dist_bert.training.deepspeed_config`). No numpy, so that `--help`
comes at once.
"""

import argparse
import copy
import json
from collections.abc import Mapping
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.common.settings import AUTO, or_word

PEAK_LR = "optimizer.params.lr"
# Flag -> key of the DeepSpeed JSON: what is changed most.
_DEEPSPEED_FLAGS = {
    "lr": PEAK_LR,
    "train_batch_size": "train_batch_size",
    "train_micro_batch_size_per_gpu": "train_micro_batch_size_per_gpu",
}


def add_deepspeed_flags(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds --deepspeed_config, and flags for values that replace those of the file.

    Args:
        parser: of a script.
        default: path of the DeepSpeed JSON where none is given.
    """
    group = parser.add_argument_group("DeepSpeed")
    group.add_argument(
        "--deepspeed_config",
        default=default,
        metavar="FILE",
        help="DeepSpeed JSON (default: %(default)s)",
    )
    told = "instead of the DeepSpeed JSON's"
    group.add_argument("--lr", type=float, help=f"peak learning rate, {told}")
    group.add_argument("--train_batch_size", type=int, help=f"samples of an optimizer step, {told}")
    group.add_argument(
        "--train_micro_batch_size_per_gpu",
        type=or_word(int, (AUTO,)),
        help=f"samples at once on a rank, {told}; auto = as many tokens as fit the device",
    )
    group.add_argument(
        "--deepspeed",
        type=_assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any value of the DeepSpeed JSON, such as zero_optimization.stage=3; repeatable",
    )


def deepspeed_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values that the flags of `add_deepspeed_flags` give, by their keys, a.b.c.

    Raises:
        UserError: a key is given twice.
    """
    given = [(key, getattr(arguments, flag)) for flag, key in _DEEPSPEED_FLAGS.items()]
    given = [(key, value) for key, value in given if value is not None] + arguments.deepspeed
    values = dict(given)
    for key in values:
        if [name for name, _ in given].count(key) > 1:
            raise UserError(f"{key}: is given twice on the command line; give it once")
    return values


def with_values(contents: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with other values at some places; sections that are missing are made.

    Args:
        contents: stays as it is.
        values: by keys, a.b.c for what is inside of sections.

    Raises:
        UserError: a key leads through something that is no section.
    """
    changed = copy.deepcopy(contents)
    for key, value in values.items():
        *sections, last = key.split(".")
        place = changed
        for depth, section in enumerate(sections, start=1):
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                name = ".".join(sections[:depth])
                raise UserError(f"--deepspeed {key}: {name} is {place!r}, no JSON object")
        place[last] = value
    return changed


def _assignment(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as JSON has it; a word needs no quotes."""
    key, sign, value = text.partition("=")
    if not sign or not all(key.split(".")):
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be KEY=VALUE, such as optimizer.params.lr=1e-4"
        )
    if value in ("True", "False", "None"):
        raise argparse.ArgumentTypeError(f"{text!r}: JSON has true, false and null")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
