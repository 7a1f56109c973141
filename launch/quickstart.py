"""The main job in small, on real text of this machine: text, tokenizer, shards, training, answers.

The corpus is the documentation of the installed Python packages, so nothing is downloaded. The
quickstart ends within ten minutes: it measures a few steps and chooses the model and the number of
steps that this machine can do (`dist_bert/time_budget.py`). Training begins with samples of 32
tokens, on which a small budget leaves the masked LM's first plateau, and continues with 128. The
second run is killed half-way and started again, to show that it resumes. Started by `make
quickstart`; every step is a command of this repository, printed before it runs.
"""

import argparse
import contextlib
import dataclasses
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

from dist_bert import time_budget
from dist_bert.cli import Parser, run
from dist_bert.config import read_json
from dist_bert.device import arithmetic
from dist_bert.errors import UserError
from dist_bert.files import write_json
from dist_bert.metrics import read_metrics
from dist_bert.run_dir import latest_checkpoint
from dist_bert.shard_format import MANIFEST_NAME

DATA = Path("data/quickstart")
TOKENIZER_DIR = DATA / "tokenizer"
SHARDS = DATA / "shards"
DEFAULT_SHARDS = Path("data/shards")  # where launch/pretrain.py looks
RUN_DIR = Path("runs/quickstart")
SHORT_LENGTH = 32  # tokens of a sample in the first run
SHORT_SHARDS = DATA / "short_shards"
SHORT_RUN_DIR = Path("runs/quickstart_short")
TRIAL_DIR = Path("runs/quickstart_trial")
TRIAL_STEPS = 20
RUN_CONFIG = Path("configs/run/quickstart.json")
DEEPSPEED_CONFIG = Path("configs/quickstart_zero2.json")
MODELS = (Path("configs/model/quickstart.json"), Path("configs/model/quickstart_small.json"))
LONG_TO_SHORT = 3.5  # times that a step on 128 tokens takes; such samples are rarely full
LIMIT_SECONDS = 570.0  # for everything, the set-up included
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
        self._start = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the set-up began."""
        return self.seconds["setup"] + time.monotonic() - self._start

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
    for folder in (DATA, TRIAL_DIR, SHORT_RUN_DIR, RUN_DIR):  # an earlier quickstart's
        shutil.rmtree(folder, ignore_errors=True)
    steps = Steps(total=9, setup_seconds=arguments.setup_seconds)
    tokenizer = TOKENIZER_DIR / "tokenizer.model"
    steps.do(
        "train_tokenizer",
        "a SentencePiece vocabulary from the documentation of the installed Python packages",
        lambda: _call(
            "python launch/train_tokenizer.py --lower_case true --max_sentences 60000"
            f" --vocab_size {read_json(MODELS[0])['vocab_size']} --output_dir {TOKENIZER_DIR}"
        ),
    )
    prepare = (
        "mpiexec -n 2 python -m mpi4py launch/prepare_shards.py"
        f" --tokenizer {tokenizer} --token_store {DATA / 'token_store'} --output_dir"
    )
    steps.do(
        "prepare_short_shards",
        f"shards of ready-made samples of {SHORT_LENGTH} tokens, with 2 MPI ranks",
        lambda: _call(f"{prepare} {SHORT_SHARDS} --sequence_length {SHORT_LENGTH}"),
    )
    trial = steps.do(
        "trial",
        f"a trial of {TRIAL_STEPS} steps: what can this machine train in ten minutes?",
        lambda: _choose_model(steps),
    )
    plan = time_budget.schedule(trial.seconds_left(steps), trial.step_seconds, LONG_TO_SHORT)
    pretrain = _pretrain(trial.model)
    steps.do(
        "pretrain_short",
        f"pretraining on them with ZeRO-2, {_ranks_and_arithmetic()}: {plan.short_steps:,} steps",
        lambda: _call(
            f"{pretrain} --shards {SHORT_SHARDS} --output_dir {SHORT_RUN_DIR}"
            f" --max_position_embeddings {SHORT_LENGTH} {time_budget.run_flags(plan.short_steps)}"
        ),
    )
    steps.do(
        "prepare_shards",
        "shards of 128 tokens, from the same encoded text",
        lambda: _call(f"{prepare} {SHARDS}"),
    )
    if not os.path.lexists(DEFAULT_SHARDS):
        DEFAULT_SHARDS.symlink_to(SHARDS.relative_to(DEFAULT_SHARDS.parent))
    step_seconds = time_budget.settled(_step_seconds(SHORT_RUN_DIR)) * LONG_TO_SHORT
    num_steps = time_budget.long_steps(trial.seconds_left(steps, num_starts=2), step_seconds)
    pretrain += (
        f" --shards {SHARDS} --output_dir {RUN_DIR} --init_from {SHORT_RUN_DIR}"
        f" --extend_positions true {time_budget.run_flags(num_steps)}"
    )
    killed_at = steps.do(
        "pretrain_until_killed",
        f"pretraining continues with them, {num_steps:,} steps; killed without warning half-way",
        lambda: _call_and_kill(pretrain, num_steps // 2),
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
        "which pieces fit at [MASK]?",
        lambda: _call(f"python launch/fill_mask.py --checkpoint {RUN_DIR} {quoted}"),
    )
    summary = _summary(steps.seconds, trial.model)
    write_json(RUN_DIR / "summary.json", summary)
    _print_summary(summary)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a few steps of a model have shown.

    Attributes:
        model: its JSON.
        step_seconds: of a step on short samples.
        start_seconds: of a training process besides its steps.
    """

    model: Path
    step_seconds: float
    start_seconds: float

    def seconds_left(self, steps: Steps, num_starts: int = 3) -> float:
        """Time for training steps, once everything else that is still to do is subtracted."""
        # The second set of shards reads the encoded text; scores and answers start twice more.
        other = steps.seconds.get("prepare_short_shards", 0.0) / 2 + 3 * self.start_seconds
        return time_budget.training_seconds(
            LIMIT_SECONDS, steps.elapsed(), num_starts * self.start_seconds + other
        )


