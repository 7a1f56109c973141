"""Checkpoints that are whole or absent, in RUN/checkpoints/step-NNNNNNNNN, `latest` beside them.

Weights and optimizer state are written as named fragments, each by the rank that holds it, so they
are read by any number of ranks at any ZeRO stage and precision without conversion. A checkpoint is
written under another name and becomes visible when all ranks are done, and only then does `latest`
move. Every function here is called by all ranks together.
"""

import contextlib
import dataclasses
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_bert import files, fragments
from dist_bert.checkpoint_files import CheckpointReader, FragmentFile, export_weights
from dist_bert.config import read_json
from dist_bert.errors import UserError
from dist_bert.run_dir import (
    BEST_NAME,
    CHECKPOINTS_NAME,
    DAMAGED_PREFIX,
    LATEST_NAME,
    STATE_NAME,
    WEIGHTS_NAME,
    checkpoints_newest_first,
    step_of,
)

_LOG = logging.getLogger("dist_bert")  # shown by `dist_bert.console`


@dataclasses.dataclass(frozen=True)
class TrainState:
    """Where a run stands: all there is beside weights and optimizer state."""

    step: int = 0  # optimizer steps done
    samples: int = 0  # samples consumed: the position in the data
    tokens: int = 0  # real tokens consumed


def save(
    engine: Any,
    run_dir: str | Path,
    state: TrainState,
    identity: dict[str, Any],
    keep: int,
    validation_loss: float | None = None,
) -> None:
    """Writes a checkpoint, moves `latest` to it and removes all but the newest `keep` and the best.

    Args:
        engine: the DeepSpeed engine.
        run_dir: the run's folder.
        state: where the run stands.
        identity: what a run must be equal in to resume from it (see `check_identity`).
        keep: number of checkpoints that stay, at least 1.
        validation_loss: at this step, if there was a validation; `best` moves to the checkpoint
            with the lowest one.

    Raises:
        UserError: on all ranks, if any cannot write; the checkpoints that were there stay.
    """
    folder = Path(run_dir) / CHECKPOINTS_NAME
    name = f"step-{state.step:09d}"
    partial = folder / f".{name}.partial"
    failure = f"cannot save step {state.step:,}"
    with _all_ranks_agree(failure):
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    own = fragments.fragments(engine)
    if fragments.is_replicated(engine):
        own = own[dist.get_rank() :: dist.get_world_size()]
    with _all_ranks_agree(failure, partial):
        written = FragmentFile.write(partial, dist.get_rank(), own)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, dataclasses.asdict(written))
    contents = {
        "state": dataclasses.asdict(state),
        "identity": identity,
        "validation_loss": validation_loss,
        "optimizer": fragments.numbers(engine),
        "shapes": {n: list(_full_shape(p)) for n, p in engine.module.named_parameters()},
        "files": gathered,
    }
    with _all_ranks_agree(failure, partial):
        if dist.get_rank() == 0:
            files.write_json(partial / STATE_NAME, contents, indent=None)
            is_best = validation_loss is not None and validation_loss < best_validation(run_dir)[0]
            _publish(partial, folder / name, is_best)
            _remove_old(folder, keep)


def load(
    engine: Any, run_dir: str | Path, identity: dict[str, Any], may_differ: Sequence[str] = ()
) -> TrainState:
    """Puts the newest whole checkpoint into the engine; a run without one starts at zero.

    A checkpoint of another number of ranks, ZeRO stage or precision is as good as any.

    Args:
        engine: the DeepSpeed engine.
        run_dir: the run's folder.
        identity: of this run (see `check_identity`).
        may_differ: names of facts in which the checkpoint may differ.

    Raises:
        UserError: the checkpoint belongs to another run (the differences are listed), or none is
            whole.
    """
    reader = _newest_whole(run_dir)
    if reader is None:
        return TrainState()
    check_identity(reader, identity, may_differ)
    fragments.create_states(engine)
    for fragment in fragments.fragments(engine):
        for what, values in fragment.tensors.items():
            values.copy_(reader.read(what, fragment.name, fragment.start, fragment.size))
    fragments.set_numbers(engine, reader.contents["optimizer"])
    fragments.refresh_weights(engine)
    return TrainState(**reader.contents["state"])


