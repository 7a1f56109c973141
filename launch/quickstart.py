"""The main job in small, on real text of this machine: text, tokenizer, shards, training, answers.

The corpus is the documentation of the installed Python packages, so nothing is downloaded. Training
begins with samples of 32 tokens, on which a small budget leaves the masked LM's first plateau, and
goes on with 128. The second run is killed once on the way and started again, to show that it goes
on where it was. Started by `make quickstart`; every step is a command of this repository, printed
before it runs.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dist_bert.cli import Parser, run
from dist_bert.config import read_json
from dist_bert.errors import UserError
from dist_bert.files import write_json
from dist_bert.metrics import read_metrics
from dist_bert.rendezvous import free_port
from dist_bert.run_dir import latest_checkpoint
from dist_bert.shard_format import MANIFEST_NAME

DATA = Path("data/quickstart")
TOKENIZER_DIR = DATA / "tokenizer"
SHARDS = DATA / "shards"
DEFAULT_SHARDS = Path("data/shards")  # where launch/pretrain.py looks
RUN_DIR = Path("runs/quickstart")
SHORT_LENGTH, SHORT_STEPS = 32, 2_000  # tokens of a sample in the first run, and its steps
SHORT_SHARDS = DATA / "short_shards"
SHORT_RUN_DIR = Path("runs/quickstart_short")
RUN_CONFIG = Path("configs/run/quickstart.json")
SENTENCES = (
    "Return the [MASK] of the array along the given axis.",
    "If the file does not exist, an error is [MASK].",
    "The default [MASK] is None.",
    "Returns True if the object is an [MASK] of the class.",
    "Read at most n [MASK] from the stream.",
)
_LAUNCHER_NOISE = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+\] \[(INFO|WARNING)\]")


class Steps:
    """Runs the steps one after the other, tells each and keeps its time."""

    def __init__(self, total: int, setup_seconds: float) -> None:
        self.seconds: dict[str, float] = {"setup": setup_seconds}
        self._total = total

    def do(self, name: str, what: str, work: Callable[[], Any]) -> Any:
        """Announces a step, runs it and returns its result."""
        print(f"\n[{len(self.seconds)}/{self._total}] {what}", flush=True)
        start = time.monotonic()
        result = work()
        self.seconds[name] = round(time.monotonic() - start, 1)
        print(f"    {self.seconds[name]:.0f} s", flush=True)
        return result


def main(arguments: argparse.Namespace) -> None:
    """Runs all steps and prints what came out."""
    for folder in (DATA, SHORT_RUN_DIR, RUN_DIR):  # an earlier quickstart's: this shows it anew
        shutil.rmtree(folder, ignore_errors=True)
    steps = Steps(total=8, setup_seconds=arguments.setup_seconds)
    tokenizer = TOKENIZER_DIR / "tokenizer.model"
    vocab_size = read_json("configs/model/quickstart.json")["vocab_size"]
    steps.do(
        "train_tokenizer",
        "a SentencePiece vocabulary from the documentation of the installed Python packages",
        lambda: _call(
            "python launch/train_tokenizer.py --lower_case true --max_sentences 60000"
            f" --vocab_size {vocab_size} --output_dir {TOKENIZER_DIR}"
        ),
    )
    prepare = (
        "mpiexec -n 2 python -m mpi4py launch/prepare_shards.py"
        f" --tokenizer {tokenizer} --token_store {DATA / 'token_store'} --output_dir"
    )
    pretrain = (
        f"deepspeed {_launcher_flags()} launch/pretrain.py"
        " --deepspeed_config configs/quickstart_zero2.json --model configs/model/quickstart.json"
        f" --config {RUN_CONFIG}"
    )
    steps.do(
        "prepare_short_shards",
        f"shards of ready-made samples of {SHORT_LENGTH} tokens, with 2 MPI ranks",
        lambda: _call(f"{prepare} {SHORT_SHARDS} --sequence_length {SHORT_LENGTH}"),
    )
    steps.do(
        "pretrain_short",
        "pretraining on them, with ZeRO-2 and bf16",
        lambda: _call(
            f"{pretrain} --shards {SHORT_SHARDS} --output_dir {SHORT_RUN_DIR}"
            f" --max_position_embeddings {SHORT_LENGTH} --num_train_steps {SHORT_STEPS}"
        ),
    )
    steps.do(
        "prepare_shards",
        "shards of 128 tokens, from the same encoded text",
        lambda: _call(f"{prepare} {SHARDS}"),
    )
    pretrain += (
        f" --shards {SHARDS} --output_dir {RUN_DIR}"
        f" --init_from {SHORT_RUN_DIR} --extend_positions true"
    )
    if not os.path.lexists(DEFAULT_SHARDS):
        DEFAULT_SHARDS.symlink_to(SHARDS.relative_to(DEFAULT_SHARDS.parent))
    kill_at = read_json(RUN_CONFIG)["num_train_steps"] // 2
    killed_at = steps.do(
        "pretrain_until_killed",
        f"pretraining goes on with them; killed without warning after step {kill_at:,}",
        lambda: _call_and_kill(pretrain, kill_at),
    )
    checkpoint = latest_checkpoint(RUN_DIR)
    assert checkpoint is not None
    print(f"    killed with -9 at step {killed_at:,}; the latest checkpoint is {checkpoint.name}")
    steps.do("pretrain_resumed", "the same command again: it resumes", lambda: _call(pretrain))
    steps.do(
        "evaluate",
        "scores on the held-out documents",
        lambda: _call(
            f"python launch/evaluate.py --checkpoint {RUN_DIR} --shards {SHARDS}"
            f" --json {RUN_DIR / 'evaluation.json'}"
        ),
    )
    quoted = " ".join(map(shlex.quote, SENTENCES))
    steps.do(
        "fill_mask",
        "what stands behind [MASK]?",
        lambda: _call(f"python launch/fill_mask.py --checkpoint {RUN_DIR} {quoted}"),
    )
    summary = _summary(steps.seconds)
    write_json(RUN_DIR / "summary.json", summary)
    _print_summary(summary)


def _environment() -> dict[str, str]:
    """This interpreter's scripts (deepspeed, mpiexec) come first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    device = {} if _num_gpus() else {"DS_ACCELERATOR": "cpu"}  # unnamed, DeepSpeed warns of it
    return {**os.environ, **device, "PATH": path, "PYTHONUNBUFFERED": "1"}


