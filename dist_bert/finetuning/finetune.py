"""Fine-tuning, assembled: encoder, head, scores on held-out examples, the best of several runs.

Training itself is the run of `dist_bert.training.session`, as in pretraining. See
launch/finetune.py.

A run's folder holds, when the run has ended: `model.safetensors`, the weights of the checkpoint
with the best score; `results.json`, its scores; `answers.jsonl`, what it says to the held-out
examples; `config.json`, with all that prediction needs. Its checkpoints are gone then.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_bert.checkpoint.checkpoint import TrainState, raise_differences
from dist_bert.checkpoint.format import export_weights
from dist_bert.checkpoint.run_dir import (
    BEST_NAME,
    CHECKPOINTS_NAME,
    WEIGHTS_NAME,
    require_checkpoint,
    step_of,
)
from dist_bert.checkpoint.weights import load_initial_weights
from dist_bert.common.device import has_gpu
from dist_bert.common.hashing import hash64
from dist_bert.common.json_lines import write_rows
from dist_bert.common.settings import read_json
from dist_bert.distributed.interrupts import INTERRUPTED_EXIT_CODE, Interrupts
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.finetuning.batches import scores_of_set, training_steps
from dist_bert.finetuning.heads import Head, start_from
from dist_bert.finetuning.job import FinetuneJob, FinetunePlan
from dist_bert.finetuning.predict import load_head
from dist_bert.finetuning.results import RESULTS_NAME, summarize, write_results
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.micro_batches import pinned
from dist_bert.training.console import Console
from dist_bert.training.rank_group import joined_ranks
from dist_bert.training.session import Batches, TrainingSetup, Validation, train_run

ANSWERS_NAME = "answers.jsonl"


def finetune(plan: FinetunePlan, interrupts: Interrupts, console: Console) -> int:
    """Does all jobs of a plan that are not done yet, one after the other; called by every rank.

    Returns:
        The exit code: 0, or `INTERRUPTED_EXIT_CODE` when the same plan is to be started again.

    Raises:
        UserError: a checkpoint does not fit its job, or training has diverged.
    """
    plan.jobs[0].deepspeed.check_device(has_gpu())

    with joined_ranks(plan.jobs[0].run, console, plan.output_dir) as watchdog:
        reason = _run_jobs(plan, interrupts, console, watchdog)
    return INTERRUPTED_EXIT_CODE if reason else 0


def _run_jobs(
    plan: FinetunePlan, interrupts: Interrupts, console: Console, watchdog: Watchdog
) -> int:
    """Returns the number of the reason to stop before the end, 0 = all are done."""
    for note in plan.notes:
        console.say(note)
    for number, job in enumerate(plan.jobs, start=1):
        if len(plan.jobs) > 1:
            console.say(f"run {number} of {len(plan.jobs)}: {job.run.output_dir}")
        if (Path(job.run.output_dir) / RESULTS_NAME).exists():
            _check_done(job)
            console.say(f"{job.run.output_dir}: has its {RESULTS_NAME}; not run again")
        elif reason := _run_job(job, interrupts, console, watchdog):
            return reason
    if dist.get_rank() == 0:
        console.say(summarize(plan.output_dir, [job.run.output_dir for job in plan.jobs]))
    return 0


def _check_done(job: FinetuneJob) -> None:
    """Refuses results of another run.

    Raises:
        UserError: lists the differences.
    """
    saved = read_json(Path(job.run.output_dir) / RESULTS_NAME)["identity"]
    raise_differences(Path(job.run.output_dir) / RESULTS_NAME, saved, job.identity())


def _run_job(job: FinetuneJob, interrupts: Interrupts, console: Console, watchdog: Watchdog) -> int:
    """Trains and scores; returns the number of the reason to stop before the end, 0 = done."""
    watchdog.beat("making the model")
    setup = TrainingSetup(
        _first_model(job, console.say),
        lambda state: _steps(job, state),
        lambda engine, step, watched: _validate(job, engine, watched),
        patience=job.config.early_stopping,
    )
    reason = train_run(job, setup, interrupts, console, watchdog)
    if not reason:
        watchdog.beat("scoring the best checkpoint")
        _finish(job, console)
    return reason


def _first_model(job: FinetuneJob, say: Callable[[str], None]) -> Head:
    """The head at step 0, the same on all ranks."""
    torch.manual_seed(int(hash64(job.run.seed, "weights") >> 1))
    pretrained = BertForPreTraining(job.model)
    if job.config.random_init:
        say("the encoder's weights are left random")
    else:
        say(load_initial_weights(pretrained, job.model, job.source).description)
        if job.model.architecture == "modern":
            say("left out: pooler and NSP head, which the heads of a modern encoder do not have")
    head = job.task.new_head(job.model)
    start_from(head, pretrained, job.model.initializer_range, job.config.new_pooler)
    head.encoder.activation_checkpointing = job.run.activation_checkpointing
    return head


def _steps(job: FinetuneJob, state: TrainState) -> Any:
    shape = job.deepspeed.batch_shape
    steps = training_steps(
        job.training.features, shape, dist.get_rank(), job.run.seed, state.samples
    )
    return pinned(steps) if has_gpu() else steps


def _validate(job: FinetuneJob, engine: Any, watched: Callable[[Batches], Batches]) -> Validation:
    """Scores on the held-out examples; empty where all ranks agreed to stop meanwhile."""
    task = job.task
    engine.eval()
    shape, features = job.deepspeed.batch_shape, job.held_out.features
    logits = scores_of_set(engine, features, shape, engine.device, watched)
    engine.train()
    if logits is None:
        return Validation({})
    scores = task.scores(job.held_out, task.answers(job.held_out, logits))
    metrics = {"loss": task.loss(job.held_out, logits), **scores.values}
    return Validation(metrics, score=scores.values[scores.main])


def _finish(job: FinetuneJob, console: Console) -> None:
    """Keeps the best checkpoint's weights, in float32, and what they score; by all ranks."""
    run_dir = Path(job.run.output_dir)
    best = require_checkpoint(run_dir, BEST_NAME)
    if dist.get_rank() == 0:
        export_weights(best, run_dir / WEIGHTS_NAME)
    dist.barrier()
    model, device = load_head(job.task, job.model, run_dir / WEIGHTS_NAME, str(run_dir))
    shape, held_out = job.deepspeed.batch_shape, job.held_out
    logits = scores_of_set(model, held_out.features, shape, device)
    assert logits is not None
    task = job.task.tuned(held_out, logits)
    answers = task.answers(held_out, logits)
    scores = task.scores(held_out, answers)
    loss = task.loss(held_out, logits)
    if dist.get_rank() == 0:
        write_rows(run_dir / ANSWERS_NAME, answers)
        facts = {
            "step": step_of(best),
            "lr": job.deepspeed.peak_lr,
            "seed": job.run.seed,
            "identity": job.identity(),
            **task.tuned_settings(),
        }
        console.say(write_results(run_dir, scores, {**facts, "loss": loss}))
    dist.barrier()  # all have read
    if dist.get_rank() == 0:
        shutil.rmtree(run_dir / CHECKPOINTS_NAME)
    dist.barrier()
