"""A plan as text for people. Not for: any figure that `dist_bert.tools.plan.plan` has not."""

from collections.abc import Sequence
from typing import Any

from dist_bert.common.text_tables import number, table
from dist_bert.tools.plan.plan import MOST_IDLE, Hardware
from dist_bert.tools.plan.workload import Workload
from dist_bert.training.zero_layout import ZeroLayout


def plan_text(
    plan: dict[str, Any],
    layout: ZeroLayout,
    workloads: Sequence[Workload],
    hardware: Hardware,
    origins: dict[str, str],
    schedule: str = "",
) -> str:
    """All sections of a plan.

    Args:
        plan: the figures.
        layout: model and ZeRO.
        workloads: of all parts of the run.
        hardware: what each of the GPUs is.
        origins: where MFU and samples are from, and the GPU's kind.
        schedule: the phases of a recipe as a table.
    """
    sections = (
        _assumptions(plan, layout, workloads, hardware, origins),
        _memory(plan["memory"]),
        *([schedule, _phases(plan["phases"])] if schedule else []),
        _run(plan["run"]),
        _update(plan["update"], layout.optimizer),
        _communication(plan["communication"], plan["run"]["step_seconds"]),
        _scaling(plan["scaling"], layout.stage),
        _scaling_ends(plan["scaling_ends"]),
        _disk(plan["disk"]),
    )
    return "\n\n".join(sections)


def _assumptions(
    plan: dict[str, Any],
    layout: ZeroLayout,
    workloads: Sequence[Workload],
    hardware: Hardware,
    origins: dict[str, str],
) -> str:
    tokens = _each_once([f"{workload.tokens_per_sample:.1f}" for workload in workloads])
    masked = _each_once([f"{workload.masked_per_sample:.1f}" for workload in workloads])
    link = hardware.link
    return _rows(
        f"prediction for {layout.num_ranks:,} x {origins['gpu']}, ZeRO-{layout.stage}"
        f" {layout.precision}",
        {
            "parameters": f"{plan['parameters']:,}",
            "GPU": f"{hardware.peak_flops / 1e12:,.0f} TFLOP/s peak,"
            f" {hardware.memory_bytes / 2**30:.1f} GiB",
            "MFU": f"{hardware.mfu:.1%} ({origins['mfu']})",
            "links": f"{link.inside_bytes_per_second / 1e9:g} GB/s in a node of"
            f" {link.gpus_per_node}, {link.between_bytes_per_second / 1e9:g} GB/s between nodes,"
            f" {1e6 * link.latency_seconds:g} us (assumed)",
            "host": f"{1e6 * hardware.launch_seconds:g} us for each launch (assumed)",
            "samples": f"{tokens} tokens, {masked} masked ({origins['samples']})",
        },
    )


def _memory(memory: dict[str, Any]) -> str:
    items = {}
    for part in ("states", "buffers", "activations"):
        items.update({name: _gib(size) for name, size in memory[part].items()})
    items["framework (assumed)"] = _gib(memory["framework_assumed"])
    peak, available = memory["peak_bytes"], memory["available_bytes"]
    budget = available * (1 - memory["margin"])
    items["in the update instead"] = ", ".join(
        f"{name} {size / 2**30:.2f}" for name, size in memory["update"].items()
    )
    items["peak"] = f"{_gib(peak)}  of {available / 2**30:.1f} GiB"
    if peak > budget:
        items["peak"] += f": does not fit, with {memory['margin']:.0%} left free"
    items["largest micro-batch"] = (
        f"{memory['largest_micro_batch']:8,}  with {memory['margin']:.0%} left free;"
        " with --activation_checkpointing true"
        f" {memory['largest_micro_batch_with_checkpointing']:,}"
    )
    checkpointing = " with activation checkpointing" * memory["activation_checkpointing"]
    size = memory["micro_batch_size"]
    title = f"GiB of a GPU, micro-batch of {size:,} longest samples{checkpointing}"
    if memory["phase"]:
        title += f", in phase {memory['phase']} ({memory['sequence_length']:,} tokens)"
    return _rows(title, items)


def _phases(phases: dict[str, dict[str, Any]]) -> str:
    rows = {
        name: {
            "hours": phase["hours"],
            "tokens/s": phase["tokens"] / phase["hours"] / 3_600,
            "micro-batch": phase["micro_batch_size"],
            "peak GiB": phase["peak_bytes"] / 2**30,
        }
        for name, phase in phases.items()
    }
    return table("phase", rows)