def _choose_model(steps: Steps) -> Trial:
    """The larger model if enough steps of it fit into the time that is left, else the smaller."""
    for model in MODELS:
        start = time.monotonic()
        shutil.rmtree(TRIAL_DIR, ignore_errors=True)
        _call(
            f"{_pretrain(model)} --shards {SHORT_SHARDS} --output_dir {TRIAL_DIR}"
            f" --max_position_embeddings {SHORT_LENGTH} {time_budget.run_flags(TRIAL_STEPS)}"
        )
        step_seconds = time_budget.settled(_step_seconds(TRIAL_DIR))
        taken = time.monotonic() - start
        trial = Trial(model, step_seconds, max(0.0, taken - TRIAL_STEPS * step_seconds))
        left = trial.seconds_left(steps)
        if time_budget.is_worthwhile(left, step_seconds, LONG_TO_SHORT):
            break
    name = "the usual model" if trial.model == MODELS[0] else "a smaller model than usual"
    print(
        f"    {step_seconds:.2g} s a step, {left:.0f} s left for steps: {name} ({trial.model.name})"
    )
    return trial


def _step_seconds(run_dir: Path) -> list[float]:
    """Seconds of every step of a run, as its metrics have them."""
    name = "throughput/step_seconds"
    return [row[name] for row in read_metrics(run_dir) if name in row]


def _pretrain(model: Path) -> str:
    return (
        f"deepspeed {_launcher_flags()} launch/pretrain.py --deepspeed_config {DEEPSPEED_CONFIG}"
        f" --model {model} --config {RUN_CONFIG}"
    )


def _ranks_and_arithmetic() -> str:
    device = "cuda" if _num_gpus() else "cpu"
    unit = "GPUs" if _num_gpus() else "CPU ranks"
    return f"{_num_ranks()} {unit}, {arithmetic('bf16', device)}"


def _environment() -> dict[str, str]:
    """This interpreter's scripts (deepspeed, mpiexec) come first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    device = {} if _num_gpus() else {"DS_ACCELERATOR": "cpu"}  # unnamed, DeepSpeed warns of it
    return {**os.environ, **device, "PATH": path, "PYTHONUNBUFFERED": "1"}


def _num_gpus() -> int:
    """GPUs of this machine, by their device files: torch takes seconds to say."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _num_ranks() -> int:
    """All GPUs (a power of two of them, which divides the batch); 2 ranks where there are none."""
    return 1 << (_num_gpus().bit_length() - 1) if _num_gpus() else min(2, os.cpu_count() or 1)


def _launcher_flags() -> str:
    return f"--num_gpus {_num_ranks()}"


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


def _summary(step_seconds: dict[str, float], model: Path) -> dict[str, Any]:
    manifest = read_json(SHARDS / MANIFEST_NAME)
    scores = read_json(RUN_DIR / "evaluation.json")
    rates = [
        row["throughput/tokens_per_second"]
        for row in read_metrics(RUN_DIR)
        if "throughput/tokens_per_second" in row
    ]
    return {
        "model": model.name,
        "training": _ranks_and_arithmetic(),
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
    print(f"\nmodel    {summary['model']}\ntraining {summary['training']}\n")
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