def _num_gpus() -> int:
    """GPUs of this machine, by their device files: torch takes seconds to say."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _launcher_flags() -> str:
    """All GPUs (a power of two of them, which divides the batch); 2 ranks where there are none."""
    ranks = 1 << (_num_gpus().bit_length() - 1) if _num_gpus() else min(2, os.cpu_count() or 1)
    return f"--num_gpus {ranks} --master_port {free_port()}"


@contextlib.contextmanager
def _running(command: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a command; whatever is left of it at the end, by Ctrl-C too, is killed."""
    print(f"    $ {command}", flush=True)
    process = subprocess.Popen(
        shlex.split(command),
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group of its own, so that all of it can be killed
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _call(command: str) -> None:
    """Runs a command to its end, showing what it prints.

    Raises:
        UserError: it failed.
    """
    with _running(command) as process:
        _show(process, until=None)
        if process.wait() != 0:
            raise UserError(f"this command ended with exit code {process.returncode}: {command}")


def _call_and_kill(command: str, step: int) -> int:
    """Kills a training command and all its processes once it has passed a step; returns where.

    Raises:
        UserError: it ended before.
    """
    with _running(command) as process:
        reached = _show(process, until=step)
    if reached is None:
        raise UserError(f"this command ended before step {step}: {command}")
    return reached


def _show(process: subprocess.Popen[str], until: int | None) -> int | None:
    """Prints a process's output, without the launcher's own log lines, to its end or to a step."""
    assert process.stdout is not None
    for line in process.stdout:
        if _LAUNCHER_NOISE.match(line):
            continue
        print(f"    {line.rstrip()}", flush=True)
        reported = re.match(r"step ([\d,]+)/", line)
        if until is not None and reported and int(reported[1].replace(",", "")) > until:
            return int(reported[1].replace(",", ""))
    return None


def _summary(step_seconds: dict[str, float]) -> dict[str, Any]:
    manifest = read_json(SHARDS / MANIFEST_NAME)
    scores = read_json(RUN_DIR / "evaluation.json")
    rates = [
        row["throughput/tokens_per_second"]
        for row in read_metrics(RUN_DIR)
        if "throughput/tokens_per_second" in row
    ]
    return {
        "documents": manifest["totals"]["documents"],
        "train_tokens": manifest["statistics"]["train"]["num_tokens"],
        "samples": manifest["totals"]["samples"],
        "validation_mlm_loss": scores["mlm_loss"],
        "unigram_loss": scores["unigram_loss"],
        "validation_mlm_accuracy": scores["mlm_accuracy"],
        "majority_accuracy": scores["majority_accuracy"],
        "validation_nsp_accuracy": scores["nsp_accuracy"],
        "tokens_per_second": sum(rates) / len(rates),
        "step_seconds": step_seconds,
    }


def _print_summary(summary: dict[str, Any]) -> None:
    seconds: dict[str, float] = summary["step_seconds"]
    counts = ("documents", "train_tokens", "samples", "tokens_per_second")
    scores = (
        ("MLM loss (nats)", "validation_mlm_loss", "unigram_loss", "unigram distribution", ".3f"),
        ("MLM accuracy", "validation_mlm_accuracy", "majority_accuracy", "commonest piece", ".1%"),
        ("NSP accuracy", "validation_nsp_accuracy", None, "chance", ".1%"),
    )
    print()
    for name in counts:
        print(f"{name.replace('_', ' '):<20}{summary[name]:>12,.0f}")
    print(f"\n{'':<20}{'held out':>12}{'baseline':>12}")
    for title, name, baseline_name, baseline_title, form in scores:
        baseline = summary[baseline_name] if baseline_name else 0.5
        print(f"{title:<20}{summary[name]:>12{form}}{baseline:>12{form}}  {baseline_title}")
    print()
    for name, value in seconds.items():
        print(f"{name.replace('_', ' '):<24}{value:>6.0f} s")
    print(f"{'all':<24}{sum(seconds.values()):>6.0f} s")
    print(f"\nthe curves       {Path(sys.executable).parent}/tensorboard --logdir {RUN_DIR}")
    print(f"the figures      {RUN_DIR}/summary.json")
    print("your own corpus  README.md: the same commands with --input 'text/**/*.txt'")


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--setup_seconds", type=float, default=0.0, help="time that the set-up took, for the table"
    )
    run(main, parser.parse_args())
