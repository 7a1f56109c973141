"""The flags of a plan: its own, then those of the run that it is for. No torch, no numpy."""

import argparse

from dist_bert.common.cli import count, positive
from dist_bert.common.settings import add_flags, add_switch
from dist_bert.model.config import ModelConfig
from dist_bert.model.flops import PEAK_BF16_FLOPS
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.training.deepspeed_flags import add_deepspeed_flags


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `dist_bert.tools.plan.assumptions` reads."""
    add = parser.add_argument
    add("--gpus", type=count, required=True, help="number of GPUs")
    add("--gpu", choices=PEAK_BF16_FLOPS, help="their kind; A100 is the one of 40 GB")
    add("--gpu_memory_gib", type=positive, help="memory of one (default: the kind's data sheet)")
    add("--peak_tflops", type=positive, help="dense peak of one (default: the data sheet's bf16)")
    add("--mfu", type=_share, default=0.4, help="assumed of a GPU while it computes (default: 0.4)")
    add("--run", metavar="RUN_DIR", help="take the MFU that this run has measured instead")
    add("--sequence_length", type=count, help="plan without shards, for full samples of so many")
    add(
        "--link_gbytes_per_second",
        type=positive,
        nargs="+",
        metavar="GB",
        default=[300.0, 40.0],
        help="that a GPU reaches inside its node, and a node to the others with all its adapters;"
        " or one figure for both (default: 300 40, NVLink and one adapter of 400 Gbit/s)",
    )
    add(
        "--link_latency_microseconds",
        type=positive,
        metavar="US",
        default=5.0,
        help="of a message from one GPU to the next (default: 5)",
    )
    add(
        "--launch_microseconds",
        type=positive,
        metavar="US",
        default=10.0,
        help="of the host for each operation that it starts on a GPU (default: 10)",
    )
    add("--gpus_per_node", type=count, default=8, help="(default: 8)")
    add(
        "--disk_gbytes_per_second",
        type=positive,
        metavar="GB",
        default=1.0,
        help="at which all ranks together write a checkpoint (default: 1)",
    )
    add("--model", metavar="FILE", help="model JSON (default: bert_base's values)")
    add("--config", metavar="FILE", help="run JSON (default: the flags' defaults)")
    add("--json", metavar="FILE", help="also write the plan here")
    add("--picture", metavar="FILE.png", help="also draw lr, batch, masks and lengths by step")
    add_switch(parser, "--dry_run", "print the resolved settings and stop")
    add_deepspeed_flags(parser, "configs/zero2.json")
    add_flags(parser, PretrainingConfig)
    add_flags(parser, ModelConfig)


def _share(text: str) -> float:
    value = positive(text)
    if value > 1.0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be above 0 and at most 1")
    return value
