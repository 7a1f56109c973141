"""The steps of the quickstart: each is a command of this repository, printed before it runs."""

import dataclasses
import os
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dist_bert.checkpoint.run_dir import latest_checkpoint, step_of
from dist_bert.common.files import write_json
from dist_bert.common.settings import read_json
from dist_bert.tools.commands import (
    call,
    call_and_kill,
    launcher_flags,
    num_ranks,
    ranks_and_arithmetic,
)
from dist_bert.tools.quickstart import time_budget
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
RECIPE = DATA / "recipe.json"
DEFAULT_SHARDS = Path("data/shards")  # where launch/pretrain.py looks
RUN_DIR = Path("runs/quickstart")
TRIAL_DIR = Path("runs/quickstart_trial")
TRIAL_STEPS = 20
DEEPSPEED_CONFIG = Path("configs/quickstart_zero2.json")
MODEL = Model("configs/model/quickstart.json", lr=0.0012)
SMALL_MODEL = Model("configs/model/quickstart_small.json", lr=0.003)
SMALL_COST = 0.5  # of a step of the usual model; the steps until the kill show what it is here
PHASES = (  # a step of the last one takes twice as long: samples of 128 tokens are rarely full
    Phase(16, 64, cost=1.0, most_steps=400, least_steps=60, share=0.12),
    Phase(32, 32, cost=1.0, most_steps=400, least_steps=60, share=0.15),
    Phase(128, 16, cost=2.0, most_steps=4_000, least_steps=40, share=0.73),
)
# More masks teach more in a step; the last ones are as many as those of the held-out samples.
MASKED_SHARES = (0.3, 0.15)
SHARDS = DATA / f"shards_{PHASES[-1].sequence_length}"  # what the model is for in the end
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
    for folder in (DATA, TRIAL_DIR, RUN_DIR):  # an earlier quickstart's
        shutil.rmtree(folder, ignore_errors=True)
    steps = Steps(total=8, setup_seconds=setup_seconds)
    steps.do(
        "train_tokenizer",
        "a SentencePiece vocabulary from the documentation of the installed Python packages",
        lambda: call(
            "python launch/train_tokenizer.py --lower_case true --max_sentences 60000"
            f" --vocab_size {read_json(MODEL.path)['vocab_size']} --output_dir {TOKENIZER_DIR}"
        ),
    )
    lengths = ",".join(str(phase.sequence_length) for phase in PHASES)
    steps.do(
        "prepare",
        f"shards of ready-made samples of {lengths} tokens, with 2 MPI ranks",
        lambda: call(
            "mpiexec -n 2 python -m mpi4py launch/prepare_shards.py --tokenizer"
            f" {TOKENIZER_DIR / 'tokenizer.model'} --output_dir {DATA / 'shards'}"
            f" --sequence_length {lengths}"
        ),
    )
    if not os.path.lexists(DEFAULT_SHARDS):
        DEFAULT_SHARDS.symlink_to(SHARDS.relative_to(DEFAULT_SHARDS.parent))
    trial = steps.do(
        "trial",
        f"a trial of {TRIAL_STEPS} steps: what can this machine train in ten minutes?",
        lambda: _choose_model(steps),
    )
    _pretrain(steps, trial)
    _use(steps)
    summary = summarize(RUN_DIR, SHARDS, trial.model.path, steps.seconds)
    write_json(RUN_DIR / "summary.json", summary)
    print_summary(summary, RUN_DIR)


