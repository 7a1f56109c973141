"""Configuration: frozen dataclasses, resolved as default < JSON file < flag.

A field is a JSON key is a flag. One home for each fact: architecture in the model JSON, run
settings in the run JSON, batch sizes, optimizer, precision and ZeRO in the DeepSpeed JSON
(`dist_bert.engine`), sequence length and masking in the shards' manifest. Not for: anything that a
rank or a batch carries.
"""

import argparse
import dataclasses
import json
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dist_bert.errors import UserError
from dist_bert.shipped import found

T = TypeVar("T")

_SHORT = reprlib.Repr()  # of values that may be large or deep
_SHORT.maxstring = _SHORT.maxother = 200


def setting(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with the line that `--help` shows (unit and range included)."""
    return dataclasses.field(default=default, metadata={"help": help_text, "choices": choices})


# Far beyond any BERT: a file that says more is wrong, and would fill memory or take for ever.
_MOST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 17,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 17,
    "intermediate_size": 1 << 19,
    "max_position_embeddings": 1 << 20,
    "type_vocab_size": 1 << 10,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of encoder and pretraining heads. Defaults: BERT-base (Devlin et al. 2019)."""

    vocab_size: int = setting(30_522, "number of pieces; the tokenizer may have fewer, never more")
    hidden_size: int = setting(768, "width of the residual stream")
    num_hidden_layers: int = setting(12, "number of encoder layers")
    num_attention_heads: int = setting(12, "attention heads; divides hidden_size")
    intermediate_size: int = setting(3_072, "width of the feed-forward layer")
    hidden_act: str = setting("gelu", "activation of the feed-forward layer", ("gelu", "relu"))
    mlm_hidden_act: str = setting(
        "gelu",
        "activation of the MLM head: gelu as published, relu as in textbooks",
        ("gelu", "relu"),
    )
    max_position_embeddings: int = setting(
        512, "longest sequence in tokens, special tokens included"
    )
    type_vocab_size: int = setting(2, "number of segments")
    hidden_dropout_prob: float = setting(
        0.1, "dropout on embeddings and sub-layer outputs, 0 to below 1"
    )
    attention_probs_dropout_prob: float = setting(
        0.1, "dropout on attention weights, 0 to below 1; above 0 rules out the fast GPU kernel"
    )
    layer_norm_eps: float = setting(1e-12, "epsilon of every LayerNorm")
    initializer_range: float = setting(0.02, "standard deviation of the initial weights")

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: must be at least 1 and at most {most:,}"
            for name, most in _MOST.items()
            if not 1 <= getattr(self, name) <= most
        ]
        if self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            problems.append(
                f"hidden_size = {self.hidden_size} is not divisible by"
                f" num_attention_heads = {self.num_attention_heads}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                problems.append(f"{name} = {getattr(self, name)}: must be at least 0 and below 1")
        for name in ("layer_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0.0:
                problems.append(f"{name} = {getattr(self, name)}: must be above 0")
        raise_all("model", problems)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: `vocab_size` up to a multiple of 64, for matrix units."""
        return -(-self.vocab_size // 64) * 64

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One pretraining run. Defaults are BERT's published recipe (Devlin et al. 2019, A.2)."""

    shards: str = setting(
        "data/shards",
        "folder of prepared shards (has a manifest.json), or its URL: s3://, gs://, https://, ...",
    )
    local_cache: str = setting(
        "",
        "folder on a local disk of every node for copies of the shards, which its ranks share: for"
        " URLs and slow file systems; $NAME in it is the node's; empty = none",
    )
    local_cache_gib: float = setting(
        0.0, "most that all copies in local_cache take together; 0 = no limit"
    )
    output_dir: str = setting("runs/pretrain", "folder for checkpoints, metrics and TensorBoard")
    num_train_steps: int = setting(1_000_000, "optimizer steps in the whole run")
    warmup_steps: int = setting(10_000, "optimizer steps over which the lr rises linearly from 0")
    schedule: str = setting(
        "linear",
        "lr after the warm-up; wsd = constant, then linear over decay_steps",
        ("linear", "cosine", "constant", "wsd"),
    )
    decay_steps: int = setting(0, "last optimizer steps of schedule wsd, over which the lr falls")
    min_lr_ratio: float = setting(0.0, "lr at the end of the decay as a share of the peak, 0 to 1")
    seed: int = setting(42, "seed of weights, sample order, fresh masks and dropout")
    masks: str = setting(
        "fresh",
        "static = as stored; fresh = as stored in the first epoch, then drawn anew in each",
        ("fresh", "static"),
    )
    log_interval: int = setting(10, "optimizer steps between two console lines and metric flushes")
    validation_interval: int = setting(
        1_000, "optimizer steps between two validations; 0 = only at the end"
    )
    validation_samples: int = setting(4_096, "validation samples used each time; 0 = all of them")
    checkpoint_interval: int = setting(1_000, "optimizer steps between two checkpoints")
    keep_checkpoints: int = setting(
        2, "newest checkpoints that are kept beside the best, at least 1"
    )
    max_minutes: float = setting(
        0.0, "save and stop with exit code 85 after so many minutes from the start; 0 = never"
    )
    timeout_seconds: float = setting(
        900.0,
        "longest wait of one rank for the others, e.g. while one saves; keep it above"
        " watchdog_minutes, whose report tells more",
    )
    heartbeat_seconds: float = setting(
        45.0, "end the job if a rank gives no sign of life for so long (its host is gone); 0 = off"
    )
    watchdog_minutes: float = setting(
        10.0, "end the job if no micro-step, validation batch or save ends for so long; 0 = never"
    )
    max_skipped_steps: int = setting(
        10, "non-finite steps in a row after which the run goes back to its last checkpoint once"
    )
    spike_threshold: float = setting(
        8.0,
        "a loss so many median absolute deviations above the median of the last 100 steps is a"
        " spike, which is told and recorded; 0 = off",
    )
    on_spike: str = setting(
        "record",
        "skip = leave the update of a spike out; roll_back = also take back the updates since the"
        " last checkpoint, once until the next; both wait for the device once a step",
        ("record", "skip", "roll_back"),
    )
    change_batch_size: bool = setting(
        False, "go on from a checkpoint of another train_batch_size, at exactly the next sample"
    )
    init_from: str = setting(
        "",
        "start a new run from these weights: a run's folder or one of its checkpoints, or a folder"
        " or file in Hugging Face layout; a run that has a checkpoint goes on from that",
    )
    extend_positions: bool = setting(
        False, "with init_from: repeat its position embeddings where the model has more of them"
    )
    activation_checkpointing: bool = setting(
        False, "compute layers again in the backward pass: less memory, about a third more time"
    )
    compile_layers: bool = setting(
        False,
        "torch.compile the layers: on GPUs, at ZeRO 0 to 2; launch/benchmark.py train --against"
        " compiled tells whether it pays",
    )

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: must be at least {least}"
            for name, least in (
                ("num_train_steps", 1),
                ("warmup_steps", 0),
                ("decay_steps", 0),
                ("log_interval", 1),
                ("validation_interval", 0),
                ("validation_samples", 0),
                ("checkpoint_interval", 1),
                ("keep_checkpoints", 1),
                ("max_minutes", 0),
                ("timeout_seconds", 1),
                ("watchdog_minutes", 0),
                ("heartbeat_seconds", 0),
                ("max_skipped_steps", 1),
                ("spike_threshold", 0),
                ("local_cache_gib", 0),
            )
            if getattr(self, name) < least
        ]
        if "://" in self.output_dir:
            problems.append(
                f"output_dir = {self.output_dir}: is a URL; give a folder of this machine or of a"
                " file system that all nodes share"
            )
        if self.warmup_steps > self.num_train_steps:
            problems.append(
                f"warmup_steps = {self.warmup_steps} is above num_train_steps ="
                f" {self.num_train_steps}"
            )
        if (
            self.schedule == "wsd"
            and not 0 < self.decay_steps <= self.num_train_steps - self.warmup_steps
        ):
            problems.append(
                f"decay_steps = {self.decay_steps}: wsd needs 1 to num_train_steps - warmup_steps"
            )
        if not 0.0 <= self.min_lr_ratio <= 1.0:
            problems.append(f"min_lr_ratio = {self.min_lr_ratio}: must be 0 to 1")
        if self.extend_positions and not self.init_from:
            problems.append("extend_positions = True: does nothing without init_from")
        if self.on_spike != "record" and not self.spike_threshold:
            problems.append(f"on_spike = {self.on_spike}: does nothing with spike_threshold 0")
        if self.local_cache_gib and not self.local_cache:
            problems.append("local_cache_gib: does nothing without local_cache")
        raise_all("run", problems)


def raise_all(what: str, problems: list[str]) -> None:
    """Raises one UserError with all problems of the `what` configuration, if there are any."""
    if problems:
        raise UserError(f"{what} configuration: " + "; ".join(problems))


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object from a file; configs/... may be one that comes with the package.

    Raises:
        UserError: the file is missing, is not JSON, or holds something else than an object.
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
        UserError: it is not JSON, or holds something else than an object.
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
        cls: RunConfig, ModelConfig or their like.
        file: path of a JSON object whose keys are fields of `cls`, or None.
        flags: field values given on the command line; None means "not given".

    Raises:
        UserError: an unknown key (the known ones are listed), a value of a wrong type or range.
    """
    values = read_json(file) if file is not None else {}
    values.update({name: value for name, value in (flags or {}).items() if value is not None})
    return from_dict(cls, values, str(file or "flags"))


def from_dict(cls: type[T], values: Mapping[str, Any], origin: str) -> T:
    """Builds a config of dataclass `cls` from `values`; `origin` names their source in errors."""
    if not isinstance(values, Mapping):  # an entry of a file
        raise UserError(f"{origin}: holds {_SHORT.repr(values)}, must hold a JSON object")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        named = ", ".join(name if name.isidentifier() else _SHORT.repr(name) for name in unknown)
        raise UserError(f"{origin}: unknown key {named}; known: {', '.join(fields)}")
    problems = []
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


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """Adds a `--field value` for every field of dataclass `cls`; what is not given stays None."""
    hints = typing.get_type_hints(cls)
    group = parser.add_argument_group(f"{cls.__name__} (JSON key = flag)")
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        group.add_argument(
            f"--{field.name}",
            type=_parse_bool if kind is bool else _base_type(kind),
            choices=field.metadata.get("choices") or None,
            metavar="true|false" if kind is bool else None,
            help=f"{field.metadata['help']} (default: {field.default})".replace("%", "%%"),
        )


def flags_of(cls: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of the flags that `add_flags` added for `cls`."""
    return {f.name: getattr(arguments, f.name) for f in dataclasses.fields(cls)}


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be true or false")
    return text.lower() == "true"


def _base_type(kind: Any) -> Any:
    """`int` of `int | None`; any other type as it is."""
    if isinstance(kind, types.UnionType):
        return next(k for k in typing.get_args(kind) if k is not type(None))
    return kind


def _has_type(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType) and value is None:
        return True
    return type(value) is _base_type(kind)  # bool is no int here


def _type_name(kind: Any) -> str:
    return str(_base_type(kind).__name__) + (
        " or null" if isinstance(kind, types.UnionType) else ""
    )
