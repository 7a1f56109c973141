"""The main job in small, on real text of this machine: text, tokenizer, shards, training, answers.

The corpus is the documentation of the installed Python packages, so nothing is downloaded. The
quickstart ends within ten minutes: it measures a few steps and chooses the model and the number of
steps that this machine can do (`dist_bert/tools/quickstart/time_budget.py`). Training begins with
samples of 16 and 32 tokens, on which a small budget leaves the masked LM's first plateau, and
continues with 128. The last run is killed half-way and started again, to show that it resumes.
Started by `make quickstart`; every step is a command of this repository, printed before it runs.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dist_bert.checkpoint.run_dir import latest_checkpoint
from dist_bert.common.cli import Parser, run
from dist_bert.common.device import arithmetic
from dist_bert.common.errors import UserError
from dist_bert.common.files import write_json
from dist_bert.common.settings import read_json
from dist_bert.data.shard_format import MANIFEST_NAME
from dist_bert.distributed.rendezvous import free_port
from dist_bert.tools.quickstart import time_budget
from dist_bert.tools.quickstart.time_budget import Phase
from dist_bert.training.metrics import read_metrics


@dataclasses.dataclass(frozen=True)
class Model:
    """A model JSON, and the peak learning rate that suits its size."""

    path: str
    lr: float


DATA = Path("data/quickstart")
TOKENIZER_DIR = DATA / "tokenizer"
SHARDS = DATA / "shards"
DEFAULT_SHARDS = Path("data/shards")  # where launch/pretrain.py looks
RUN_DIR = Path("runs/quickstart")
TRIAL_DIR = Path("runs/quickstart_trial")
TRIAL_STEPS = 20
RUN_CONFIG = Path("configs/run/quickstart.json")
DEEPSPEED_CONFIG = Path("configs/quickstart_zero2.json")
MODELS = (
    Model("configs/model/quickstart.json", lr=0.0012),
    Model("configs/model/quickstart_small.json", lr=0.003),
)
PHASES = (  # steps of the last one take 3.5 times as long: samples of 128 tokens are rarely full
    Phase(16, 128, cost=1.0, most_steps=800, least_steps=60, share=0.3),
    Phase(32, 64, cost=1.0, most_steps=1_200, least_steps=60, share=0.3),
    Phase(128, 64, cost=3.5, most_steps=800, least_steps=40, share=0.4),
)
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
    run_dirs = [_run_dir(phase) for phase in PHASES]
    for folder in (DATA, TRIAL_DIR, *run_dirs):  # an earlier quickstart's
        shutil.rmtree(folder, ignore_errors=True)
    steps = Steps(total=11, setup_seconds=arguments.setup_seconds)
    steps.do(
        "train_tokenizer",
        "a SentencePiece vocabulary from the documentation of the installed Python packages",
        lambda: _call(
            "python launch/train_tokenizer.py --lower_case true --max_sentences 60000"
            f" --vocab_size {read_json(MODELS[0].path)['vocab_size']} --output_dir {TOKENIZER_DIR}"
        ),
    )
    _prepare(steps, PHASES[0])
    trial = steps.do(
        "trial",
        f"a trial of {TRIAL_STEPS} steps: what can this machine train in ten minutes?",
        lambda: _choose_model(steps),
    )
    step_seconds = trial.step_seconds
    for done, phase in enumerate(PHASES[:-1]):
        if done:
            _prepare(steps, phase)
        left = trial.seconds_left(steps, done)
        num_steps = time_budget.next_steps(PHASES[done:], left, step_seconds * phase.cost)
        command = _pretrain(trial.model, phase, run_dirs[done], num_steps, run_dirs[:done])
        steps.do(
            f"pretrain_{phase.sequence_length}",
            f"pretraining on them, {num_steps:,} steps: ZeRO-2, {_ranks_and_arithmetic()}",
            functools.partial(_call, command),
        )
        step_seconds = time_budget.settled(_step_seconds(run_dirs[done])) / phase.cost
    last = len(PHASES) - 1
    _prepare(steps, PHASES[last])
    if not os.path.lexists(DEFAULT_SHARDS):
        DEFAULT_SHARDS.symlink_to(SHARDS.relative_to(DEFAULT_SHARDS.parent))
    left = trial.seconds_left(steps, last)
    num_steps = time_budget.next_steps(PHASES[last:], left, step_seconds * PHASES[last].cost)
    command = _pretrain(trial.model, PHASES[last], RUN_DIR, num_steps, run_dirs[:last])
    killed_at = steps.do(
        "pretrain_until_killed",
        f"pretraining continues with them, {num_steps:,} steps; killed without warning half-way",
        lambda: _call_and_kill(command, num_steps // 2),
    )
    checkpoint = latest_checkpoint(RUN_DIR)
    assert checkpoint is not None
    print(f"    killed with -9 at step {killed_at:,}; the latest checkpoint is {checkpoint.name}")
    steps.do("pretrain_resumed", "the same command again: it resumes", lambda: _call(command))
    _use(steps)
    summary = _summary(steps.seconds, trial.model)
    write_json(RUN_DIR / "summary.json", summary)
    _print_summary(summary)


def _prepare(steps: Steps, phase: Phase) -> None:
    """Makes the samples of a phase; all phases share the encoded text."""
    steps.do(
        f"prepare_{phase.sequence_length}",
        f"shards of ready-made samples of {phase.sequence_length} tokens, with 2 MPI ranks",
        lambda: _call(
            "mpiexec -n 2 python -m mpi4py launch/prepare_shards.py --tokenizer"
            f" {TOKENIZER_DIR / 'tokenizer.model'} --token_store {DATA / 'token_store'}"
            f" --output_dir {_shards(phase)} --sequence_length {phase.sequence_length}"
        ),
    )


def _use(steps: Steps) -> None:
    """Scores and answers of the trained model."""
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


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a few steps of a model have shown.

    Attributes:
        model: of which.
        step_seconds: of a step of the first phase.
        start_seconds: of a training process besides its steps.
    """

    model: Model
    step_seconds: float
    start_seconds: float

    def seconds_left(self, steps: Steps, num_phases_done: int) -> float:
        """Time for training steps, once everything else that is still to do is subtracted."""
        to_come = len(PHASES) - num_phases_done
        num_starts = to_come + 1 + 3  # resumed after the kill; scores and answers take three
        num_shards = to_come - 1
        other = num_starts * self.start_seconds + num_shards * steps.seconds["prepare_16"] / 2
        return time_budget.training_seconds(LIMIT_SECONDS, steps.elapsed(), other)


