"""The steps of the quickstart: each is a command of this repository, printed before it runs."""

import dataclasses
import functools
import os
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dist_bert.checkpoint.run_dir import latest_checkpoint
from dist_bert.common.files import write_json
from dist_bert.common.settings import read_json
from dist_bert.tools.quickstart import time_budget
from dist_bert.tools.quickstart.commands import (
    call,
    call_and_kill,
    launcher_flags,
    ranks_and_arithmetic,
)
from dist_bert.tools.quickstart.summary import EVALUATION_NAME, print_summary, summarize
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


def run_all(setup_seconds: float) -> None:
    """Runs all steps and prints what came out.

    Args:
        setup_seconds: that the set-up took, for the table.

    Raises:
        UserError: a command failed.
    """
    run_dirs = [_run_dir(phase) for phase in PHASES]
    for folder in (DATA, TRIAL_DIR, *run_dirs):  # an earlier quickstart's
        shutil.rmtree(folder, ignore_errors=True)
    steps = Steps(total=11, setup_seconds=setup_seconds)
    steps.do(
        "train_tokenizer",
        "a SentencePiece vocabulary from the documentation of the installed Python packages",
        lambda: call(
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
            f"pretraining on them, {num_steps:,} steps: ZeRO-2, {ranks_and_arithmetic()}",
            functools.partial(call, command),
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
        lambda: call_and_kill(command, num_steps // 2),
    )
    checkpoint = latest_checkpoint(RUN_DIR)
    assert checkpoint is not None
    print(f"    killed with -9 at step {killed_at:,}; the latest checkpoint is {checkpoint.name}")
    steps.do("pretrain_resumed", "the same command again: it resumes", lambda: call(command))
    _use(steps)
    summary = summarize(RUN_DIR, SHARDS, trial.model.path, steps.seconds)
    write_json(RUN_DIR / "summary.json", summary)
    print_summary(summary, RUN_DIR)


def _prepare(steps: Steps, phase: Phase) -> None:
    """Makes the samples of a phase; all phases share the encoded text."""
    steps.do(
        f"prepare_{phase.sequence_length}",
        f"shards of ready-made samples of {phase.sequence_length} tokens, with 2 MPI ranks",
        lambda: call(
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
        lambda: call(
            f"python launch/evaluate.py --checkpoint {RUN_DIR} --shards {SHARDS}"
            f" --json {RUN_DIR / EVALUATION_NAME}"
        ),
    )
    quoted = " ".join(map(shlex.quote, SENTENCES))
    steps.do(
        "fill_mask",
        "which pieces fit at [MASK]?",
        lambda: call(f"python launch/fill_mask.py --checkpoint {RUN_DIR} {quoted}"),
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
        call(_pretrain(model, PHASES[0], TRIAL_DIR, TRIAL_STEPS, ()))
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
        f"deepspeed {launcher_flags()} launch/pretrain.py --deepspeed_config {DEEPSPEED_CONFIG}"
        f" --model {model.path} --lr {model.lr} --train_batch_size {phase.train_batch_size}"
        f" --config {RUN_CONFIG} --shards {_shards(phase)} --output_dir {run_dir}"
        f" --max_position_embeddings {phase.sequence_length}{start}"
        f" {time_budget.run_flags(num_steps)}"
    )
