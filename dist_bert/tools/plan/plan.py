"""What a run will need and take, before any job is queued: memory, hours, traffic, scaling, disk.

Puts together `memory.py`, `communication.py` and the count of operations.
Nothing is measured here and torch is not needed: MFU, links and disk are the caller's to know.
"""

import dataclasses
import operator
import statistics
from collections.abc import Sequence
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.tools.plan.communication import CommunicationPlan, Link, plan_communication
from dist_bert.tools.plan.host import step_launches
from dist_bert.tools.plan.update import flops_share, plan_update
from dist_bert.tools.plan.workload import Part, Workload
from dist_bert.training.memory import (
    FRAMEWORK_BYTES,
    MARGIN,
    MemoryPlan,
    checkpoint_bytes,
    largest_micro_batch,
    most_checkpoint_bytes,
    plan_memory,
    snapshot_bytes,
)
from dist_bert.training.metrics import read_metrics
from dist_bert.training.zero_layout import ZeroLayout

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
MOST_IDLE = 0.2  # share of the step without arithmetic at which scaling is said to end
_BATCH_FACTORS = (1, 4, 16)  # of the global batch, in the table of where scaling ends


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What the run is planned for. All GPUs are alike."""

    memory_bytes: float  # of one GPU
    peak_flops: float  # of one GPU, a second
    mfu: float  # that a GPU reaches while it computes
    link: Link
    disk_bytes_per_second: float  # that all ranks write together
    launch_seconds: float  # of the host, for an operation that it starts on a GPU


@dataclasses.dataclass(frozen=True)
class StepTime:
    """An optimizer step on a number of GPUs, at a global batch that is given."""

    num_gpus: int
    micro_batch_size: int
    accumulation_steps: int
    compute_seconds: float  # of the GPU
    num_launches: int
    host_seconds: float  # in which the host launches them: the GPU is not done before
    communication_seconds: float
    exposed_seconds: float  # of communication, where what can overlap does so perfectly

    @property
    def is_bound_by_host(self) -> bool:
        """Whether the GPU waits for what the host starts."""
        return self.host_seconds > self.compute_seconds

    @property
    def busy_seconds(self) -> float:
        """Of GPU or host, whichever takes longer: one runs ahead of the other."""
        return max(self.compute_seconds, self.host_seconds)

    @property
    def seconds(self) -> float:
        """With overlap."""
        return self.busy_seconds + self.exposed_seconds

    @property
    def idle_share(self) -> float:
        """Of the step, in which the GPU does no arithmetic."""
        return 1.0 - self.compute_seconds / self.seconds

    @property
    def share(self) -> float:
        """Of communication in the step, with overlap."""
        return self.exposed_seconds / self.seconds

    @property
    def share_without_overlap(self) -> float:
        """Of communication in a step that does one after the other."""
        return self.communication_seconds / (self.busy_seconds + self.communication_seconds)


def make_plan(
    layout: ZeroLayout,
    run: PretrainingConfig,
    parts: Sequence[Part],
    hardware: Hardware,
) -> dict[str, Any]:
    """The whole plan as a JSON object; sizes in bytes, times in seconds unless a name says else.

    Memory is of the part that needs the most. The figures of one step, its traffic and scaling are
    of the part that takes the most time; `run` has the sums of all.

    Args:
        layout: model and ZeRO, on the number of GPUs; its accumulation does not matter.
        run: gives activation checkpointing and what is saved when.
        parts: all steps of the run.
        hardware: what each of the GPUs is.
    """
    steps = [
        time_of_step(_accumulating(layout, part), part.shape.micro_batch_size, part.workload,
                     hardware)
        for part in parts
    ]  # fmt: skip
    peaks = [_memory_of(layout, part, run).peak for part in parts]
    largest_part = parts[peaks.index(max(peaks))]
    seconds = [part.num_steps * step.seconds for part, step in zip(parts, steps, strict=True)]
    longest = seconds.index(max(seconds))
    step, workload, shape = steps[longest], parts[longest].workload, parts[longest].shape
    layout = _accumulating(layout, parts[longest])
    batch_size, micro_batch_size = shape.global_batch_size, shape.micro_batch_size
    memory = _memory(layout, largest_part, run, hardware)
    key = f"largest_micro_batch{'_with_checkpointing' * run.activation_checkpointing}"
    return {
        "parameters": layout.num_parameters,
        "memory": memory,
        "run": _run(layout, parts, steps, longest),
        "phases": _phases(parts, seconds, peaks),
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
                        max(micro_batch_size, memory[key]),
                        workload,
                        hardware,
                    )
                )
                for size in (batch_size * factor for factor in _BATCH_FACTORS)
            }
            for stage in range(4)
        },
        "disk": _disk(
            layout, run, sum(seconds) / run.num_train_steps, hardware.disk_bytes_per_second
        ),
    }


def _accumulating(layout: ZeroLayout, part: Part) -> ZeroLayout:
    return dataclasses.replace(layout, accumulation_steps=part.shape.accumulation_steps)


def _memory_of(layout: ZeroLayout, part: Part, run: PretrainingConfig) -> MemoryPlan:
    return plan_memory(
        _accumulating(layout, part),
        part.workload.longest_sample,
        part.longest_at_once,
        run.activation_checkpointing,
    )


def _memory(
    layout: ZeroLayout, part: Part, run: PretrainingConfig, hardware: Hardware
) -> dict[str, Any]:
    memory = _memory_of(layout, part, run)
    largest, largest_with_checkpointing = (
        largest_micro_batch(
            _accumulating(layout, part),
            part.workload.longest_sample,
            checkpointing,
            hardware.memory_bytes,
        )
        for checkpointing in (False, True)
    )
    return {
        **dataclasses.asdict(memory),
        "framework_assumed": FRAMEWORK_BYTES,
        "peak_bytes": memory.peak,
        "available_bytes": hardware.memory_bytes,
        "margin": MARGIN,
        "phase": part.phase,
        "sequence_length": part.workload.sequence_length,
        "micro_batch_size": part.longest_at_once,
        "activation_checkpointing": run.activation_checkpointing,
        "largest_micro_batch": largest,
        "largest_micro_batch_with_checkpointing": largest_with_checkpointing,
    }


def time_of_step(
    layout: ZeroLayout, micro_batch_size: int, workload: Workload, hardware: Hardware
) -> StepTime:
    """Arithmetic at the given MFU, Muon's iterations too, launches and messages of one step."""
    num_samples = micro_batch_size * layout.num_ranks * layout.accumulation_steps
    speed = hardware.peak_flops * hardware.mfu * layout.num_ranks
    compute = workload.flops(layout.model, num_samples) / speed
    compute += plan_update(layout).newton_schulz_flops / (hardware.peak_flops * hardware.mfu)
    num_launches = step_launches(layout)
    host = num_launches * hardware.launch_seconds
    messages = plan_communication(layout)
    return StepTime(
        layout.num_ranks,
        micro_batch_size,
        layout.accumulation_steps,
        compute,
        num_launches,
        host,
        messages.seconds(hardware.link),
        messages.exposed_seconds(hardware.link, max(compute, host)),
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
    """Most GPUs that wait at most 20 % of the step for messages, with overlap, or the host."""
    return max((time.num_gpus for time in times if time.idle_share <= MOST_IDLE), default=1)


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
    layout: ZeroLayout, parts: Sequence[Part], steps: Sequence[StepTime], longest: int
) -> dict[str, Any]:
    step, part = steps[longest], parts[longest]
    batch_size, workload = part.shape.global_batch_size, part.workload
    num_samples = sum(part.num_samples for part in parts)
    batch_sizes = sorted(part.shape.global_batch_size for part in parts)
    step_flops = [p.workload.flops(layout.model, p.shape.global_batch_size) for p in parts]
    num_steps = [part.num_steps for part in parts]
    seconds = sum(count * s.seconds for count, s in zip(num_steps, steps, strict=True))
    epoch = workload.samples_per_epoch if len({part.phase for part in parts}) == 1 else None
    return {
        "steps": sum(num_steps),
        "phase": part.phase,
        "train_batch_size": batch_size,
        "least_and_most_samples": sorted({batch_sizes[0], batch_sizes[-1]}),
        "samples": num_samples,
        "tokens": sum(p.num_samples * p.workload.tokens_per_sample for p in parts),
        "epochs": num_samples / epoch if epoch else None,
        "flops_per_step": step_flops[longest],
        "flops": sum(map(operator.mul, step_flops, num_steps)),
        "step_seconds": step.seconds,
        "compute_seconds": step.compute_seconds,
        "num_launches": step.num_launches,
        "host_seconds": step.host_seconds,
        "is_bound_by_host": step.is_bound_by_host,
        "samples_per_second": batch_size / step.seconds,
        "tokens_per_second": batch_size * workload.tokens_per_sample / step.seconds,
        "hours": seconds / 3_600,
        "gpu_hours": seconds / 3_600 * layout.num_ranks,
    }


