"""Checkpoints that are whole or absent, in RUN/checkpoints/step-NNNNNNNNN, next to `latest`.

Weights and optimizer state are written as named fragments, each by the rank that holds it, so they
are read by any number of ranks at any ZeRO stage and precision without conversion. A checkpoint is
written under another name and becomes visible when all ranks are done, and only then does `latest`
move. Written by `dist_bert.checkpoint.writer`. What is not said to be rank 0's alone is called by
all ranks together.
"""

import dataclasses
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dist_bert.checkpoint import fragments
from dist_bert.checkpoint.format import (
    AVERAGE,
    WEIGHT,
    CheckpointReader,
    export_weights,
    write_state,
)
from dist_bert.checkpoint.run_dir import (
    ASIDE_PREFIX,
    BEST_NAME,
    CHECKPOINTS_NAME,
    DAMAGED_PREFIX,
    HAS_AVERAGE,
    LATEST_NAME,
    WEIGHTS_NAME,
    checkpoint_name,
    checkpoints_newest_first,
    latest_checkpoint,
    lowest_loss,
    named_checkpoint,
    step_of,
    warn_of_pointer,
)
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.distributed.agreement import all_ranks_agree, first_problem
from dist_bert.model.config import ModelConfig

_LOG = logging.getLogger("dist_bert")  # shown by `dist_bert.training.console`
MayDiffer = Callable[[Mapping[str, Any], int], Sequence[str]]


def _nothing(saved: Mapping[str, Any], step: int) -> Sequence[str]:
    """A resumed run may differ in no fact."""
    return ()


@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run: everything besides weights and optimizer state."""

    step: int = 0  # optimizer steps done
    samples: int = 0  # samples consumed: the position in the data
    tokens: int = 0  # real tokens consumed


def load(
    engine: Any, run_dir: str | Path, identity: dict[str, Any], may_differ: MayDiffer = _nothing
) -> TrainState:
    """Puts the newest whole checkpoint into the engine; a run without one starts at zero.

    The checkpoint may be of another number of ranks, ZeRO stage or precision.

    Args:
        engine: the DeepSpeed engine.
        run_dir: the run's folder.
        identity: of this run (see `check_identity`).
        may_differ: takes the checkpoint's identity and its step, and names the facts in which it
            may differ.

    Raises:
        UserError: the checkpoint belongs to another run (the differences are listed), or none is
            whole.
    """
    reader = _newest_whole(run_dir)
    if reader is None:
        latest_checkpoint(run_dir)  # refuses a run whose checkpoints are gone
        return TrainState()
    check_identity(reader, identity, may_differ)
    if dist.get_rank() == 0:
        warn_of_pointer(run_dir, LATEST_NAME, reader.folder)
    fragments.create_states(engine)
    starts_average = bool(fragments.averages(engine)) and not reader.contents.get(HAS_AVERAGE)
    if starts_average and dist.get_rank() == 0:
        _LOG.warning("%s has no average of the weights: it starts from them", reader.folder)
    for fragment in fragments.fragments(engine):
        for what, values in fragment.tensors.items():
            saved = WEIGHT if what == AVERAGE and starts_average else what
            values.copy_(reader.read(saved, fragment.name, fragment.start, fragment.size))
    fragments.set_numbers(engine, reader.contents["optimizer"])
    fragments.refresh_weights(engine)
    return TrainState(**reader.contents["state"])


def settle(run_dir: str | Path, step: int) -> None:
    """Makes the checkpoint that was resumed the latest one, before anything is trained.

    Newer ones belong to a course of training that was given up: they are put aside, so that none of
    them is taken for this one's. What killed saves have left is removed.

    Raises:
        UserError: on all ranks, if the folder cannot be written to.
    """
    folder = Path(run_dir) / CHECKPOINTS_NAME
    with all_ranks_agree(f"cannot resume at step {step:,}"):
        if dist.get_rank() == 0 and step:
            _point(folder, LATEST_NAME, folder / checkpoint_name(step))
            for path in checkpoints_newest_first(run_dir):
                if step_of(path) > step:
                    _LOG.warning("%s is newer than step %s: put aside", path, f"{step:,}")
                    _put_aside(path, ASIDE_PREFIX)
            if (folder / BEST_NAME).exists() and not named_checkpoint(run_dir, BEST_NAME):
                _point(folder, BEST_NAME, lowest_loss(run_dir))
        if dist.get_rank() == 0:
            for left in folder.glob(".step-*"):
                shutil.rmtree(left)


def best_validation(run_dir: str | Path) -> tuple[float, int]:
    """Loss and step of the checkpoint that `best` names; infinite and 0 where there is none."""
    best = named_checkpoint(run_dir, BEST_NAME)
    try:
        loss = CheckpointReader(best).contents["validation_loss"] if best else None
    except UserError:
        loss = None
    return (math.inf, 0) if best is None or loss is None else (loss, step_of(best))


def is_best(run_dir: str | Path, loss: float | None, comparable_since: int) -> bool:
    """Whether `best` has to name a checkpoint of such a validation; see `CheckpointWriter.save`."""
    best, best_step = best_validation(run_dir)
    return loss is not None and (loss < best or best_step <= comparable_since)


def add_validation(run_dir: str | Path, step: int, loss: float, comparable_since: int) -> None:
    """Gives a checkpoint the validation that was interrupted when it was saved; moves `best`.

    Raises:
        UserError: on all ranks, if it cannot be written.
    """
    with all_ranks_agree(f"cannot write the validation of step {step:,}"):
        if dist.get_rank() == 0:
            checkpoint = Path(run_dir) / CHECKPOINTS_NAME / checkpoint_name(step)
            validation = {"validation_loss": loss, "comparable_since": comparable_since}
            must_point = is_best(run_dir, loss, comparable_since)
            write_state(checkpoint, {**CheckpointReader(checkpoint).contents, **validation})
            if must_point:
                _point(checkpoint.parent, BEST_NAME, checkpoint)


def examine(
    run_dir: str | Path, identity: dict[str, Any], may_differ: MayDiffer = _nothing
) -> tuple[str, list[str]]:
    """What a resume would find, without changing anything; the arguments are those of `load`.

    Returns:
        The path of the newest checkpoint, "" where there is none, and all that is wrong with it.
    """
    newest = next(iter(checkpoints_newest_first(run_dir)), None)
    if newest is None:
        return "", []
    problems = []
    try:
        reader = CheckpointReader(newest)
    except UserError as error:
        return str(newest), [str(error)]
    problem = first_problem(_damage(reader))
    if problem:
        problems.append(f"{newest}: is damaged ({problem}): a start would put it aside")
    try:
        check_identity(reader, identity, may_differ)
    except UserError as error:
        problems.append(str(error))
    return str(newest), problems


def check_identity(
    reader: CheckpointReader, current: dict[str, Any], may_differ: MayDiffer = _nothing
) -> None:
    """Refuses to mix two runs.

    Raises:
        UserError: names every fact in which the checkpoint differs from the run.
    """
    saved = reader.contents["identity"]
    open_facts = set(may_differ(saved, reader.contents["state"]["step"]))
    raise_differences(
        reader.folder,
        {name: value for name, value in saved.items() if name not in open_facts},
        {name: value for name, value in current.items() if name not in open_facts},
    )


def raise_differences(place: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuses what another run has left.

    Raises:
        UserError: names every fact in which `current` differs from what was `saved` at `place`.
    """
    # What was saved may be older than a setting of the model: then it is what models were before.
    later = {f"model {name}": value for name, value in ModelConfig.later_settings().items()}
    saved = {**{name: value for name, value in later.items() if name in current}, **saved}
    differences = [
        f"{key} is {current.get(key)!r}, the checkpoint has {saved.get(key)!r}"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key) != current.get(key)
    ]
    if differences:
        raise UserError(
            f"{place}: cannot resume: {'; '.join(differences)}. Use the same settings, or"
            " another --output_dir for a new run"
        )