def _pretrain(steps: Steps, trial: "Trial") -> None:
    """All phases as one run, which is killed half-way; the last one takes the time that is left."""
    left = trial.seconds_left(steps, num_starts=2)
    counts = time_budget.all_steps(PHASES, left, trial.step_seconds)
    write_json(RECIPE, recipe_of(counts))
    command = f"{_training(trial.model)} --recipe {RECIPE} --output_dir {RUN_DIR}"
    told = ", ".join(f"{n:,} of {p.sequence_length}" for n, p in zip(counts, PHASES, strict=True))
    killed_at = steps.do(
        "pretrain_until_killed",
        f"pretraining in steps of growing samples, {told} tokens: ZeRO-2,"
        f" {ranks_and_arithmetic()}; killed without warning half-way",
        lambda: call_and_kill(command, sum(counts) // 2),
    )
    checkpoint = latest_checkpoint(RUN_DIR)
    assert checkpoint is not None
    print(f"    killed with -9 at step {killed_at:,}; the latest checkpoint is {checkpoint.name}")
    step_seconds = time_budget.settled(_step_seconds(RUN_DIR))
    before_last = sum(counts[:-1]) - step_of(checkpoint)
    left = trial.seconds_left(steps, num_starts=1) - before_last * step_seconds
    last = PHASES[-1]
    counts[-1] = last.num_steps(left, step_seconds * last.cost)
    write_json(RECIPE, recipe_of(counts))
    print(f"    {step_seconds:.2g} s a step: time for {counts[-1]:,} steps in the last phase")
    steps.do("pretrain_resumed", "the same command again: it resumes", lambda: call(command))


def recipe_of(counts: Sequence[int]) -> dict[str, Any]:
    """The recipe of all phases: in the last one learning rate and share of masks fall.

    Args:
        counts: steps of each.
    """
    phases: list[dict[str, Any]] = [
        {
            "name": f"{phase.sequence_length} tokens",
            "shards": str(DATA / f"shards_{phase.sequence_length}"),
            "steps": count,
            "train_batch_size": phase.train_batch_size,
            "masked_lm_prob": MASKED_SHARES[0],
        }
        for phase, count in zip(PHASES, counts, strict=True)
    ]
    phases[-1]["final_masked_lm_prob"] = MASKED_SHARES[1]
    return {
        "schedule": "wsd",
        "decay_steps": counts[-1],
        **time_budget.run_settings(sum(counts[:-1])),  # equal when the last one's are counted anew
        "validation_samples": 256,
        "keep_checkpoints": 2,
        "phases": phases,
    }


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
        model: that was chosen.
        step_seconds: of its steps in the first phase.
        start_seconds: of a training process besides its steps.
    """

    model: Model
    step_seconds: float
    start_seconds: float

    def seconds_left(self, steps: Steps, num_starts: int) -> float:
        """Time for training steps, once everything else that is still to do is subtracted.

        Args:
            steps: those that are done.
            num_starts: of the training that are still to come.
        """
        other = (num_starts + 2) * self.start_seconds  # scores and answers take two
        return time_budget.training_seconds(LIMIT_SECONDS, steps.elapsed(), other)


def _choose_model(steps: Steps) -> Trial:
    """The usual model if enough steps of it fit into the time that is left, else the small one."""
    start = time.monotonic()
    call(_trial_command())
    step_seconds = time_budget.settled(_step_seconds(TRIAL_DIR))
    start_seconds = time.monotonic() - start - TRIAL_STEPS * step_seconds
    trial, name = Trial(MODEL, step_seconds, max(0.0, start_seconds)), "the usual model"
    if not time_budget.is_worthwhile(PHASES, trial.seconds_left(steps, 2), step_seconds):
        trial = dataclasses.replace(
            trial, model=SMALL_MODEL, step_seconds=SMALL_COST * step_seconds
        )
        name = "a smaller model than usual"
    left = trial.seconds_left(steps, num_starts=2)
    told = f"{trial.step_seconds:.2g} s a step, {left:.0f} s for steps"
    print(f"    {told}: {name}, {trial.model.path}")
    return trial


def _step_seconds(run_dir: Path) -> list[float]:
    """Seconds of every step of a run, as its metrics have them."""
    name = "throughput/step_seconds"
    return [row[name] for row in read_metrics(run_dir) if name in row]


def _training(model: Model) -> str:
    """The command that trains a model, without the flags of a run."""
    return (
        f"deepspeed {launcher_flags(num_ranks())} launch/pretrain.py --deepspeed_config"
        f" {DEEPSPEED_CONFIG} --model {model.path} --lr {model.lr}"
    )


def _trial_command() -> str:
    """Takes a few steps of the first phase, one save and one validation."""
    phase = PHASES[0]
    return (
        f"{_training(MODEL)} --train_batch_size {phase.train_batch_size}"
        f" --shards {DATA / f'shards_{phase.sequence_length}'} --output_dir {TRIAL_DIR}"
        f" --num_train_steps {TRIAL_STEPS} --warmup_steps 2 --log_interval 2"
        f" --checkpoint_interval {TRIAL_STEPS} --validation_interval {TRIAL_STEPS}"
        " --validation_samples 256"
    )