def _phases(
    parts: Sequence[Part], seconds: Sequence[float], peaks: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """The sums of each phase, by its name, and the most memory that it needs."""
    phases: dict[str, dict[str, Any]] = {}
    for part, own_seconds, peak in zip(parts, seconds, peaks, strict=True):
        phase = phases.setdefault(part.phase, {
            "steps": 0, "samples": 0, "tokens": 0.0, "hours": 0.0, "peak_bytes": 0,
        })  # fmt: skip
        phase["steps"] += part.num_steps
        phase["samples"] += part.num_samples
        phase["tokens"] += part.num_samples * part.workload.tokens_per_sample
        phase["hours"] += own_seconds / 3_600
        phase["peak_bytes"] = max(phase["peak_bytes"], peak)
        phase["sequence_length"] = part.workload.sequence_length
        phase["micro_batch_size"] = part.shape.micro_batch_size
        phase["train_batch_size"] = part.shape.global_batch_size
    return phases


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
    layout: ZeroLayout, run: PretrainingConfig, step_seconds: float, disk_bytes_per_second: float
) -> dict[str, Any]:
    checkpoint = checkpoint_bytes(layout)
    write_seconds = checkpoint / disk_bytes_per_second
    interval_seconds = min(run.checkpoint_interval, run.num_train_steps) * step_seconds
    return {
        "checkpoint_bytes": checkpoint,
        "most_bytes": most_checkpoint_bytes(layout, run.keep_checkpoints),
        "write_seconds": write_seconds,
        # Training waits only where a checkpoint takes longer to write than its interval.
        "share_of_time": max(0.0, 1.0 - interval_seconds / write_seconds),
        "host_bytes_per_rank": snapshot_bytes(layout),
    }
