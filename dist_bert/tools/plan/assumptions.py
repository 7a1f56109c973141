"""What a plan is made for: run, samples and hardware, as the flags give them."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.common.settings import flags_of, resolve
from dist_bert.data.remote import is_url
from dist_bert.data.shard_format import MANIFEST_NAME
from dist_bert.data.shard_source import read_manifest
from dist_bert.model.config import ModelConfig
from dist_bert.model.flops import PEAK_BF16_FLOPS
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.tools.plan.communication import Link
from dist_bert.tools.plan.plan import (
    GPU_MEMORY_GBYTES,
    Hardware,
    Workload,
    make_plan,
    measured_mfu,
)
from dist_bert.tools.plan.text import plan_text
from dist_bert.tools.plan.zero_layout import ZeroLayout
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.deepspeed_flags import deepspeed_flags


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """A run, the samples that it takes and the hardware that it runs on."""

    layout: ZeroLayout
    run: PretrainingConfig
    deepspeed: DeepSpeedConfig
    workload: Workload
    hardware: Hardware
    origins: dict[str, str]  # of what nobody can look up: GPU's kind, MFU, samples

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Assumptions":
        """What the flags say.

        Raises:
            UserError: something is missing, or does not go together.
        """
        run = resolve(PretrainingConfig, arguments.config, flags_of(PretrainingConfig, arguments))
        model = resolve(ModelConfig, arguments.model, flags_of(ModelConfig, arguments))
        changes = deepspeed_flags(arguments)
        deepspeed = DeepSpeedConfig.load(arguments.deepspeed_config, arguments.gpus, changes)
        layout = ZeroLayout.of(model, deepspeed)
        layout = dataclasses.replace(layout, has_average=run.average_decay > 0)
        workload = _workload(arguments, run, model)
        if workload.sequence_length > model.max_position_embeddings:
            raise UserError(
                f"max_position_embeddings = {model.max_position_embeddings} is below the sequence"
                f" length {workload.sequence_length}: raise it, or plan for shorter samples"
            )
        hardware, origins = _hardware(arguments, deepspeed.precision, run.activation_checkpointing)
        return cls(layout, run, deepspeed, workload, hardware, origins)

    def settings(self) -> dict[str, Any]:
        """All of it for a JSON file."""
        return {
            "model": vars(self.layout.model),
            "run": vars(self.run),
            "deepspeed": self.deepspeed.values,
            "workload": vars(self.workload),
            "hardware": {**vars(self.hardware), "link": vars(self.hardware.link)},
            "origins": self.origins,
        }

    def plan(self) -> tuple[dict[str, Any], str]:
        """The plan for a JSON file, and as text."""
        micro_batch_size = self.deepspeed.batch_shape.micro_batch_size
        plan = make_plan(self.layout, micro_batch_size, self.run, self.workload, self.hardware)
        return plan, plan_text(plan, self.layout, self.workload, self.hardware, self.origins)


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
    )
    return hardware, {
        "gpu": gpu or "unknown",
        "mfu": mfu_origin,
        "samples": f"of length {arguments.sequence_length}, all full"
        if arguments.sequence_length
        else "as the manifest counts them",
    }
