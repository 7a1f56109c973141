"""What a run will need and take, before any job is queued: memory, hours, traffic, scaling, disk.

Puts together `memory.py`, `communication.py` and the count of operations.
Nothing is measured here and torch is not needed: MFU, links and disk are the caller's to know.
"""

import dataclasses
import statistics
from typing import Any

import numpy as np

from dist_bert.common.errors import UserError
from dist_bert.data.shard_format import Manifest
from dist_bert.model.config import ModelConfig
from dist_bert.model.flops import attention_pairs, training_flops
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.tools.plan.communication import CommunicationPlan, Link, plan_communication
from dist_bert.tools.plan.memory import (
    FRAMEWORK_BYTES,
    MARGIN,
    SampleSize,
    checkpoint_bytes,
    largest_micro_batch,
    plan_memory,
    snapshot_bytes,
)
from dist_bert.tools.plan.update import flops_share, plan_update
from dist_bert.tools.plan.zero_layout import ZeroLayout
from dist_bert.training.metrics import read_metrics

# Of the makers' data sheets, in 10^9 bytes; cards report a few per cent more. The A100 of 40 GB.
GPU_MEMORY_GBYTES = {
    "H200": 141,
    "H100 PCIe": 80,
    "H100 NVL": 94,
    "H100": 80,
    "B200": 180,
    "A100": 40,
    "L40S": 48,
    "L4": 24,
    "A10G": 24,
    "A10": 24,
}
MOST_COMMUNICATION = 0.2  # share of the step at which scaling is said to end
_MASKED_SHARE, _SPECIAL_TOKENS = 0.15, 3  # of samples that are not there to be counted
_COUNTS = ("num_samples", "length_bin_tokens", "num_tokens", "num_masked")  # of a manifest
_BATCH_FACTORS = (1, 4, 16)  # of the global batch, in the table of where scaling ends


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a sample is on average, and how many there are."""

    sequence_length: int  # of the longest samples
    tokens_per_sample: float
    attention_pairs_per_sample: float  # over all layers of the model that is planned for
    masked_per_sample: float
    has_pairs: bool
    samples_per_epoch: int | None = None

    @classmethod
    def of_length(cls, sequence_length: int, model: ModelConfig) -> "Workload":
        """Samples of full length, 15 % of them masked: where there are no shards yet."""
        masked = _MASKED_SHARE * max(0, sequence_length - _SPECIAL_TOKENS)
        pairs = int(attention_pairs(model, np.array(sequence_length)))
        return cls(sequence_length, sequence_length, pairs, masked, True)

    @classmethod
    def of_shards(cls, manifest: Manifest, model: ModelConfig) -> "Workload":
        """The means that the manifest's statistics give; pairs are of bins of the histogram.

        Raises:
            UserError: the statistics lack them.
        """
        train, length = manifest.statistics.get("train", {}), manifest.config["sequence_length"]
        counts = [train.get(name) for name in _COUNTS]
        histogram = train.get("length_histogram")
        counts += histogram if isinstance(histogram, list) else [None]
        if not all(type(count) is int and count >= 0 for count in counts) or 0 in counts[:4]:
            raise UserError(
                f"manifest of the shards: statistics.train must have {', '.join(_COUNTS)} and"
                " length_histogram; give --sequence_length, or prepare the shards again"
            )
        num_samples, width = train["num_samples"], train["length_bin_tokens"]
        lengths = ((np.arange(len(histogram)) + 0.5) * width).clip(max=length)
        num_pairs = float(np.array(histogram) @ attention_pairs(model, lengths))
        return cls(
            sequence_length=length,
            tokens_per_sample=train["num_tokens"] / num_samples,
            attention_pairs_per_sample=num_pairs / num_samples,
            masked_per_sample=train["num_masked"] / num_samples,
            has_pairs=manifest.config["pair_objective"] != "none",
            samples_per_epoch=num_samples,
        )

    @property
    def longest_sample(self) -> SampleSize:
        """What memory is planned for: a micro-batch of the longest samples has no others."""
        masked = self.masked_per_sample * self.sequence_length / self.tokens_per_sample
        return SampleSize(self.sequence_length, masked)

    def flops(self, model: ModelConfig, num_samples: int) -> float:
        """Floating-point operations of a global batch, forward and backward."""
        return training_flops(
            model,
            round(num_samples * self.tokens_per_sample),
            round(num_samples * self.attention_pairs_per_sample),
            round(num_samples * self.masked_per_sample),
            num_samples if self.has_pairs else 0,
        )


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What the run is planned for. All GPUs are alike."""

    memory_bytes: float  # of one GPU
    peak_flops: float  # of one GPU, a second
    mfu: float  # that a GPU reaches while it computes
    link: Link
    disk_bytes_per_second: float  # that all ranks write together


