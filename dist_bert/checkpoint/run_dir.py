"""The layout of a run's folder; no torch, so that any script can read it.

RUN/config.json        resolved configuration and versions
RUN/tokenizer.model    the tokenizer that made the shards, of any kind
RUN/metrics.jsonl      the metrics, one object a step
RUN/predictions.jsonl  answers to the fixed sentences, one object a sentence and validation
RUN/starts.jsonl       one object for each start of the run
RUN/log.txt            what the run said, with times, over all starts
RUN/logs/              what each rank warned of and how it failed, likewise
RUN/lock               which process trains here; locked as long as it does
RUN/environment.json   hosts, versions and variables of the latest start
RUN/tensorboard/       the metrics for TensorBoard
RUN/checkpoints/       step-NNNNNNNNN folders; `latest` and `best`, which name one of them each;
                       damaged-step-... and aside-step-..., which are no longer used
RUN/model.safetensors  the weights in float32, when the run has ended
"""

import logging
import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json

INTERRUPTED_NAME = "interrupted"  # file in the run's folder: some launchers drop the exit code

CONFIG_NAME = "config.json"
TOKENIZER_NAME = "tokenizer.model"
METRICS_NAME = "metrics.jsonl"
PREDICTIONS_NAME = "predictions.jsonl"
STARTS_NAME = "starts.jsonl"
LOG_NAME = "log.txt"
LOGS_NAME = "logs"
LOCK_NAME = "lock"
ENVIRONMENT_NAME = "environment.json"
TENSORBOARD_NAME = "tensorboard"
CHECKPOINTS_NAME = "checkpoints"
LATEST_NAME = "latest"
BEST_NAME = "best"
DAMAGED_PREFIX = "damaged-"  # of a checkpoint's folder that was found not to be whole
ASIDE_PREFIX = "aside-"  # of one that is newer than the checkpoint that a run was resumed from
STATE_NAME = "state.json"
HAS_AVERAGE = "has_average"  # in it: the checkpoint has an average of the weights
WEIGHTS_NAME = "model.safetensors"

_LOG = logging.getLogger("dist_bert")
_NAME = re.compile(r"step-\d+")  # of a checkpoint's folder


def read_resolved(run_dir: str | Path, needed: Mapping[str, type]) -> dict[str, Any]:
    """What RUN/config.json holds, see `read_whole`."""
    return read_whole(Path(run_dir) / CONFIG_NAME, needed)


def read_whole(path: Path, needed: Mapping[str, type]) -> dict[str, Any]:
    """What a JSON file of a run holds. It may have lain for years, and others have changed it.

    Args:
        path: of the file.
        needed: what the caller takes out of it, a.b for b inside of a, and its type.

    Raises:
        UserError: the file is missing or damaged, or lacks what is needed.
    """
    values = read_json(path)
    for name, kind in needed.items():
        value: Any = values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if type(value) is not kind:
            shown = "is missing" if value is None else f"= {reprlib.repr(value)}"
            must = {dict: "an object", str: "a text", int: "an integer"}.get(kind, kind.__name__)
            raise UserError(f"{path}: {name} {shown}, must be {must}: it is damaged, copy it again")
    return values


def require_checkpoint(place: str | Path, pointer: str = LATEST_NAME) -> Path:
    """The checkpoint that is to be used.

    Args:
        place: a run's folder, or one of its checkpoints (RUN/checkpoints/step-N).
        pointer: which one of a run's folder, `latest` or `best` (of the lowest validation loss).

    Raises:
        UserError: there is none.
    """
    given = _given_checkpoint(Path(place))
    if given is not None:
        if pointer != LATEST_NAME:
            raise UserError(
                f"--checkpoint {place}: is one checkpoint; give the run's folder for its {pointer}"
            )
        return given
    checkpoint = _best(place) if pointer == BEST_NAME else latest_checkpoint(place)
    if checkpoint is None:
        raise UserError(
            f"--checkpoint {place}: has no {pointer} checkpoint; give the --output_dir of a run"
            " of launch/pretrain.py that has saved"
            f" {'at least once' if pointer == LATEST_NAME else 'right after a validation'}, or one"
            " of its checkpoints"
        )
    warn_of_pointer(place, pointer, checkpoint)
    return checkpoint


def require_weights(place: str | Path, pointer: str = LATEST_NAME) -> Path:
    """What is to be used of a folder: a checkpoint, or the weights file of one that has none.

    The latter is a run that has ended, or a model that was imported or exported. The arguments are
    those of `require_checkpoint`; such a file, too, may be given by itself.

    Raises:
        UserError: there is neither.
    """
    if Path(place).name == WEIGHTS_NAME and Path(place).is_file():
        return Path(place)
    weights = Path(place) / WEIGHTS_NAME
    has_checkpoints = (Path(place) / CHECKPOINTS_NAME).exists()
    if pointer == LATEST_NAME and weights.exists() and not has_checkpoints:
        return weights
    return require_checkpoint(place, pointer)


