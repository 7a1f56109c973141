"""Fine-tuning jobs: sets, classes, encoder and settings, checked before anything slow. No torch.

One command is one job for each learning rate and seed. Not for: running them
(`dist_bert.finetuning.finetune`).
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.common.errors import UserError
from dist_bert.common.settings import flags_of, raise_all, resolve
from dist_bert.data.batches import BatchShape
from dist_bert.finetuning.config import FinetuneConfig
from dist_bert.finetuning.examples import REGRESSION_TASKS, TASKS, Example
from dist_bert.finetuning.question_task import QuestionTask
from dist_bert.finetuning.readers import Labelled, ReadConfig, read_examples
from dist_bert.finetuning.regression_task import RegressionTask
from dist_bert.finetuning.splitting import split_examples
from dist_bert.finetuning.task import Prepared, Task
from dist_bert.finetuning.text_task import TextTask
from dist_bert.finetuning.word_task import OUTSIDE, WordTask
from dist_bert.model.config import ModelConfig
from dist_bert.tokenizer.tokenizer import Tokenizer
from dist_bert.training.config import TrainingConfig
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.deepspeed_flags import PEAK_LR, deepspeed_flags

_MAX_CLASSES = 1_000  # more are a mistake in label_column
_QUESTION_LENGTH, _OTHER_LENGTH = 384, 128


@dataclasses.dataclass(frozen=True)
class FinetuneJob:
    """One fine-tuning run: a learning rate and a seed."""

    config: FinetuneConfig
    read: ReadConfig
    source: WeightSource
    model: ModelConfig
    run: TrainingConfig
    deepspeed: DeepSpeedConfig
    task: Task
    training: Prepared
    held_out: Prepared

    @property
    def tokenizer_path(self) -> Path:
        """The encoder's tokenizer."""
        return self.task.tokenizer.path

    def lr(self, step: int) -> float:
        """The learning rate of an optimizer step, from 1 on."""
        return self.deepspeed.peak_lr * self.run.lr_schedule.share(step)

    def batch_shape(self, step: int) -> BatchShape:
        """The division of a step's global batch."""
        return self.deepspeed.batch_shape

    def may_differ(self, saved: Mapping[str, Any], step: int) -> list[str]:
        """Nothing."""
        return []

    def resolved(self) -> dict[str, Any]:
        """What `--dry_run` prints and the run's `config.json` keeps; prediction reads it."""
        return {
            "model": dataclasses.asdict(self.model),
            "task": task_facts(self.config.task, self.task),
            "finetune": {**dataclasses.asdict(self.config), "seed": self.run.seed},
            "read": dataclasses.asdict(self.read),
            "run": dataclasses.asdict(self.run),
            "deepspeed": self.deepspeed.values,
            "world_size": self.deepspeed.batch_shape.world_size,
            "encoder": {"path": str(self.source.path), "checkpoint": self._checkpoint_name},
            "sets": {
                "train": {"examples": len(self.training.examples)},
                "eval": {"examples": len(self.held_out.examples)},
            },
        }

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint of this run to be resumed."""
        shape = self.deepspeed.batch_shape
        average = " (average)" if self.source.is_average else ""
        return {
            **{f"model {name}": value for name, value in dataclasses.asdict(self.model).items()},
            **{f"task {n}": v for n, v in task_facts(self.config.task, self.task).items()},
            "encoder": f"{self.source.path} {self._checkpoint_name}{average}".strip(),
            "random_init": self.config.random_init,
            "new_pooler": self.config.new_pooler,
            "training set": self.training.features.fingerprint,
            "held-out set": self.held_out.features.fingerprint,
            "tokenizer fingerprint": self.task.tokenizer.fingerprint,
            "seed": self.run.seed,
            "peak lr": self.deepspeed.peak_lr,
            "num_train_steps": self.run.num_train_steps,
            "optimizer type": self.deepspeed.optimizer_type,
            "train_batch_size": shape.global_batch_size,
        }

    @property
    def _checkpoint_name(self) -> str:
        return self.source.checkpoint.name if self.source.checkpoint is not None else ""


@dataclasses.dataclass(frozen=True)
class FinetunePlan:
    """All jobs of one command line, and what was seen of its files."""

    output_dir: Path
    jobs: list[FinetuneJob]
    notes: list[str]

    @classmethod
    def of(cls, arguments: argparse.Namespace, world_size: int) -> "FinetunePlan":
        """Resolves a command line of launch/finetune.py; reads its files.

        Raises:
            UserError: something is wrong with settings or files.
        """
        config = resolve(FinetuneConfig, arguments.config, flags_of(FinetuneConfig, arguments))
        read = resolve(ReadConfig, None, flags_of(ReadConfig, arguments))
        changes = deepspeed_flags(arguments)
        if config.learning_rates and PEAK_LR in changes:
            raise UserError(
                f"learning_rates = {config.learning_rates}: leave out the other learning rate of"
                " the command line"
            )
        deepspeed = DeepSpeedConfig.load(arguments.deepspeed_config, world_size, changes)
        if deepspeed.batch_shape.micro_batch_tokens:
            raise UserError(
                f"{arguments.deepspeed_config}: train_micro_batch_size_per_gpu = auto: is for"
                " pretraining; give a number of samples, or leave it out as"
                " configs/finetune_zero1.json does"
            )
        source = WeightSource.find(config.checkpoint, "--checkpoint", config.average)
        if source.tokenizer is None or not source.tokenizer.exists():
            raise UserError(
                f"checkpoint = {config.checkpoint}: has no tokenizer next to its weights; import a"
                " published model with launch/import_model.py"
            )
        model = dataclasses.replace(
            source.model,
            hidden_dropout_prob=config.hidden_dropout_prob,
            attention_probs_dropout_prob=config.attention_probs_dropout_prob,
        )
        labelled = read_examples(config.task, config.train, read)
        notes = _told(config.train, labelled)
        examples: Sequence[Example] = labelled.examples
        if config.eval:
            other = read_examples(config.task, config.eval, read)
            notes += _told(config.eval, other)
            held_out: Sequence[Example] = other.examples
        else:
            examples, held_out = split_examples(examples, config.eval_share, config.seed)
            notes.append(
                f"{config.train}: {len(held_out):,} of its examples are kept apart to score"
            )
        task = make_task(config, read, model, Tokenizer(source.tokenizer), labelled, examples)
        _check_labels(task, held_out)
        prepared: list[Prepared] = [task.prepare(examples, True), task.prepare(held_out, False)]
        notes += [note for part in prepared for note in part.notes]
        jobs = _jobs(config, read, source, model, deepspeed, task, *prepared)
        return cls(Path(config.output_dir), jobs, notes)


def _jobs(
    config: FinetuneConfig,
    read: ReadConfig,
    source: WeightSource,
    model: ModelConfig,
    deepspeed: DeepSpeedConfig,
    task: Task,
    training: Prepared,
    held_out: Prepared,
) -> list[FinetuneJob]:
    """A job for each learning rate and seed; one job alone has the output folder to itself."""
    lrs = config.lrs or [deepspeed.peak_lr]
    jobs = []
    for lr in lrs:
        for seed in range(config.seed, config.seed + config.seeds):
            is_alone = len(lrs) * config.seeds == 1
            name = "" if is_alone else f"lr-{lr:g}/seed-{seed}"
            run = config.run(
                str(Path(config.output_dir) / name),
                seed,
                len(training.features),
                deepspeed.batch_shape.global_batch_size,
            )
            own = deepspeed.with_peak_lr(lr)
            jobs.append(
                FinetuneJob(config, read, source, model, run, own, task, training, held_out)
            )
    return jobs


def make_task(
    config: FinetuneConfig,
    read: ReadConfig,
    model: ModelConfig,
    tokenizer: Tokenizer,
    labelled: Labelled,
    training: Sequence[Example],
) -> Task:
    """The task, with the classes of the label list or file, or mean and deviation of its numbers.

    Args:
        config: of the run.
        read: how the file was read.
        model: of the encoder.
        tokenizer: of the encoder.
        labelled: the training file.
        training: those of its examples that are learnt from.

    Raises:
        UserError: lengths, classes or numbers are impossible.
    """
    examples: Sequence[Example] = labelled.examples
    is_question = config.task == "question_answering"
    wanted = config.max_seq_length or (_QUESTION_LENGTH if is_question else _OTHER_LENGTH)
    length = wanted if config.max_seq_length else min(wanted, model.max_position_embeddings)
    if length > model.max_position_embeddings:
        raise UserError(
            f"max_seq_length = {length} is above the encoder's {model.max_position_embeddings}"
            " positions: lower it"
        )
    if is_question:
        return QuestionTask(
            tokenizer,
            length,
            config.doc_stride,
            config.max_question_tokens,
            config.max_answer_tokens,
            as_token_classes=config.qa_head == "token_classes",
            may_lack_answers=any(getattr(example, "answers", None) == () for example in examples),
            max_null_windows=config.max_null_windows,
        )
    if config.task == "token_classification":
        tags = {tag for example in examples for tag in getattr(example, "tags", None) or ()}
        if tags == {OUTSIDE}:
            raise UserError(f"tag_column: all tags are {OUTSIDE}; is it the right column?")
        kinds = sorted({tag[2:] for tag in tags if tag != OUTSIDE})
        own = (OUTSIDE, *(f"{begin}-{kind}" for kind in kinds for begin in "BI"))
        return WordTask(tokenizer, length, labelled.label_names or own)
    if config.task in REGRESSION_TASKS:
        targets = np.array([getattr(example, "target", None) for example in training], np.float64)
        if not np.ptp(targets.astype(np.float32)) > 0:  # what is learnt from
            raise UserError(
                f"label_column: all numbers to learn from are {targets[0]:g}; is it the right"
                " column?"
            )
        return RegressionTask(tokenizer, length, float(targets.mean()), float(targets.std()))
    names = labelled.label_names or tuple(
        sorted({name for example in examples for name in getattr(example, "labels", None) or ()})
    )
    raise_all("fine-tuning", _class_problems(names, len(examples)))
    has_several_labels = bool(read.label_separator) and not read.drop_several_labels
    return TextTask(tokenizer, length, tuple(names), has_several_labels)


def task_facts(name: str, task: Task) -> dict[str, Any]:
    """What `task_of` needs to make the task again, and what identifies it."""
    facts = {
        field.name: getattr(task, field.name)
        for field in dataclasses.fields(task)  # type: ignore[arg-type]
        if field.name != "tokenizer"
    }
    return {"name": name, **{n: list(v) if isinstance(v, tuple) else v for n, v in facts.items()}}


def task_of(facts: Any, tokenizer: Tokenizer, origin: str) -> Task:
    """The task that `task_facts` describes.

    Args:
        facts: as they were read from a file.
        tokenizer: of the encoder.
        origin: of the facts, for messages.

    Raises:
        UserError: the facts are none of a task.
    """
    name = facts.get("name") if isinstance(facts, dict) else None
    if name not in TASKS:
        raise UserError(f"{origin}: task is none of {', '.join(TASKS)}: it is damaged")
    kinds: dict[str, Any] = {"question_answering": QuestionTask, "token_classification": WordTask}
    kinds |= dict.fromkeys(REGRESSION_TASKS, RegressionTask)
    kind = kinds.get(name, TextTask)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in facts.items()
        if name != "name"
    }
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "tokenizer"}
    wrong = [name for name in values if name not in fields]
    wrong += [n for n, f in fields.items() if not _is_fact(values.get(n, f.default), f.type)]
    raise_all(origin, [f"task.{name} is damaged, missing or not known" for name in wrong])
    task: Task = kind(tokenizer, **values)
    return task


def _is_fact(value: Any, kind: Any) -> bool:
    """Whether a value may stand in a field of a task; numbers there are sizes, but for floats."""
    if kind is int:
        return type(value) is int and value >= 0
    if kind in (bool, float):
        return type(value) is kind
    return type(value) is tuple and all(type(item) is str for item in value)


def _told(path: str, labelled: Labelled) -> list[str]:
    """What was read, and what was bad or mended, in lines that name the file."""
    return [line if line.startswith(path) else f"{path}: {line}" for line in labelled.summary()]


def _class_problems(names: Sequence[str], num_examples: int) -> list[str]:
    if len(names) < 2:
        return [f"label_column: has the only label {names[0]!r}; at least 2 are needed"]
    if len(names) > _MAX_CLASSES or (len(names) > 10 and len(names) > num_examples // 2):
        return [
            f"label_column: has {len(names):,} labels in {num_examples:,} examples ({names[0]!r},"
            f" {names[1]!r}, ...), too many for classes: is it the right column?"
        ]
    return []


def _check_labels(task: Task, held_out: Sequence[Example]) -> None:
    """Refuses labels in the set to score that training has not seen.

    Raises:
        UserError: there are some; names them and the first place.
    """
    known = set(task.classes)
    first: dict[str, str] = {}
    for example in held_out:
        for label in task.labels_of(example):
            if label not in known:
                first.setdefault(label, example.name)
    if first:
        told = ", ".join(f"{label!r} ({place})" for label, place in list(first.items())[:5])
        raise UserError(
            f"eval: has labels that no training example has: {told}; training has"
            f" {', '.join(task.classes[:20])}"
        )
