"""What a start of a run leaves in its folder: settings, tokenizer, code, versions, starts.

By rank 0 alone. Not for: the numbers of steps (`dist_bert.progress`).
"""

import datetime
import importlib.metadata
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from dist_bert import files
from dist_bert.checkpoint import TrainState
from dist_bert.interrupts import INTERRUPTED_NAME
from dist_bert.job import Job
from dist_bert.metrics import MetricsWriter, read_rows, write_rows
from dist_bert.run_dir import CONFIG_NAME, STARTS_NAME, TOKENIZER_NAME

_VERSIONS_KEPT = ("torch", "deepspeed", "numpy", "sentencepiece")
_MAX_DIFF = 50_000  # characters; TensorBoard's page gets slow with more
_GIT_SECONDS = 10.0  # on a file system that hangs, a run starts without its commit
_ROOT = Path(__file__).parents[1]


def open_run(job: Job, state: TrainState) -> MetricsWriter:
    """Writes what belongs to a start; returns the metrics of the run, open.

    Texts and marks stand at the first step of this start, so that another start from the same
    checkpoint, or an earlier one, drops them.
    """
    run_dir = Path(job.run.output_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / INTERRUPTED_NAME).unlink(missing_ok=True)
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS_KEPT}
    commit, changes = code_version(_ROOT)
    resolved: dict[str, Any] = {**job.resolved(), "versions": versions, "commit": commit}
    files.write_json(run_dir / CONFIG_NAME, resolved)
    shutil.copyfile(job.tokenizer_path, run_dir / TOKENIZER_NAME)
    shape = job.deepspeed.batch_shape
    start = {
        "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "step": state.step,
        "world_size": shape.world_size,
        "zero_stage": job.deepspeed.zero_stage,
        "precision": job.deepspeed.precision,
        "micro_batch_size": shape.micro_batch_size,
        "accumulation_steps": shape.accumulation_steps,
        "commit": commit,
        "versions": versions,
    }
    starts = [*read_rows(run_dir / STARTS_NAME), start]
    write_rows(run_dir / STARTS_NAME, starts)  # whole: a line cut off by a kill would stay
    writer = MetricsWriter(run_dir, state.step)
    first = state.step + 1
    writer.text(first, "run/config", _code_block("json", json.dumps(resolved, indent=2)))
    code = f"commit {commit}" if commit else "no git checkout"
    writer.text(first, "run/code", f"{code}\n\n{_code_block('diff', changes)}" if changes else code)
    writer.text(first, "run/starts", _as_table(starts))
    if state.step < job.run.num_train_steps:
        writer.mark(first, "progress/restarts", len(starts) - 1)
    writer.flush()
    return writer


def code_version(root: Path) -> tuple[str | None, str]:
    """The commit of a git checkout, and what is not committed: its status and its diff.

    Args:
        root: top folder of the checkout.

    Returns:
        None and "" where `root` is none, or git is missing or fails.
    """
    try:
        if _git(root, "rev-parse", "--show-toplevel").strip() != str(root.resolve()):
            return None, ""  # a package installed below somebody else's checkout
        commit = _git(root, "rev-parse", "HEAD").strip()
        changes = _git(root, "status", "--short") + _git(root, "diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None, ""
    if len(changes) > _MAX_DIFF:
        changes = f"{changes[:_MAX_DIFF]}\n... and {len(changes) - _MAX_DIFF:,} characters more\n"
    return commit, changes


def _git(root: Path, *arguments: str) -> str:
    ended = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(root), *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=True,
        timeout=_GIT_SECONDS,
    )
    return ended.stdout


def _code_block(language: str, text: str) -> str:
    """Markdown of a text as it is: longer fences than any that it holds."""
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _as_table(starts: list[dict[str, Any]]) -> str:
    """All starts so far, a row each."""
    names = ("time", "step", "world_size", "zero_stage", "precision", "micro_batch_size", "commit")
    rows = [" | ".join(str(start[name]) for name in names) for start in starts]
    header = " | ".join(name.replace("_", " ") for name in names)
    return "\n".join(f"| {line} |" for line in (header, " | ".join("---" for _ in names), *rows))
