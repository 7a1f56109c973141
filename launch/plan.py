"""Says what a run will need and take before it is queued: memory, hours, traffic, scaling, disk.

    python launch/plan.py --gpus 64 --gpu H200 --deepspeed_config configs/zero2.json \
        --sequence_length 128 --train_batch_size 4096 --train_micro_batch_size_per_gpu 64

takes the flags of launch/pretrain.py beside its own. Nothing is measured: what it assumes of MFU,
links and disk is printed with it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from dist_bert.common.cli import Parser, run
from dist_bert.common.errors import UserError
from dist_bert.common.settings import add_flags, flags_of, resolve
from dist_bert.model.config import ModelConfig
from dist_bert.model.flops import PEAK_BF16_FLOPS
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.training.deepspeed_flags import add_deepspeed_flags, deepspeed_flags


def main(arguments: argparse.Namespace) -> None:
    """Resolves the settings, prints the plan and writes it as JSON where asked."""
    from dist_bert.common.files import write_json
    from dist_bert.tools.plan.plan import make_plan
    from dist_bert.tools.plan.text import plan_text
    from dist_bert.tools.plan.zero_layout import ZeroLayout
    from dist_bert.training.deepspeed_config import DeepSpeedConfig

    run_config = resolve(
        PretrainingConfig, arguments.config, flags_of(PretrainingConfig, arguments)
    )
    model = resolve(ModelConfig, arguments.model, flags_of(ModelConfig, arguments))
    changes = deepspeed_flags(arguments)
    deepspeed = DeepSpeedConfig.load(arguments.deepspeed_config, arguments.gpus, changes)
    layout = ZeroLayout.of(model, deepspeed)
    workload = _workload(arguments, run_config)
    if workload.sequence_length > model.max_position_embeddings:
        raise UserError(
            f"max_position_embeddings = {model.max_position_embeddings} is below the sequence"
            f" length {workload.sequence_length}: raise it, or plan for shorter samples"
        )
    hardware, origins = _hardware(
        arguments, deepspeed.precision, run_config.activation_checkpointing
    )
    settings = {
        "model": vars(model),
        "run": vars(run_config),
        "deepspeed": deepspeed.values,
        "workload": vars(workload),
        "hardware": {**vars(hardware), "link": vars(hardware.link)},
        "origins": origins,
    }
    if arguments.dry_run:
        print(json.dumps(settings, indent=2))
        return
    if arguments.json and not Path(arguments.json).resolve().parent.is_dir():
        raise UserError(f"--json {arguments.json}: its folder does not exist; make it first")
    micro_batch_size = deepspeed.batch_shape.micro_batch_size
    plan = make_plan(layout, micro_batch_size, run_config, workload, hardware)
    print(plan_text(plan, layout, workload, hardware, origins))
    if arguments.json:
        write_json(arguments.json, {"settings": settings, "plan": plan})


def _workload(arguments: argparse.Namespace, run_config: PretrainingConfig) -> Any:
    from dist_bert.data.remote import is_url
    from dist_bert.data.shard_format import MANIFEST_NAME
    from dist_bert.data.shard_source import read_manifest
    from dist_bert.tools.plan.plan import Workload

    if arguments.sequence_length:
        return Workload.of_length(arguments.sequence_length)
    shards = run_config.shards
    if not is_url(shards) and not (Path(shards) / MANIFEST_NAME).exists():
        raise UserError(
            f"--shards {shards}: has no {MANIFEST_NAME}; give --sequence_length to plan"
            " for samples of that length, or the folder of prepared shards"
        )
    return Workload.of_shards(read_manifest(shards))


def _hardware(
    arguments: argparse.Namespace, precision: str, checkpointing: bool
) -> tuple[Any, dict[str, str]]:
    """The hardware, and where the figures are from that nobody can look up."""
    from dist_bert.tools.plan.communication import Link
    from dist_bert.tools.plan.plan import GPU_MEMORY_GBYTES, Hardware, measured_mfu

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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 1")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return value


def _share(text: str) -> float:
    value = _positive(text)
    if value > 1.0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be above 0 and at most 1")
    return value


def make_parser() -> Parser:
    """The flags: those of the plan, then those of launch/pretrain.py."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--gpus", type=_count, required=True, help="number of GPUs")
    add("--gpu", choices=PEAK_BF16_FLOPS, help="their kind; A100 is the one of 40 GB")
    add("--gpu_memory_gib", type=_positive, help="memory of one (default: the kind's data sheet)")
    add("--peak_tflops", type=_positive, help="dense peak of one (default: the data sheet's bf16)")
    add("--mfu", type=_share, default=0.4, help="assumed of a GPU while it computes (default: 0.4)")
    add("--run", metavar="RUN_DIR", help="take the MFU that this run has measured instead")
    add("--sequence_length", type=_count, help="plan without shards, for full samples of so many")
    add(
        "--link_gbytes_per_second",
        type=_positive,
        nargs="+",
        metavar="GB",
        default=[300.0, 40.0],
        help="that a GPU reaches inside its node, and a node to the others with all its adapters;"
        " or one figure for both (default: 300 40, NVLink and one adapter of 400 Gbit/s)",
    )
    add(
        "--link_latency_microseconds",
        type=_positive,
        metavar="US",
        default=5.0,
        help="of a message from one GPU to the next (default: 5)",
    )
    add("--gpus_per_node", type=_count, default=8, help="(default: 8)")
    add(
        "--disk_gbytes_per_second",
        type=_positive,
        metavar="GB",
        default=1.0,
        help="at which all ranks together write a checkpoint (default: 1)",
    )
    add("--model", metavar="FILE", help="model JSON (default: bert_base's values)")
    add("--config", metavar="FILE", help="run JSON (default: the flags' defaults)")
    add("--json", metavar="FILE", help="also write the plan here")
    add("--dry_run", action="store_true", help="print the resolved settings and stop")
    add_deepspeed_flags(parser, "configs/zero2.json")
    add_flags(parser, PretrainingConfig)
    add_flags(parser, ModelConfig)
    return parser


if __name__ == "__main__":
    run(main, make_parser().parse_args())
