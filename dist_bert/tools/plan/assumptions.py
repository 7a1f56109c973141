"""What a plan is made for: run, samples and hardware, as the flags give them."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.common.redaction import redacted_values
from dist_bert.common.settings import flags_of, raise_all, resolve
from dist_bert.data.batches import TO_BE_FOUND, BatchShape
from dist_bert.data.remote import is_url
from dist_bert.data.shard_format import MANIFEST_NAME
from dist_bert.data.shard_source import read_manifest
from dist_bert.model.config import ModelConfig
from dist_bert.model.flops import PEAK_BF16_FLOPS
from dist_bert.pretraining.auto_tokens import layout_of, planned_tokens, with_tokens
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.job import open_corpus
from dist_bert.pretraining.recipe import Phase, deepspeed_changes, resolve_run
from dist_bert.pretraining.timeline import PhasePlan, Timeline, make_timeline, run_of, stages_of
from dist_bert.pretraining.timeline_text import timeline_table
from dist_bert.tools.plan.communication import Link
from dist_bert.tools.plan.plan import (
    GPU_MEMORY_GBYTES,
    Hardware,
    make_plan,
    measured_mfu,
)
from dist_bert.tools.plan.schedule import draw_schedule
from dist_bert.tools.plan.text import plan_text
from dist_bert.tools.plan.workload import Part, Workload, parts_of
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.deepspeed_flags import deepspeed_flags
from dist_bert.training.zero_layout import ZeroLayout


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """A run, the samples that it takes and the hardware that it runs on."""

    layout: ZeroLayout
    run: PretrainingConfig
    deepspeed: DeepSpeedConfig
    timeline: Timeline
    parts: tuple[Part, ...]
    hardware: Hardware
    origins: dict[str, str]  # of what nobody can look up: GPU's kind, MFU, samples

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Assumptions":
        """What the flags say.

        Raises:
            UserError: something is missing, or does not go together.
        """
        run, phases = resolve_run(arguments.config, flags_of(PretrainingConfig, arguments))
        model = resolve(ModelConfig, arguments.model, flags_of(ModelConfig, arguments))
        changes = deepspeed_changes(phases, deepspeed_flags(arguments))
        deepspeed = DeepSpeedConfig.load(arguments.deepspeed_config, arguments.gpus, changes)
        layout = layout_of(model, deepspeed, run)
        if run.recipe:
            timeline, workloads = _of_recipe(arguments, run, phases, model, deepspeed.batch_shape)
        else:
            timeline = _of_run(run, phases[0], deepspeed.batch_shape)
            workloads = {run.shards: _workload(arguments, run, model)}
        hardware, origins = _hardware(arguments, deepspeed.precision, run.activation_checkpointing)
        timeline = _settled(timeline, workloads, layout, run, hardware)
        parts = parts_of(timeline, workloads)
        longest = max(part.workload.sequence_length for part in parts)
        if longest > model.max_position_embeddings:
            raise UserError(
                f"max_position_embeddings = {model.max_position_embeddings} is below the sequence"
                f" length {longest}: raise it, or plan for shorter samples"
            )
        tokens = parts[0].micro_batch_tokens  # a recipe's are checked with its data sets
        if 0 < tokens < parts[0].workload.sequence_length:
            raise UserError(
                f"micro_batch_tokens = {tokens} is below the sequence length {longest}: raise it"
            )
        run = run_of(run, phases, timeline.num_steps)
        deepspeed = deepspeed.with_shape(timeline.largest_shape)
        return cls(layout, run, deepspeed, timeline, parts, hardware, origins)

    def settings(self) -> dict[str, Any]:
        """All of it for a JSON file, without credentials."""
        workloads = {part.phase: vars(part.workload) for part in self.parts}
        return redacted_values(
            {
                "model": vars(self.layout.model),
                "run": vars(self.run),
                "deepspeed": self.deepspeed.values,
                **({"workloads": workloads} if self.run.recipe else {"workload": workloads[""]}),
                "hardware": {**vars(self.hardware), "link": vars(self.hardware.link)},
                "origins": self.origins,
            }
        )

    def plan(self) -> tuple[dict[str, Any], str]:
        """The plan for a JSON file, and as text."""
        plan = make_plan(self.layout, self.run, self.parts, self.hardware)
        schedule = ""
        if self.run.recipe:
            schedule = timeline_table(self.timeline, self.deepspeed.peak_lr)
        workloads = [part.workload for part in self.parts]
        text = plan_text(plan, self.layout, workloads, self.hardware, self.origins, schedule)
        return plan, text

    def draw(self, path: str) -> None:
        """Draws the schedule of the whole run as a PNG file."""
        draw_schedule(self.timeline, self.parts, self.deepspeed.peak_lr, path)


def _of_run(run: PretrainingConfig, phase: Phase, usual: BatchShape) -> Timeline:
    """The steps of a run without a recipe, whose data set need not be there.

    Raises:
        UserError: the ramp of its batch does not fit.
    """
    stages, problems = stages_of(phase, (), (), usual)
    raise_all("plan", problems)
    return Timeline((PhasePlan(phase, (), (), (), 0, 0, tuple(stages), None),), run.lr_schedule)


def _of_recipe(
    arguments: argparse.Namespace,
    run: PretrainingConfig,
    phases: Sequence[Phase],
    model: ModelConfig,
    usual: BatchShape,
) -> tuple[Timeline, dict[str, Workload]]:
    """The steps of a recipe, and the samples of its data sets.

    Raises:
        UserError: a manifest cannot be read, or the phases do not fit.
    """
    if arguments.sequence_length:
        raise UserError(
            f"--sequence_length {arguments.sequence_length}: the data sets of --recipe"
            f" {run.recipe} give the lengths; leave it out"
        )
    places = list(dict.fromkeys(place for phase in phases for place in phase.shards))
    corpora = {place: open_corpus(place, places, run) for place in places}
    workloads = {p: Workload.of_shards(c.manifest, model) for p, c in corpora.items()}
    return make_timeline(run, phases, corpora, usual), workloads


def _settled(
    timeline: Timeline,
    workloads: Mapping[str, Workload],
    layout: ZeroLayout,
    run: PretrainingConfig,
    hardware: Hardware,
) -> Timeline:
    """The steps with a number where `micro_batch_tokens` is auto: the one that a start tries."""
    samples = [
        part.workload.longest_sample
        for part in parts_of(timeline, workloads)
        if part.micro_batch_tokens == TO_BE_FOUND
    ]
    if not samples:
        return timeline
    checkpointing = run.activation_checkpointing
    memory = hardware.memory_bytes
    found = planned_tokens(timeline, layout, samples, checkpointing, memory, is_gpu=True)
    return with_tokens(timeline, found)


def _workload(
    arguments: argparse.Namespace, run_config: PretrainingConfig, model: ModelConfig
) -> Workload:
    if arguments.sequence_length:
        return Workload.of_length(arguments.sequence_length, model)
    shards = run_config.shards
    if not is_url(shards) and not (Path(shards) / MANIFEST_NAME).exists():
        raise UserError(
            f"--shards {shards}: has no {MANIFEST_NAME}; give --sequence_length to plan"
            " for samples of that length, or the folder of prepared shards"
        )
    return Workload.of_shards(read_manifest(shards), model)


def _hardware(
    arguments: argparse.Namespace, precision: str, checkpointing: bool
) -> tuple[Hardware, dict[str, str]]:
    """The hardware, and where the figures are from that nobody can look up."""
    memory_gib, tflops, gpu = arguments.gpu_memory_gib, arguments.peak_tflops, arguments.gpu
    if gpu is None and (memory_gib is None or tflops is None):
        raise UserError(
            "--gpu: must be given, or both --gpu_memory_gib and --peak_tflops; known:"
            f" {', '.join(PEAK_BF16_FLOPS)}"
        )
    if tflops is None and precision == "fp32":
        raise UserError(
            f"--gpu {gpu}: its peak is known in 16 bits, and the DeepSpeed JSON asks for float32;"
            " give --peak_tflops, the peak of float32"
        )
    inside, *between = arguments.link_gbytes_per_second
    if len(between) > 1:
        raise UserError(
            f"--link_gbytes_per_second: {len(between) + 1} figures; give one, or two: inside a node"
            " and between nodes"
        )
    mfu, mfu_origin = arguments.mfu, "assumed"
    if arguments.run:
        mfu, mfu_origin = measured_mfu(arguments.run), f"measured in {arguments.run}"
    elif checkpointing:  # a forward pass more, of what are three
        mfu, mfu_origin = 0.75 * mfu, f"assumed: 3/4 of {mfu:.1%}, layers are computed again"
    hardware = Hardware(
        memory_bytes=2**30 * memory_gib if memory_gib else 1e9 * GPU_MEMORY_GBYTES[gpu],
        peak_flops=1e12 * tflops if tflops else PEAK_BF16_FLOPS[gpu],
        mfu=mfu,
        link=Link(
            inside_bytes_per_second=1e9 * inside,
            between_bytes_per_second=1e9 * (between[0] if between else inside),
            gpus_per_node=arguments.gpus_per_node,
            latency_seconds=1e-6 * arguments.link_latency_microseconds,
        ),
        disk_bytes_per_second=1e9 * arguments.disk_gbytes_per_second,
        launch_seconds=1e-6 * arguments.launch_microseconds,
    )
    return hardware, {
        "gpu": gpu or "unknown",
        "mfu": mfu_origin,
        "samples": f"of length {arguments.sequence_length}, all full"
        if arguments.sequence_length
        else "as the manifest counts them",
    }