@dataclasses.dataclass(frozen=True)
class StepTime:
    """An optimizer step on a number of GPUs, at a global batch that is given."""

    num_gpus: int
    micro_batch_size: int
    accumulation_steps: int
    compute_seconds: float
    communication_seconds: float
    exposed_seconds: float  # of communication, where what can overlap does so perfectly

    @property
    def seconds(self) -> float:
        """With overlap."""
        return self.compute_seconds + self.exposed_seconds

    @property
    def share(self) -> float:
        """Of communication in the step, with overlap."""
        return self.exposed_seconds / self.seconds

    @property
    def share_without_overlap(self) -> float:
        """Of communication in a step that does one after the other."""
        return self.communication_seconds / (self.compute_seconds + self.communication_seconds)


def make_plan(
    layout: ZeroLayout,
    micro_batch_size: int,
    run: PretrainingConfig,
    workload: Workload,
    hardware: Hardware,
) -> dict[str, Any]:
    """The whole plan as a JSON object; sizes in bytes, times in seconds unless a name says else.

    Args:
        layout: model and ZeRO, on the number of GPUs.
        micro_batch_size: samples.
        run: gives the number of steps, activation checkpointing and what is saved when.
        workload: what a sample is.
        hardware: what each of the GPUs is.
    """
    batch_size = micro_batch_size * layout.num_ranks * layout.accumulation_steps
    step = time_of_step(layout, micro_batch_size, workload, hardware)
    checkpointing = run.activation_checkpointing
    largest = {
        is_checkpointing: largest_micro_batch(
            layout, workload.longest_sample, is_checkpointing, hardware.memory_bytes
        )
        for is_checkpointing in (False, True)
    }
    memory = plan_memory(layout, workload.longest_sample, micro_batch_size, checkpointing)
    return {
        "parameters": layout.num_parameters,
        "memory": {
            **dataclasses.asdict(memory),
            "framework_assumed": FRAMEWORK_BYTES,
            "peak_bytes": memory.peak,
            "available_bytes": hardware.memory_bytes,
            "margin": MARGIN,
            "micro_batch_size": micro_batch_size,
            "activation_checkpointing": checkpointing,
            "largest_micro_batch": largest[False],
            "largest_micro_batch_with_checkpointing": largest[True],
        },
        "run": _run(layout, batch_size, run, workload, step),
        "update": {
            **dataclasses.asdict(plan_update(layout)),
            "share_of_flops": flops_share(layout, workload.flops(layout.model, batch_size)),
        },
        "communication": _communication(plan_communication(layout), hardware.link, step),
        "scaling": [
            _step_as_json(time)
            for time in scaling(layout, batch_size, micro_batch_size, workload, hardware)
        ],
        "scaling_ends": {
            f"zero{stage}": {
                str(size): scaling_end(
                    scaling(
                        dataclasses.replace(layout, stage=stage, overlaps=stage > 0),
                        size,
                        max(micro_batch_size, largest[checkpointing]),
                        workload,
                        hardware,
                    )
                )
                for size in (batch_size * factor for factor in _BATCH_FACTORS)
            }
            for stage in range(4)
        },
        "disk": _disk(layout, run, step, hardware.disk_bytes_per_second),
    }


def time_of_step(
    layout: ZeroLayout, micro_batch_size: int, workload: Workload, hardware: Hardware
) -> StepTime:
    """Arithmetic at the given MFU, Muon's iterations too, and messages, of one step."""
    num_samples = micro_batch_size * layout.num_ranks * layout.accumulation_steps
    speed = hardware.peak_flops * hardware.mfu * layout.num_ranks
    compute = workload.flops(layout.model, num_samples) / speed
    compute += plan_update(layout).newton_schulz_flops / (hardware.peak_flops * hardware.mfu)
    messages = plan_communication(layout)
    return StepTime(
        layout.num_ranks,
        micro_batch_size,
        layout.accumulation_steps,
        compute,
        messages.seconds(hardware.link),
        messages.exposed_seconds(hardware.link, compute),
    )