def write_weights(run_dir: str | Path) -> None:
    """Writes the latest checkpoint's weights as RUN/model.safetensors, in float32; on rank 0.

    Raises:
        UserError: on all ranks, if they cannot be written.
    """
    with all_ranks_agree(f"cannot write {WEIGHTS_NAME}"):
        if dist.get_rank() == 0:
            export_weights(checkpoints_newest_first(run_dir)[0], Path(run_dir) / WEIGHTS_NAME)


def publish(partial: Path, final: Path, is_best: bool) -> None:
    """Makes a complete checkpoint visible, then points `latest` to it; on rank 0."""
    files.fsync(partial)
    shutil.rmtree(final, ignore_errors=True)  # of a run that went on from an earlier step
    partial.rename(final)
    files.fsync(final.parent)
    for pointer in (LATEST_NAME, *([BEST_NAME] if is_best else [])):
        _point(final.parent, pointer, final)


def remove_old(run_dir: str | Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, the latest too, and the best; on rank 0."""
    best = named_checkpoint(run_dir, BEST_NAME)
    for path in checkpoints_newest_first(run_dir)[keep:]:
        if path != best:
            shutil.rmtree(path)


def _newest_whole(run_dir: str | Path) -> CheckpointReader | None:
    """The newest checkpoint whose files are what was written; damaged ones are named.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    damaged: dict[Path, str] = {}
    for path in checkpoints_newest_first(run_dir):
        problem = ""
        try:
            reader = CheckpointReader(path)
            problem = _damage(reader)
        except UserError as error:
            problem = str(error)
        problem = first_problem(problem)
        if problem:
            damaged[path] = f"{path.name}: {problem}"
            continue
        if dist.get_rank() == 0:
            for other, told in damaged.items():
                _LOG.warning("%s is damaged and put aside: %s", other, told)
                _put_aside(other, DAMAGED_PREFIX)
        return reader
    if damaged:  # they stay where they are: the next start must not take the run for a new one
        told = "; ".join(damaged.values())
        raise UserError(f"{run_dir}: no checkpoint is whole ({told}); give another --output_dir")
    return None


def _damage(reader: CheckpointReader) -> str:
    """What is wrong with this rank's share of a checkpoint's files; empty if nothing is."""
    own = reader.files[dist.get_rank() :: dist.get_world_size()]  # hashing is shared out
    return next(filter(None, (file.problem(reader.folder) for file in own)), "")


def _point(folder: Path, pointer: str, checkpoint: Path | None) -> None:
    """Lets `latest` or `best` name a checkpoint, or be gone."""
    if checkpoint is None:
        (folder / pointer).unlink(missing_ok=True)
    else:
        files.write_bytes(folder / pointer, f"{checkpoint.name}\n".encode())


def _put_aside(checkpoint: Path, prefix: str) -> None:
    """Takes a checkpoint out of use; replaces one of the same step that was put aside before."""
    aside = checkpoint.with_name(f"{prefix}{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
