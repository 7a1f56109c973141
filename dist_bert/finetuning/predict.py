"""A fine-tuned model applied to new examples. Not for: scores (`dist_bert.finetuning.finetune`)."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dist_bert.checkpoint.run_dir import CONFIG_NAME, TOKENIZER_NAME, WEIGHTS_NAME, read_resolved
from dist_bert.checkpoint.weights import read_tensors, take_weights
from dist_bert.common.device import run_device
from dist_bert.common.errors import UserError
from dist_bert.common.settings import from_dict
from dist_bert.data.batches import BatchShape
from dist_bert.finetuning.batches import evaluation_batches, scores_of_batches
from dist_bert.finetuning.examples import Example
from dist_bert.finetuning.heads import Head
from dist_bert.finetuning.job import task_of
from dist_bert.finetuning.results import best_run, read_results
from dist_bert.finetuning.task import Task
from dist_bert.model.config import ModelConfig
from dist_bert.tokenizer.tokenizer import Tokenizer

_EXAMPLES = 1_024  # that are prepared together
_SAMPLES = 32  # of a micro-batch


@dataclasses.dataclass(frozen=True)
class FineTunedModel:
    """A fine-tuning run that has ended."""

    run_dir: Path
    task_name: str
    task: Task
    config: ModelConfig
    head: Head  # float32, in evaluation mode
    device: torch.device

    @classmethod
    def load(cls, folder: str | Path) -> "FineTunedModel":
        """Loads the weights onto the current GPU (the first), or the CPU where there is none.

        Args:
            folder: of a run of launch/finetune.py, or of several, whose best is taken.

        Raises:
            UserError: there is no run that has ended.
        """
        run_dir = best_run(Path(folder))
        weights = run_dir / WEIGHTS_NAME
        if not weights.exists():
            raise UserError(
                f"--checkpoint {folder}: has no {WEIGHTS_NAME}; give the --output_dir of a run of"
                " launch/finetune.py that has ended"
            )
        resolved = read_resolved(run_dir, {"model": dict})
        if "task" not in resolved:
            raise UserError(
                f"--checkpoint {folder}: is a pretraining run, which has no task; fine-tune it with"
                " launch/finetune.py"
            )
        origin = f"{run_dir}/{CONFIG_NAME}"
        config = from_dict(ModelConfig, resolved["model"], origin)
        task = task_of(resolved["task"], Tokenizer(run_dir / TOKENIZER_NAME), origin)
        task = task.with_settings(read_results(run_dir))
        head, device = load_head(task, config, weights, origin)
        return cls(run_dir, resolved["task"]["name"], task, config, head, device)

    def answers(self, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        """What the model says to each example, in their order."""
        task = self.task
        iterator = iter(examples)
        while batch := list(itertools.islice(iterator, _EXAMPLES)):
            prepared = task.prepare(batch, is_training=False)
            batches = evaluation_batches(prepared.features, BatchShape(1, 1, _SAMPLES), rank=0)
            scores = dict(scores_of_batches(self.head, batches, self.device))
            logits = [scores[sample] for sample in range(len(prepared.features))]
            yield from task.answers(prepared, logits)


def load_head(
    task: Task, config: ModelConfig, weights: Path, origin: str
) -> tuple[Head, torch.device]:
    """A fine-tuned head in float32 and evaluation mode, on the first GPU or else the CPU.

    Raises:
        UserError: the file is damaged, or of another model than `config` and `task`, which stand in
            the file `origin`.
    """
    device = run_device()
    with torch.device("meta"):  # the weights are all replaced: nothing to initialise
        head = task.new_head(config)
    take_weights(head, read_tensors(weights), origin)
    return head.to(device).eval(), device