def _choose_model(steps: Steps) -> Trial:
    """The larger model if enough steps of it fit into the time that is left, else the smaller."""
    for model in MODELS:
        start = time.monotonic()
        shutil.rmtree(TRIAL_DIR, ignore_errors=True)
        _call(_pretrain(model, PHASES[0], TRIAL_DIR, TRIAL_STEPS, ()))
        step_seconds = time_budget.settled(_step_seconds(TRIAL_DIR))
        taken = time.monotonic() - start
        trial = Trial(model, step_seconds, max(0.0, taken - TRIAL_STEPS * step_seconds))
        left = trial.seconds_left(steps, num_phases_done=0)
        if time_budget.is_worthwhile(PHASES, left, step_seconds):
            break
    name = "the usual model" if trial.model == MODELS[0] else "a smaller model than usual"
    print(f"    {step_seconds:.2g} s a step, {left:.0f} s for steps: {name}, {trial.model.path}")
    return trial


def _step_seconds(run_dir: Path) -> list[float]:
    """Seconds of every step of a run, as its metrics have them."""
    name = "throughput/step_seconds"
    return [row[name] for row in read_metrics(run_dir) if name in row]


def _shards(phase: Phase) -> Path:
    return SHARDS if phase == PHASES[-1] else DATA / f"shards_{phase.sequence_length}"


def _run_dir(phase: Phase) -> Path:
    return RUN_DIR if phase == PHASES[-1] else Path(f"runs/quickstart_{phase.sequence_length}")


def _pretrain(
    model: Model, phase: Phase, run_dir: Path, num_steps: int, earlier: Sequence[Path]
) -> str:
    """The command that trains a phase, from the weights of the run before if there is one."""
    start = f" --init_from {earlier[-1]} --extend_positions true" if earlier else ""
    return (
        f"deepspeed {_launcher_flags()} launch/pretrain.py --deepspeed_config {DEEPSPEED_CONFIG}"
        f" --model {model.path} --lr {model.lr} --train_batch_size {phase.train_batch_size}"
        f" --config {RUN_CONFIG} --shards {_shards(phase)} --output_dir {run_dir}"
        f" --max_position_embeddings {phase.sequence_length}{start}"
        f" {time_budget.run_flags(num_steps)}"
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
    return f"--num_gpus {_num_ranks()} --master_port {free_port()}"


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


def _summary(step_seconds: dict[str, float], model: Model) -> dict[str, Any]:
    manifest = read_json(SHARDS / MANIFEST_NAME)
    scores = read_json(RUN_DIR / "evaluation.json")
    rates = [
        row["throughput/tokens_per_second"]
        for row in read_metrics(RUN_DIR)
        if "throughput/tokens_per_second" in row
    ]
    return {
        "model": model.path,
        "training": _ranks_and_arithmetic(),
        "documents": manifest["totals"]["documents"],
        "train_tokens": manifest["statistics"]["train"]["num_tokens"],
        "samples": manifest["totals"]["samples"],
        "validation_mlm_loss": scores["mlm_loss"],
        "unigram_loss": scores["unigram_loss"],
        "validation_mlm_accuracy": scores["mlm_accuracy"],
        "majority_accuracy": scores["majority_accuracy"],
        "validation_nsp_accuracy": scores["nsp_accuracy"],
        "nsp_majority_accuracy": scores["nsp_majority_accuracy"],
        "tokens_per_second": sum(rates) / len(rates),
        "step_seconds": step_seconds,
    }


def _print_summary(summary: dict[str, Any]) -> None:
    seconds: dict[str, float] = summary["step_seconds"]
    counts = ("documents", "train_tokens", "samples", "tokens_per_second")
    scores = (
        ("MLM loss (nats)", "validation_mlm_loss", "unigram_loss", "unigram distribution", ".3f"),
        ("MLM accuracy", "validation_mlm_accuracy", "majority_accuracy", "commonest piece", ".1%"),
        (
            "NSP accuracy",
            "validation_nsp_accuracy",
            "nsp_majority_accuracy",
            "commoner label",
            ".1%",
        ),
    )
    print(f"\nmodel    {summary['model']}\ntraining {summary['training']}\n")
    for name in counts:
        print(f"{name.replace('_', ' '):<20}{summary[name]:>12,.0f}")
    print(f"\n{'':<20}{'held out':>12}{'baseline':>12}")
    for title, name, baseline_name, baseline_title, form in scores:
        baseline = f"{summary[baseline_name]:>12{form}}  {baseline_title}"
        print(f"{title:<20}{summary[name]:>12{form}}{baseline}")
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