def require_average(weights: Path) -> None:
    """Refuses weights without the average that is asked for.

    Args:
        weights: a checkpoint, or a file of weights.

    Raises:
        UserError: it has none.
    """
    if not weights.is_dir() or not read_json(weights / STATE_NAME).get(HAS_AVERAGE):
        raise UserError(
            f"{weights}: has no average of the weights, which checkpoints of runs with"
            " average_decay have: leave the average out, or give one of those"
        )


def run_folder(place: str | Path) -> Path:
    """The folder of a run that is given by itself or by one of its checkpoints."""
    given = _given_checkpoint(Path(place))
    return Path(place) if given is None else given.parent.parent


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest checkpoint, by `checkpoints_newest_first`; None where the run has none yet.

    Raises:
        UserError: there was one, and it is gone.
    """
    newest = next(iter(checkpoints_newest_first(run_dir)), None)
    pointer = Path(run_dir) / CHECKPOINTS_NAME / LATEST_NAME
    if newest is None and pointer.exists():
        raise UserError(
            f"{pointer}: names a checkpoint, and there is none; give another --output_dir, or"
            f" remove {pointer.parent} to start again from step 0"
        )
    return newest


def checkpoints_newest_first(run_dir: str | Path) -> list[Path]:
    """All checkpoints of a run: the one that `latest` names, then the older ones, then the newer.

    Newer ones are there where a user has gone back by hand. Where `latest` names no checkpoint that
    is there, the newest one comes first.
    """
    folder = Path(run_dir) / CHECKPOINTS_NAME
    found = [path.parent for path in folder.glob(f"step-*/{STATE_NAME}")]
    found = [path for path in found if _NAME.fullmatch(path.name)]
    latest = named_checkpoint(run_dir, LATEST_NAME)
    step = math.inf if latest is None else step_of(latest)
    return sorted(found, key=lambda path: (step_of(path) <= step, step_of(path)), reverse=True)


def named_checkpoint(run_dir: str | Path, pointer: str) -> Path | None:
    """The checkpoint that `latest` or `best` names; None where it names none that is there."""
    folder = Path(run_dir) / CHECKPOINTS_NAME
    try:
        name = (folder / pointer).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # missing, or not text
        return None
    is_there = _NAME.fullmatch(name) is not None and (folder / name / STATE_NAME).exists()
    return folder / name if is_there else None


def lowest_loss(run_dir: str | Path) -> Path | None:
    """The checkpoint of the lowest validation loss, by what each of them says; None without one.

    Losses on other samples, of an earlier phase, do not count.
    """
    scores = {path: _validation(path) for path in checkpoints_newest_first(run_dir)}
    scored = {path: score for path, score in scores.items() if score[1] < math.inf}
    return min(scored, key=lambda path: scored[path]) if scored else None


def warn_of_pointer(run_dir: str | Path, pointer: str, used: Path) -> None:
    """Says which checkpoint is used where `latest` or `best` is damaged."""
    path = Path(run_dir) / CHECKPOINTS_NAME / pointer
    if path.exists() and named_checkpoint(run_dir, pointer) is None:
        _LOG.warning("%s: names no checkpoint that is there; %s is used", path, used.name)


def checkpoint_name(step: int) -> str:
    """What the folder of a checkpoint is called, by its optimizer steps."""
    return f"step-{step:09d}"


def step_of(checkpoint: Path) -> int:
    """The optimizer steps of a checkpoint, by its folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def _best(run_dir: str | Path) -> Path | None:
    """The checkpoint that `best` names; where it is damaged, the best of those that are there."""
    if not (Path(run_dir) / CHECKPOINTS_NAME / BEST_NAME).exists():
        return None
    return named_checkpoint(run_dir, BEST_NAME) or lowest_loss(run_dir)


def _given_checkpoint(place: Path) -> Path | None:
    """A checkpoint's folder, where that is given and not a run's; step-40 is step-000000040.

    Raises:
        UserError: it is not there.
    """
    place = place if place.name else place.absolute()  # "." in a checkpoint
    if (place / STATE_NAME).exists():
        return place
    if place.parent.name != CHECKPOINTS_NAME or not _NAME.fullmatch(place.name):
        return None
    padded = place.with_name(checkpoint_name(step_of(place)))
    if not (padded / STATE_NAME).exists():
        there = ", ".join(path.name for path in checkpoints_newest_first(place.parent.parent))
        raise UserError(f"{place}: is not there; the run has {there or 'no checkpoint'}")
    return padded


def _validation(checkpoint: Path) -> tuple[int, float]:
    """From its state: what sorts the best first, by the newest samples and the lowest loss.

    The loss is infinite where there was no validation, or the state is damaged.
    """
    try:
        state = read_json(checkpoint / STATE_NAME)
    except UserError:
        return 0, math.inf
    loss, since = state.get("validation_loss"), state.get("comparable_since", 0)
    if type(loss) is not float or not math.isfinite(loss) or type(since) is not int:
        return 0, math.inf
    return -since, loss