def scaling(
    layout: ZeroLayout,
    batch_size: int,
    most_samples: int,
    workload: Workload,
    hardware: Hardware,
) -> list[StepTime]:
    """One global batch on 1, 2, 4, ... GPUs, as long as they get equal parts of it.

    Args:
        layout: model and ZeRO; its number of ranks and accumulation do not matter.
        batch_size: samples of the global batch.
        most_samples: of a micro-batch; a GPU takes the largest part of its samples that is no more.
        workload: what a sample is.
        hardware: what each of the GPUs is.
    """
    times = []
    num_gpus = 1
    while batch_size % num_gpus == 0:
        own = batch_size // num_gpus
        size = next(n for n in range(min(own, most_samples), 0, -1) if own % n == 0)
        part = dataclasses.replace(layout, num_ranks=num_gpus, accumulation_steps=own // size)
        times.append(time_of_step(part, size, workload, hardware))
        num_gpus *= 2
    return times


def scaling_end(times: list[StepTime]) -> int:
    """Most GPUs at which communication, with overlap, is at most 20 % of the step."""
    return max(time.num_gpus for time in times if time.share <= MOST_COMMUNICATION)


def measured_mfu(run_dir: str) -> float:
    """The median of the MFU that a run has measured, communication and all.

    Raises:
        UserError: the run has measured none.
    """
    rows = [row["throughput/mfu"] for row in read_metrics(run_dir) if "throughput/mfu" in row]
    if not rows:
        raise UserError(
            f"--run {run_dir}: has no throughput/mfu in its metrics.jsonl; give the --output_dir of"
            " a run of launch/pretrain.py, or --mfu"
        )
    return statistics.median(rows)


def _run(
    layout: ZeroLayout, batch_size: int, run: PretrainingConfig, workload: Workload, step: StepTime
) -> dict[str, Any]:
    num_samples = batch_size * run.num_train_steps
    step_flops = workload.flops(layout.model, batch_size)
    epochs = num_samples / workload.samples_per_epoch if workload.samples_per_epoch else None
    return {
        "steps": run.num_train_steps,
        "train_batch_size": batch_size,
        "samples": num_samples,
        "tokens": num_samples * workload.tokens_per_sample,
        "epochs": epochs,
        "flops_per_step": step_flops,
        "flops": step_flops * run.num_train_steps,
        "step_seconds": step.seconds,
        "samples_per_second": batch_size / step.seconds,
        "tokens_per_second": batch_size * workload.tokens_per_sample / step.seconds,
        "hours": step.seconds * run.num_train_steps / 3_600,
        "gpu_hours": step.seconds * run.num_train_steps / 3_600 * layout.num_ranks,
    }


def _communication(messages: CommunicationPlan, link: Link, step: StepTime) -> dict[str, Any]:
    num_ranks = messages.num_ranks
    return {
        "messages": [
            {
                **dataclasses.asdict(collective),
                "sent_bytes": collective.wire_bytes(num_ranks),
                "seconds": collective.seconds(num_ranks, link),
            }
            for collective in messages.collectives
        ],
        "sent_bytes_per_step": messages.wire_bytes,
        "seconds": step.communication_seconds,
        "exposed_seconds": step.exposed_seconds,
        "share_without_overlap": step.share_without_overlap,
        "share_with_overlap": step.share,
    }


def _step_as_json(time: StepTime) -> dict[str, Any]:
    return {
        **dataclasses.asdict(time),
        "share_without_overlap": time.share_without_overlap,
        "share_with_overlap": time.share,
    }


def _disk(
    layout: ZeroLayout, run: PretrainingConfig, step: StepTime, disk_bytes_per_second: float
) -> dict[str, Any]:
    checkpoint = checkpoint_bytes(layout)
    weights = 4 * layout.num_parameters
    write_seconds = checkpoint / disk_bytes_per_second
    interval_seconds = min(run.checkpoint_interval, run.num_train_steps) * step.seconds
    return {
        "checkpoint_bytes": checkpoint,
        # Those kept, the best, and the one that is being written.
        "most_bytes": (run.keep_checkpoints + 2) * checkpoint + weights,
        "write_seconds": write_seconds,
        # Training waits only where a checkpoint takes longer to write than its interval.
        "share_of_time": max(0.0, 1.0 - interval_seconds / write_seconds),
        "host_bytes_per_rank": snapshot_bytes(layout),
    }
