"""Checkpoints that are whole or absent, in RUN/checkpoints/step-NNNNNNNNN, `latest` beside them.

DeepSpeed writes the sharded weights and optimizer state; beside them lie `model.safetensors` (the
full weights in float32) and `state.json` (position, and what the run must be to go on from here). A
checkpoint is written under another name, becomes visible when all ranks are done, and only then
does `latest` move. Every function here is called by all ranks together.
"""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import save_file

from dist_bert import files
from dist_bert.config import read_json
from dist_bert.errors import UserError
from dist_bert.run_dir import (
    CHECKPOINTS_NAME,
    LATEST_NAME,
    STATE_NAME,
    WEIGHTS_NAME,
    latest_checkpoint,
)


@dataclasses.dataclass(frozen=True)
class TrainState:
    """Where a run stands: all there is beside weights and optimizer state."""

    step: int = 0  # optimizer steps done
    samples: int = 0  # samples consumed: the position in the data
    tokens: int = 0  # real tokens consumed


def save(
    engine: Any, run_dir: str | Path, state: TrainState, identity: dict[str, Any], keep: int
) -> None:
    """Writes a checkpoint, moves `latest` to it and removes all but the newest `keep`.

    Args:
        engine: the DeepSpeed engine.
        run_dir: the run's folder.
        state: where the run stands.
        identity: what a run must be equal in to resume from it (see `check_identity`).
        keep: number of checkpoints that stay, at least 1.
    """
    folder = Path(run_dir) / CHECKPOINTS_NAME
    name = f"step-{state.step:09d}"
    partial = folder / f".{name}.partial"
    is_first = dist.get_rank() == 0
    if is_first:
        shutil.rmtree(partial, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    weights = full_weights(engine)
    if is_first:
        save_file(weights, partial / WEIGHTS_NAME)
        files.write_json(
            partial / STATE_NAME, {"state": dataclasses.asdict(state), "identity": identity}
        )
    dist.barrier()  # every rank's files are there
    if is_first:
        _publish(partial, folder / name)
        _remove_all_but_newest(folder, keep)
    dist.barrier()


def load(engine: Any, run_dir: str | Path, identity: dict[str, Any]) -> TrainState:
    """Puts the latest checkpoint into the engine; a run without one starts at zero.

    Raises:
        UserError: the checkpoint belongs to another run (the differences are listed).
    """
    path = latest_checkpoint(run_dir)
    if path is None:
        return TrainState()
    saved = read_json(path / STATE_NAME)
    check_identity(path, saved["identity"], identity)
    loaded, _ = engine.load_checkpoint(
        str(path.parent), tag=path.name, load_lr_scheduler_states=False
    )
    assert loaded is not None, f"{path}: DeepSpeed found nothing to load"
    return TrainState(**saved["state"])


def check_identity(path: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuses to mix two runs.

    Raises:
        UserError: names every fact in which the checkpoint differs from the run.
    """
    differences = [
        f"{key} is {current.get(key)!r}, the checkpoint has {saved.get(key)!r}"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key) != current.get(key)
    ]
    if differences:
        raise UserError(
            f"{path}: cannot resume: {'; '.join(differences)}. Use the same settings, or another"
            " --output_dir for a new run"
        )


def full_weights(engine: Any) -> dict[str, torch.Tensor]:
    """All weights in float32, by name, on the CPU of rank 0; the other ranks get an empty dict.

    Works at every ZeRO stage: from the optimizer's float32 copy where the engine keeps one.
    """
    weights = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)  # a collective: every rank takes part
        if dist.get_rank() == 0:
            full = parameter.detach() if full is None else full
            weights[name] = full.to("cpu", torch.float32, copy=True).contiguous()
    return weights


def _publish(partial: Path, final: Path) -> None:
    """Makes a complete checkpoint visible, then points `latest` to it."""
    for path in (*partial.rglob("*"), partial):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(final, ignore_errors=True)  # of a run that went on from an earlier step
    partial.rename(final)
    files.fsync_folder(final.parent)
    files.write_bytes(final.parent / LATEST_NAME, f"{final.name}\n".encode())


def _remove_all_but_newest(folder: Path, keep: int) -> None:
    for path in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(path)
