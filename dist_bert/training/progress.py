"""Progress of a run: turns step records into the metrics of docs/architecture.md.

The device is read once per log interval, not per step: reading waits for it.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from dist_bert.data.batches import StepBatch
from dist_bert.model.config import ModelConfig
from dist_bert.model.flops import attention_pairs, training_flops
from dist_bert.training.config import TrainingConfig
from dist_bert.training.console import Console
from dist_bert.training.loop import StepRecord
from dist_bert.training.loss_spikes import LossSpikes
from dist_bert.training.metrics import MetricsWriter, Prediction, as_table, scores_of
from dist_bert.training.optimizers.build import optimizer_metrics
from dist_bert.training.rank_reports import Ranks

_USUAL_MFU = 0.4  # what launch/plan.py assumes
_SLOW_MFU = _USUAL_MFU / 5
_LONG_DAYS = 30.0


class Progress:
    """Collects step records on all ranks; rank 0 writes metrics and console lines from them."""

    def __init__(
        self,
        engine: Any,
        model: ModelConfig,
        run: TrainingConfig,
        has_pairs: bool,
        writer: MetricsWriter | None,
        console: Console,
        ranks: Ranks,
        peak_flops: float,
        num_skipped: int = 0,
        spikes: LossSpikes | None = None,
        describe: Callable[[int], dict[str, float]] = lambda step: {},
    ) -> None:
        """Starts the clock.

        Args:
            engine: the DeepSpeed engine.
            model: the architecture, for the number of operations.
            run: gives the log interval and the number of steps.
            has_pairs: whether samples have a next-sentence label.
            writer: on rank 0; None elsewhere.
            console: of this rank.
            ranks: compares them once per log interval.
            peak_flops: operations per second that all devices together can do, for MFU; only rank
                0 needs it.
            num_skipped: steps that were skipped so far, on rank 0.
            spikes: detects spikes that are only recorded; None where the step records hold them.
            describe: metrics of a step that follow from its number.
        """
        self._engine = engine
        self._model = model
        self._run = run
        self._has_pairs = has_pairs
        self._writer = writer
        self._console = console
        self._ranks = ranks
        self._num_skipped = num_skipped
        self._peak_flops = peak_flops
        self._warned: set[str] = set()
        self._spikes = spikes
        self._describe = describe
        self._pending: list[StepRecord] = []
        self._is_first_step = True
        self._interval_start = time.perf_counter()

    def add(self, record: StepRecord) -> None:
        """Takes the record of one step; writes all that are pending once per log interval.

        The first step is written at once: where steps take minutes, it shows that they do.
        """
        self._pending.append(record)
        step = record.state.step
        if record.is_skipped and self._writer is not None:
            self._num_skipped += 1
            first = record.state.samples - record.batch.num_samples
            why = "its loss is a spike" if record.spike else "loss or gradient is not finite"
            self._console.say(
                f"step {step:,}: skipped, {why} (samples {first:,} to"
                f" {record.state.samples - 1:,} of the stream; {self._num_skipped:,} steps skipped"
                " in all)"
            )
        self._console.advance()
        is_due = step % self._run.log_interval == 0 or step == self._run.num_train_steps
        if is_due or self._is_first_step:
            self.flush()
        self._is_first_step = False

    def flush(self) -> None:
        """Writes what is pending; called by all ranks together, also before a checkpoint."""
        if not self._pending:
            return
        shares = torch.stack([record.metrics for record in self._pending])
        dist.all_reduce(shares)
        metrics = shares.tolist()  # waits for the device, so the clock below is honest
        seconds = time.perf_counter() - self._interval_start
        compared = self._ranks.compare(self._pending, seconds)
        if self._writer is not None:
            common = {**self._interval_values(seconds), **compared}
            num_skipped = self._num_skipped - sum(record.is_skipped for record in self._pending)
            for record, values in zip(self._pending, metrics, strict=True):
                num_skipped += record.is_skipped
                row = {**self._step_values(record, values), "train/skipped_steps": num_skipped}
                row.update(self._spike(record, row["train/loss"]))
                self._writer.scalars(record.state.step, _finite({**row, **common}))
            self._writer.flush()
            self._tell({**self._step_values(self._pending[-1], metrics[-1]), **common})
        self._pending = []
        self._interval_start = time.perf_counter()

    def validation(
        self, step: int, metrics: dict[str, float], predictions: Sequence[Prediction]
    ) -> float:
        """Writes the result of a validation and the answers after it; returns the loss."""
        metrics = self._with_loss(metrics)
        if self._writer is not None:
            row = {f"validation/{name}": value for name, value in metrics.items()}
            self._writer.scalars(step, _finite(row))
            if predictions:
                self._writer.predictions(step, predictions, as_table(predictions))
            self._writer.flush()
            values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self._console.say(f"validation at step {step:,}  {values}")
        return metrics["loss"]

    def restart_clock(self) -> None:
        """Leaves what was done since the last flush (validation, saving) out of the step times."""
        self._interval_start = time.perf_counter()

    def _step_values(self, record: StepRecord, metrics: list[float]) -> dict[str, float]:
        named = dict(zip(self._engine.module.metric_names, metrics, strict=True))
        values = {
            **{f"train/{name}": value for name, value in self._with_loss(named).items()},
            "train/lr": record.lr,
            "progress/samples": record.state.samples,
            "progress/tokens": record.state.tokens,
            **self._describe(record.state.step),
        }
        if record.grad_norm is not None:
            values["train/grad_norm"] = float(record.grad_norm)
        if self._engine.fp16_enabled():
            values["train/loss_scale"] = float(self._engine._get_optimizer_loss_scale())
        return values

    def _spike(self, record: StepRecord, loss: float) -> dict[str, float]:
        """Extra values of a row where the loss jumps, which is also reported."""
        spike = record.spike
        if self._spikes is not None and math.isfinite(loss):
            spike = self._spikes.measure(record.state.step, loss)
        if not spike:
            return {}
        self._console.say(
            f"warning: step {record.state.step:,}: the loss {loss:.4f} is {spike:.2f} times the"
            " median of the steps before (spike_threshold)"
        )
        return {"train/spike": spike}

    def _with_loss(self, metrics: dict[str, float]) -> dict[str, float]:
        """The model's metrics as far as the data has them, after the loss that is trained on."""
        scores = scores_of(metrics, self._has_pairs)
        loss = sum(value for name, value in scores.items() if name.endswith("_loss"))
        return {"loss": loss, **scores}

    def _interval_values(self, seconds: float) -> dict[str, float]:
        """Rates over the steps that are pending."""
        batches = [record.batch for record in self._pending]
        num_tokens = sum(batch.num_tokens for batch in batches)
        num_samples = sum(batch.num_samples for batch in batches)
        flops = flops_of_batches(self._model, batches, self._has_pairs)
        data_wait = sum(record.data_wait_seconds for record in self._pending)
        mfu = flops / seconds / self._peak_flops
        if mfu > 1.0:  # so it is no share of the peak
            self._warn_once(
                "MFU is left out: steps reach more than the peak that was measured at the start"
                f" ({self._peak_flops / 1e12:.3g} TFLOP/s), because the machine was busy then",
                "peak",
            )
        return {
            "throughput/step_seconds": seconds / len(batches),
            "throughput/tokens_per_second": num_tokens / seconds,
            "throughput/samples_per_second": num_samples / seconds,
            **({"throughput/mfu": mfu} if mfu <= 1.0 else {}),
            "throughput/data_wait_fraction": data_wait / seconds,
            "memory/peak_gib": peak_memory_bytes(self._engine.device) / 2**30,
            **optimizer_metrics(self._engine),
        }

    def _tell(self, values: dict[str, float]) -> None:
        step = self._pending[-1].state.step
        losses = ", ".join(
            f"{name.removeprefix('train/').removesuffix('_loss')} {value:.4f}"
            for name, value in values.items()
            if name.endswith("_loss")
        )
        parts = f" ({losses})" if losses else ""
        remaining = (self._run.num_train_steps - step) * values["throughput/step_seconds"]
        mfu = values.get("throughput/mfu")
        share = f"  MFU {mfu:.1%}" if mfu is not None else ""
        self._console.tell_progress(
            f"step {step:,}/{self._run.num_train_steps:,}",
            f"loss {values['train/loss']:.4f}{parts}  lr {values['train/lr']:.2e}"
            f"  {values['throughput/tokens_per_second']:,.0f} tokens/s"
            f"{share}  {duration(remaining)} left",
        )
        if not self._is_first_step:  # which pays for set-up
            self._warn_of_slowness(mfu, remaining)

    def _warn_of_slowness(self, mfu: float | None, remaining_seconds: float) -> None:
        for problem, text in slowness(mfu, remaining_seconds).items():
            self._warn_once(text, problem)

    def _warn_once(self, text: str, problem: str) -> None:
        if problem not in self._warned:
            self._warned.add(problem)
            self._console.warn(text)