def best_validation(run_dir: str | Path) -> tuple[float, int]:
    """Loss and step of the checkpoint that `best` names; infinite and 0 where there is none."""
    folder = Path(run_dir) / CHECKPOINTS_NAME
    pointer = folder / BEST_NAME
    best = folder / pointer.read_text().strip() if pointer.exists() else None
    if best is None or not (best / STATE_NAME).exists():
        return math.inf, 0
    return read_json(best / STATE_NAME)["validation_loss"], step_of(best)


def examine(
    run_dir: str | Path, identity: dict[str, Any], may_differ: Sequence[str] = ()
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
    problem = _first_problem(_damage(reader))
    if problem:
        problems.append(f"{newest}: is damaged ({problem}): a start would put it aside")
    try:
        check_identity(reader, identity, may_differ)
    except UserError as error:
        problems.append(str(error))
    return str(newest), problems


def check_identity(
    reader: CheckpointReader, current: dict[str, Any], may_differ: Sequence[str] = ()
) -> None:
    """Refuses to mix two runs.

    Raises:
        UserError: names every fact in which the checkpoint differs from the run.
    """
    saved = {**reader.contents["identity"], **{name: current[name] for name in may_differ}}
    raise_differences(reader.folder, saved, current)


def raise_differences(place: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuses what another run has left.

    Raises:
        UserError: names every fact in which `current` differs from what was `saved` at `place`.
    """
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
    """Writes the latest checkpoint's weights as RUN/model.safetensors, in float32; on rank 0."""
    if dist.get_rank() == 0:
        export_weights(checkpoints_newest_first(run_dir)[0], Path(run_dir) / WEIGHTS_NAME)
    dist.barrier()


@contextlib.contextmanager
def _all_ranks_agree(what: str, partial: Path | None = None) -> Iterator[None]:
    """Ends a piece of work on all ranks together, with the first one's mistake if there is any."""
    problem = ""
    try:
        yield
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    except UserError as error:
        problem = str(error)
    if first := _first_problem(problem):
        if partial is not None and dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{what}: {first}")


def _first_problem(problem: str) -> str:
    """What the first rank with a problem has, told to all; empty if none has any."""
    problems: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next(filter(None, problems), "")


def _newest_whole(run_dir: str | Path) -> CheckpointReader | None:
    """The newest checkpoint whose files are what was written; damaged ones are named.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    damaged = []
    for path in checkpoints_newest_first(run_dir):
        problem = ""
        try:
            reader = CheckpointReader(path)
            problem = _damage(reader)
        except UserError as error:
            problem = str(error)
        problem = _first_problem(problem)
        if not problem:
            return reader
        damaged.append(f"{path.name}: {problem}")
        if dist.get_rank() == 0:
            _LOG.warning("%s is damaged and put aside: %s", path, damaged[-1])
            path.rename(path.with_name(f"{DAMAGED_PREFIX}{path.name}"))
    if damaged:
        raise UserError(
            f"{run_dir}: no checkpoint is whole ({'; '.join(damaged)}); give another --output_dir"
        )
    return None


def _damage(reader: CheckpointReader) -> str:
    """What is wrong with this rank's share of a checkpoint's files; empty if nothing is."""
    own = reader.files[dist.get_rank() :: dist.get_world_size()]  # hashing is shared out
    return next(filter(None, (file.problem(reader.folder) for file in own)), "")


def _full_shape(parameter: Any) -> torch.Size:
    """Of a parameter that ZeRO-3 may have cut."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _publish(partial: Path, final: Path, is_best: bool) -> None:
    """Makes a complete checkpoint visible, then points `latest` to it."""
    files.fsync(partial)
    shutil.rmtree(final, ignore_errors=True)  # of a run that went on from an earlier step
    partial.rename(final)
    files.fsync(final.parent)
    for pointer in (LATEST_NAME, *([BEST_NAME] if is_best else [])):
        files.write_bytes(final.parent / pointer, f"{final.name}\n".encode())


def _remove_old(folder: Path, keep: int) -> None:
    """Removes all but the newest checkpoints and the best one."""
    best = folder / BEST_NAME
    kept = {best.read_text().strip()} if best.exists() else set()
    for path in sorted(folder.glob("step-*"))[:-keep]:
        if path.name not in kept:
            shutil.rmtree(path)
