"""What transformers' own `Trainer` reaches in a given time on our samples: loss against time.

Its model of the same sizes, its loop, its defaults but for what is asked for; the samples, their
masks and the held-out samples are those of a data set of ours, as stored. Not for: the speed of a
step (`dist_bert.tools.benchmark.training`).

Letters: M samples of a batch, S longest of them in tokens, P predictions of the batch, V padded
vocabulary.
"""

import operator
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dist_bert.common.device import has_bf16_instructions, has_gpu
from dist_bert.common.errors import UserError
from dist_bert.data.reader import Columns, SampleReader
from dist_bert.model.config import ModelConfig
from dist_bert.model.micro_batches import to_device
from dist_bert.tools.benchmark.training import (
    MODERN_INPUTS,
    padded_inputs,
    transformers_model,
)

_TRIAL_STEPS = 20  # whose time says how many steps the minutes have
_WARMUP_SHARE = 0.1  # of the steps


def train_peer(
    model: ModelConfig,
    training: SampleReader,
    held_out: SampleReader,
    *,
    minutes: float,
    learning_rate: float,
    batch_size: int,
    num_scored: int,
    num_scores: int,
    seed: int,
    report: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Trains for so many minutes on this process's cores or GPU, with a warm-up and a linear decay.

    The clock stands still while held-out samples are scored and while the number of steps is found,
    which favours the peer.

    Args:
        model: sizes and vocabulary.
        training: samples, which are shuffled.
        held_out: samples to score.
        minutes: of training.
        learning_rate: the peak.
        batch_size: M, samples of a step.
        num_scored: held-out samples of a score.
        num_scores: how often they are scored, evenly over the steps; the last time at the end.
        seed: of weights and order.
        report: takes a line about each score.

    Returns:
        Row "step N" -> minutes, million tokens, masked-LM loss in nats and accuracy.

    Raises:
        UserError: transformers or accelerate is missing.
    """
    peer = _Peer(model, training, learning_rate, batch_size, seed)
    ends: list[float] = []

    def note(*_: object) -> bool:
        ends.append(time.perf_counter())
        return False

    peer.train(_TRIAL_STEPS, 1, note)
    step_seconds = statistics.median(map(operator.sub, ends[1:], ends))  # the first ones pay set-up
    num_steps = max(num_scores, round(60 * minutes / step_seconds))
    report(f"{num_steps:,} steps of {step_seconds:.3f} s fit into {minutes:g} minutes")

    rows: dict[str, dict[str, float]] = {}
    paused = 0.0

    def score(network: nn.Module, step: int, num_tokens: int) -> bool:
        """Adds a row; returns whether the time is over."""
        nonlocal paused
        scoring = time.perf_counter()
        passed = (scoring - start - paused) / 60
        loss, accuracy = masked_lm_scores(network, held_out, num_scored, batch_size)
        rows[f"step {step:,}"] = {
            "minutes": passed,
            "million_tokens": num_tokens / 1e6,
            "mlm_loss": loss,
            "mlm_accuracy": accuracy,
        }
        report(f"{passed:.1f} minutes: step {step:,}, held-out masked LM {loss:.3f} nats")
        paused += time.perf_counter() - scoring
        return passed >= minutes

    start = time.perf_counter()
    peer.train(num_steps, num_steps // num_scores, score)
    return rows


def masked_lm_scores(
    network: nn.Module, reader: SampleReader, num_samples: int, batch_size: int
) -> tuple[float, float]:
    """Loss in nats and accuracy over all masked positions of the first samples, as stored.

    Args:
        network: of transformers; returns the logits of every position.
        reader: of the samples.
        num_samples: at most.
        batch_size: M.
    """
    numbers = np.arange(min(num_samples, reader.num_samples))
    was_training = network.training
    network.eval()
    total, correct, count = 0.0, 0, 0
    device = next(network.parameters()).device
    for begin in range(0, numbers.size, batch_size):
        columns = _columns(reader, numbers[begin : begin + batch_size])
        batch = to_device(padded_inputs(columns), device)
        labels = batch.pop("labels")
        del batch["next_sentence_label"]
        logits = _logits(network, batch)[labels >= 0].float()  # (P, V)
        wanted = labels[labels >= 0]
        total += float(F.cross_entropy(logits, wanted, reduction="sum"))
        correct += int((logits.argmax(1) == wanted).sum())
        count += wanted.numel()
    network.train(was_training)
    return total / count, correct / count


@torch.no_grad()
def _logits(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(M, S, V) of the masked-LM head."""
    if not hasattr(network, "cls"):  # ModernBERT has no segments
        del batch["token_type_ids"]
    found = network(**batch)
    logits: Tensor = found.prediction_logits if hasattr(network, "cls") else found.logits
    return logits


def _columns(reader: SampleReader, numbers: NDArray[np.integer]) -> Columns:
    """The fields of samples that are numbered block by block."""
    ends = np.cumsum(reader.block_sizes)
    blocks = np.searchsorted(ends, numbers, "right")
    return reader.gather(blocks, numbers - (ends - reader.block_sizes)[blocks])


class _Peer:
    """A model of transformers with its `Trainer`, made anew by each training."""

    def __init__(
        self,
        model: ModelConfig,
        reader: SampleReader,
        learning_rate: float,
        batch_size: int,
        seed: int,
    ) -> None:
        self._model, self._reader = model, reader
        self._learning_rate, self._batch_size, self._seed = learning_rate, batch_size, seed
        self._num_tokens = 0  # collated so far

    def train(
        self,
        num_steps: int,
        every: int,
        score: Callable[[nn.Module, int, int], bool],
    ) -> None:
        """Trains, and calls `score` with network, step and tokens; it says whether to stop.

        Args:
            num_steps: of the schedule.
            every: steps after which it is called, as at the end.
            score: see above.
        """
        try:
            import accelerate  # noqa: F401  the Trainer needs it
            import transformers
        except ImportError as error:
            raise UserError(
                f"{error.name} is not installed: pip install -c constraints.txt transformers"
                " accelerate"
            ) from None

        peer = self

        class Scores(transformers.TrainerCallback):
            def on_step_end(
                self, args: Any, state: Any, control: Any, model: Any = None, **others: Any
            ) -> None:
                step = state.global_step
                is_due = step % every == 0 or step == num_steps
                if is_due and score(model, step, peer._num_tokens):
                    control.should_training_stop = True  # others may have said so at the last step

        torch.manual_seed(self._seed)
        self._num_tokens = 0
        with tempfile.TemporaryDirectory(prefix="peer-") as folder:
            settings = transformers.TrainingArguments(
                output_dir=folder,
                max_steps=num_steps,
                per_device_train_batch_size=self._batch_size,
                learning_rate=self._learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=round(_WARMUP_SHARE * num_steps),
                weight_decay=0.01,
                bf16=has_gpu() or has_bf16_instructions(),
                use_cpu=not has_gpu(),
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                seed=self._seed,
            )
            trainer = transformers.Trainer(
                transformers_model(self._model, is_sparse=True),
                settings,
                data_collator=self._collate,
                train_dataset=range(self._reader.num_samples),  # the collator reads
                callbacks=[Scores()],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()

    def _collate(self, numbers: list[int]) -> dict[str, Tensor]:
        """Samples as the padded arguments of the model."""
        columns = _columns(self._reader, np.array(numbers))
        self._num_tokens += int(columns["num_tokens"].sum())
        batch = padded_inputs(columns)
        names = MODERN_INPUTS if self._model.architecture == "modern" else tuple(batch)
        return to_device({name: batch[name] for name in names}, torch.device("cpu"))