def flops_of_batches(model: ModelConfig, batches: Sequence[StepBatch], has_pairs: bool) -> float:
    """Floating-point operations of training steps on global batches."""
    return training_flops(
        model,
        sum(batch.num_tokens for batch in batches),
        sum(int(attention_pairs(model, batch.lengths).sum()) for batch in batches),
        sum(batch.num_masked for batch in batches),
        sum(batch.num_samples for batch in batches) if has_pairs else 0,
    )


def slowness(mfu: float | None, remaining_seconds: float) -> dict[str, str]:
    """Why a run will take much longer than usual for its size: problem -> warning.

    Args:
        mfu: share of the devices' peak, 0 to 1; None where it is not known.
        remaining_seconds: to the end of the run; below an hour no speed is a problem.
    """
    found = {}
    days = remaining_seconds / 86_400
    if mfu is not None and mfu < _SLOW_MFU and days > 1 / 24:
        found["speed"] = (
            f"steps take {_USUAL_MFU / mfu:.0f} times as long as is usual for their size (MFU"
            f" {mfu:.1%}): other processes on these cores, data that comes too slowly"
            " (throughput/data_wait_fraction), or micro-batches of few tokens"
        )
    if days > _LONG_DAYS:
        found["length"] = (
            f"the remaining steps will take {days:,.0f} days at this speed: take a smaller model,"
            " fewer steps or more devices (launch/plan.py says what they give)"
        )
    return found


def _finite(values: dict[str, float]) -> dict[str, float]:
    """Without the values of a skipped step that are no numbers: JSON and curves have none."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, 1:02:03."""
    hours, rest = divmod(round(seconds), 3_600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the device's allocator; on CPU, of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1_024
