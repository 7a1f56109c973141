"""Runs an entry of a track once for each seed, against the clock, and scores what it trained."""

import datetime
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_bert.common.code_version import ROOT, code_version
from dist_bert.common.device import num_wanted_gpus
from dist_bert.common.errors import UserError
from dist_bert.common.files import fingerprint, write_json
from dist_bert.common.machine import machine
from dist_bert.common.settings import read_json
from dist_bert.data.shard_format import MANIFEST_NAME
from dist_bert.pretraining.recipe import resolve_run
from dist_bert.tools.commands import call, launcher_flags
from dist_bert.tools.speedrun.record import Attempt, Record, told
from dist_bert.tools.speedrun.track import (
    CLASSES,
    LEAST_SEEDS,
    Track,
    flags_for,
    with_shards_in,
)
from dist_bert.training.metrics import read_metrics

_SETTINGS = "prepared_by.json"  # in a track's folder of data, once all of it is there


def run(track: Track, machine_class: str, seeds: Sequence[int], change: str) -> Record:
    """Prepares the track's data where they are missing, then trains and scores each seed.

    The clock counts the training's command from its start to its end: imports, validations and
    checkpoints too. It does not count the text, the tokenizer, the shards and the scoring.

    Args:
        track: with the entry to run.
        machine_class: one of `CLASSES`; this process keeps to so many cores from now on.
        seeds: at least three, all different.
        change: what is new, for the record.

    Raises:
        UserError: too few seeds, cores or GPUs, a wrong recipe, other held-out samples than the
            track's, or a command failed.
    """
    if len(set(seeds)) < max(LEAST_SEEDS, len(seeds)):
        raise UserError(
            f"--seeds {' '.join(map(str, seeds))}: must be at least {LEAST_SEEDS}, all different:"
            " a record is a mean of trainings"
        )
    ranks = take(machine_class)
    resolve_run(None, {"recipe": track.recipe})  # whether it is one
    recipe = with_shards_in(read_json(track.recipe), track.data)
    model, deepspeed_config = read_json(track.model), read_json(track.deepspeed_config)
    prepare(track)
    held_out = validation_sha256(track.held_out)
    if track.validation_sha256 not in ("", held_out):
        raise UserError(
            f"{track.held_out}: its held-out samples are {held_out}, the track's are"
            f" {track.validation_sha256}: give it the text that the track was made for"
        )
    runs = Path("runs/speedrun") / track.name
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True)
    write_json(runs / "recipe.json", recipe)
    attempts = []
    for number, seed in enumerate(seeds, start=1):
        print(f"\n[{number}/{len(seeds)}] {track.name}, {machine_class}, seed {seed}", flush=True)
        flags = {
            "recipe": runs / "recipe.json",
            "model": track.model,
            "deepspeed_config": track.deepspeed_config,
            "seed": seed,
            "output_dir": runs / f"seed_{seed}",
        }
        command = f"deepspeed {launcher_flags(ranks)} launch/pretrain.py{flags_for(flags)}"
        attempts.append(_attempt(command, runs / f"seed_{seed}", track.held_out, seed))
    commit, changes = code_version(ROOT)
    record = Record(
        date=datetime.date.today().isoformat(),
        track=track.name,
        machine_class=machine_class,
        change=change,
        target_mlm_loss=track.target_mlm_loss,
        validation_sha256=held_out,
        attempts=attempts,
        recipe=recipe,
        model=model,
        deepspeed_config=deepspeed_config,
        machine=machine(),
        commit=commit,
        has_changes=bool(changes),
    )
    print(f"\n{told(record)}")
    return record


def validation_sha256(shards: Path) -> str:
    """A hash of a data set's held-out samples with their masks, and of its tokenizer."""
    manifest = read_json(shards / MANIFEST_NAME)
    hashes = [shard["sha256"] for shard in manifest["splits"]["validation"]]
    return fingerprint([manifest["tokenizer"]["fingerprint"], *hashes])


def take(machine_class: str) -> int:
    """Keeps this process, and what it starts, to the machine of a class; returns its ranks.

    Raises:
        UserError: this machine has too few cores or no GPUs.
    """
    gpus, cores = num_wanted_gpus(), sorted(os.sched_getaffinity(0))
    ranks = CLASSES[machine_class] or gpus
    available = gpus if machine_class in ("one_gpu", "node") else len(cores)
    if available < max(1, ranks):
        raise UserError(
            f"--class {machine_class}: this machine has {len(cores)} cores and {gpus} GPUs: choose"
            f" another of {', '.join(CLASSES)}"
        )
    if machine_class in ("one_core", "two_cores"):
        os.sched_setaffinity(0, cores[:ranks])
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    return ranks


def prepare(track: Track) -> None:
    """Makes tokenizer and data sets of a track, unless they are there by the same settings."""
    settings: dict[str, Any] = {"input": track.input, "commands": track.preparation()}
    if (track.data / _SETTINGS).exists() and read_json(track.data / _SETTINGS) == settings:
        return
    shutil.rmtree(track.data, ignore_errors=True)
    track.data.mkdir(parents=True)
    text = f" --input {' '.join(map(shlex.quote, track.input))}" if track.input else ""
    for command in track.preparation():
        call(command + text)
    write_json(track.data / _SETTINGS, settings)


def _attempt(command: str, run_dir: Path, held_out: Path, seed: int) -> Attempt:
    """Trains against the clock, then scores."""
    start = time.monotonic()
    call(command)
    seconds = time.monotonic() - start
    scores_file = run_dir / "evaluation.json"
    flags = {"checkpoint": run_dir, "shards": held_out, "json": scores_file}
    call(f"python launch/evaluate.py{flags_for(flags)}")
    scores = read_json(scores_file)
    return Attempt(
        seed=seed,
        seconds=round(seconds, 1),
        mlm_loss=scores["mlm_loss"],
        mlm_accuracy=scores["mlm_accuracy"],
        nsp_accuracy=scores.get("nsp_accuracy"),
        tokens=int(max(row.get("progress/tokens", 0) for row in read_metrics(run_dir))),
    )
