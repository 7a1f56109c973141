"""What a start of a run leaves in its folder: settings, tokenizer, code, versions, starts.

By rank 0 alone. Not for: the numbers of steps (`dist_bert.training.progress`).
"""

import importlib.metadata
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.checkpoint.run_dir import CONFIG_NAME, INTERRUPTED_NAME, STARTS_NAME, TOKENIZER_NAME
from dist_bert.common import files
from dist_bert.common.code_version import ROOT, code_version
from dist_bert.common.errors import UserError
from dist_bert.common.json_lines import read_rows, write_rows
from dist_bert.common.redaction import redacted, redacted_values
from dist_bert.common.settings import read_json
from dist_bert.data.batches import BatchShape
from dist_bert.distributed.rank_log import now
from dist_bert.training.job import Job
from dist_bert.training.metrics import MetricsWriter

_LOG = logging.getLogger("dist_bert")
_NO_SETTINGS = ("commit", "run.output_dir")
_VERSIONS_KEPT = ("torch", "deepspeed", "numpy", "sentencepiece")


def kept_peak(run_dir: str | Path, device: dict[str, Any]) -> float:
    """The highest peak measured at any start of the run on such devices.

    A busy machine measures too low; one peak for the whole run keeps its MFU comparable.

    Args:
        run_dir: of the run; need not exist.
        device: of this start: `device`, `threads`, `arithmetic`, `world_size` and `peak_flops`.
    """
    same = {name: value for name, value in device.items() if name != "peak_flops"}
    starts = [*read_rows(Path(run_dir) / STARTS_NAME), device]
    return max(
        float(start["peak_flops"])
        for start in starts
        if "peak_flops" in start and same.items() <= start.items()
    )


def open_run(
    job: Job, state: TrainState, device: dict[str, Any], say: Callable[[str], None]
) -> MetricsWriter:
    """Writes what belongs to a start; returns the metrics of the run, open.

    Texts and marks are at the first step of this start, so that another start from the same
    checkpoint, or an earlier one, drops them.

    Args:
        job: what is trained.
        state: where the run stands; at a step, it is resumed.
        device: what the ranks compute on and how, and their peak, as `kept_peak` takes it.
        say: takes a line that lists the settings in which a resumed run differs from its last
            start.
    """
    run_dir = Path(job.run.output_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / INTERRUPTED_NAME).unlink(missing_ok=True)
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS_KEPT}
    commit, diff = code_version(ROOT)
    resolved: dict[str, Any] = {**job.resolved(), "versions": versions, "commit": commit}
    changes = _changes(run_dir / CONFIG_NAME, resolved) if state.step else {}
    if changes:
        told = (f"{name} {_told(old)} -> {_told(new)}" for name, (old, new) in changes.items())
        say(f"resumed with other settings: {', '.join(told)}")
    files.write_json(run_dir / CONFIG_NAME, resolved)
    shutil.copyfile(job.tokenizer_path, run_dir / TOKENIZER_NAME)
    shape = job.batch_shape(state.step + 1)
    start = {
        "time": now(),
        "step": state.step,
        "world_size": shape.world_size,
        "zero_stage": job.deepspeed.zero_stage,
        "precision": job.deepspeed.precision,
        "micro_batch_size": shape.micro_batch_size,
        "accumulation_steps": shape.accumulation_steps,
        "micro_batch_tokens": shape.micro_batch_tokens,
        "commit": commit,
        "versions": versions,
        "changes": changes,
        **device,
    }
    starts = [*read_rows(run_dir / STARTS_NAME, ("time",)), start]
    write_rows(run_dir / STARTS_NAME, starts)  # whole: a line cut off by a kill would stay
    writer = MetricsWriter(run_dir, state.step)
    first = state.step + 1
    writer.text(first, "run/config", _code_block("json", json.dumps(resolved, indent=2)))
    diff = redacted(diff)
    code = f"commit {commit}" if commit else "no git checkout"
    writer.text(first, "run/code", f"{code}\n\n{_code_block('diff', diff)}" if diff else code)
    writer.text(first, "run/starts", _as_table(starts))
    if state.step < job.run.num_train_steps:
        writer.mark(first, "progress/restarts", len(starts) - 1)
    writer.flush()
    return writer


def first_line(job: Job, state: TrainState, device: dict[str, Any]) -> str:
    """What begins, on what, and how it computes; `device` as `open_run` takes it."""
    shape = job.batch_shape(state.step + 1)
    threads = f", {device['threads']} threads a rank" if device["threads"] > 1 else ""
    return (
        f"{'resumed at' if state.step else 'starting from'} step {state.step:,} of"
        f" {job.run.num_train_steps:,}: {shape.global_batch_size} samples a step ="
        f" {_division(shape)}, ZeRO {job.deepspeed.zero_stage}, {device['arithmetic']},"
        f" on {device['device']}{threads}"
    )


def _division(shape: BatchShape) -> str:
    """How a global batch is divided."""
    if shape.micro_batch_tokens:
        return f"{shape.world_size} ranks x micro-steps of {shape.micro_batch_tokens:,} tokens"
    return (
        f"{shape.world_size} ranks x {shape.accumulation_steps} micro-steps x"
        f" {shape.micro_batch_size}"
    )


def _changes(path: Path, resolved: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that are not those of the last start, a.b.c -> what it had and what it has now.

    None means that one of them has no such setting. Where the run is stored is no setting, nor
    is the code's commit, which the start has by itself.
    """
    try:
        before, after = _flat(redacted_values(read_json(path))), _flat(resolved)
    except UserError as error:  # damaged, or removed: it is written again
        _LOG.warning("%s: how the settings differ from the last start's is not known", error)
        return {}
    return {
        name: (before.get(name), after.get(name))
        for name in [*after, *(name for name in before if name not in after)]
        if before.get(name) != after.get(name) and name not in _NO_SETTINGS
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values inside of nested objects, by a.b.c; lists are values."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _told(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _code_block(language: str, text: str) -> str:
    """Markdown of a text as it is: longer fences than any that it holds."""
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _as_table(starts: list[dict[str, Any]]) -> str:
    """All starts so far, a row each."""
    names = ("time", "step", "world_size", "zero_stage", "precision", "micro_batch_size", "commit")
    rows = [" | ".join(str(start.get(name, "")) for name in names) for start in starts]
    header = " | ".join(name.replace("_", " ") for name in names)
    return "\n".join(f"| {line} |" for line in (header, " | ".join("---" for _ in names), *rows))