def _run(run: dict[str, Any]) -> str:
    sizes = " to ".join(f"{size:,}" for size in run["least_and_most_samples"])
    rows = {
        "samples": f"{run['samples']:,} in {run['steps']:,} steps of {sizes}",
        "tokens": f"{run['tokens']:.3g}",
        "FLOPs": f"{run['flops']:.3g}, a step {run['flops_per_step']:.3g}",
        "step": f"{run['step_seconds'] * 1e3:,.1f} ms, {run['samples_per_second']:,.0f} samples/s,"
        f" {run['tokens_per_second']:,.0f} tokens/s",
        "bound by": _bound(run),
        "hours": f"{number(run['hours'])}, of all GPUs {number(run['gpu_hours'])}",
    }
    if run["epochs"] is not None:
        rows["epochs"] = number(run["epochs"])
    if len(run["least_and_most_samples"]) > 1 or run["phase"]:
        in_phase = f" of phase {run['phase']}" if run["phase"] else ""
        rows["one step is"] = (
            f"one of {run['train_batch_size']:,} samples{in_phase}, here and below"
        )
    return _rows("the run", rows)


def _bound(run: dict[str, Any]) -> str:
    """Which of GPU and host takes longer, and what to do where it is the host."""
    gpu = f"{run['compute_seconds'] * 1e3:,.1f} ms of arithmetic"
    host = f"{run['host_seconds'] * 1e3:,.1f} ms for {run['num_launches']:,} launches"
    if not run["is_bound_by_host"]:
        return f"the GPU: {gpu}; the host takes {host}"
    return (
        f"the host: {host}; the GPU takes {gpu}: raise --micro_batch_tokens (or auto) where batches"
        " are accumulated, else take fewer GPUs or a larger batch"
    )


def _update(update: dict[str, float], optimizer: str) -> str:
    rows = {"memory traffic": f"{_mb(update['traffic_bytes'])} MB read and written"}
    if update["newton_schulz_flops"]:
        rows["Newton-Schulz"] = (
            f"{update['newton_schulz_flops']:.3g} FLOPs, {update['share_of_flops']:.1%} of the"
            " FLOPs of the step"
        )
    return _rows(f"update by {optimizer}, a GPU", rows)


def _communication(communication: dict[str, Any], step_seconds: float) -> str:
    rows = {
        f"{message['what']} ({message['operation']})": f"{_mb(message['message_bytes'])} MB"
        f" in {message['num_calls']:,} messages, {_mb(message['sent_bytes'])} MB sent,"
        f" {message['seconds'] * 1e3:.2f} ms"
        for message in communication["messages"]
    }
    rows["share of the step"] = (
        f"{communication['share_without_overlap']:.1%} one after the other,"
        f" {communication['share_with_overlap']:.1%} where all that can overlap does"
    )
    sent = communication["sent_bytes_per_step"]
    return _rows(f"communication of a step, a GPU: {_mb(sent)} MB sent", rows)


def _scaling(times: list[dict[str, Any]], stage: int) -> str:
    rows = {
        f"{time['num_gpus']:,}": {
            "micro_batch": time["micro_batch_size"],
            "accumulation": time["accumulation_steps"],
            "compute_ms": time["compute_seconds"] * 1e3,
            "host_ms": time["host_seconds"] * 1e3,
            "messages_ms": time["communication_seconds"] * 1e3,
            "exposed_ms": time["exposed_seconds"] * 1e3,
            "share_%": 100 * time["share_with_overlap"],
            "share_without_overlap_%": 100 * time["share_without_overlap"],
        }
        for time in times
    }
    return table(f"GPUs, same batch, ZeRO-{stage}", rows)


def _scaling_ends(ends: dict[str, dict[str, int]]) -> str:
    rows = {
        stage.replace("zero", "ZeRO-"): {f"batch {int(size):,}": most for size, most in row.items()}
        for stage, row in ends.items()
    }
    title = f"most GPUs that wait at most {MOST_IDLE:.0%} of a step*"
    note = "* for messages or the host, at the largest micro-batch that fits, with overlap"
    return f"{table(title, rows)}\n{note}"


def _disk(disk: dict[str, Any]) -> str:
    return _rows(
        "disk",
        {
            "checkpoint": f"{_gb(disk['checkpoint_bytes'])} GB, written in"
            f" {number(disk['write_seconds'])} s during training",
            "at most": f"{_gb(disk['most_bytes'])} GB",
            "host memory": f"up to {_gb(disk['host_bytes_per_rank'])} GB a rank, for copies",
            "share of the time": f"{disk['share_of_time']:.2%} waiting for it",
        },
    )


def _each_once(values: Sequence[str]) -> str:
    """The values of all parts of a run."""
    return ", ".join(dict.fromkeys(values))


def _rows(title: str, rows: dict[str, str]) -> str:
    width = max(map(len, rows)) + 2
    return "\n".join([title, *(f"  {name:<{width}}{value}" for name, value in rows.items())])


def _gib(size: float) -> str:
    return f"{size / 2**30:8.2f}"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}"
