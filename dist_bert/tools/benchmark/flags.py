"""The flags of each mode of the benchmark. No torch."""

import argparse

from dist_bert.common.cli import count, positive
from dist_bert.common.settings import add_flags, add_switch
from dist_bert.model.config import ModelConfig
from dist_bert.training.optimizers.kinds import OURS

USUAL_MICRO_BATCH = 32  # samples; a comparison tries nothing


def add_prepare_flags(command: argparse.ArgumentParser) -> None:
    """Of the preparation."""
    command.add_argument(
        "--input", nargs="+", metavar="GLOB", default=[], help="text files; ** for any depth"
    )
    command.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="from train_tokenizer.py (default: one of 8,192 pieces is made from the text)",
    )
    command.add_argument(
        "--sequence_length", type=count, default=128, help="for text to shards (default: 128)"
    )
    command.add_argument(
        "--rounds", type=count, default=3, help="of which the best counts (default: 3)"
    )
    command.add_argument(
        "--loader_samples",
        type=count,
        default=32_768,
        help="samples that the readers are compared on, by whole shards (default: 32768)",
    )


def add_train_flags(command: argparse.ArgumentParser) -> None:
    """Of training steps."""
    _add_training_inputs(command)
    command.add_argument(
        "--against",
        nargs="*",
        choices=(
            "compiled",
            "float8",
            "flash_attention_3",
            "plain_torch",
            "transformers",
            "transformers_sorted",
            "transformers_sparse",
        ),
        default=["transformers", "transformers_sorted"],
        help="what ours is compared with (default: both of transformers)",
    )
    command.add_argument(
        "--rounds", type=count, default=3, help="of which the median counts (default: 3)"
    )
    add_switch(
        command,
        "--matmul_roofline",
        "measure the largest rate of matrix products on this device, and compare with it",
    )


def add_saves_flags(command: argparse.ArgumentParser) -> None:
    """Of checkpoints."""
    _add_training_inputs(command)
    command.add_argument(
        "--steps", type=count, default=10, help="of a turn: longer than a save (default: 10)"
    )
    command.add_argument(
        "--rounds", type=count, default=3, help="of which the median counts (default: 3)"
    )
    command.add_argument(
        "--folder", metavar="DIR", help="on the disk that is measured (default: TMPDIR's)"
    )


def add_optimizers_flags(command: argparse.ArgumentParser) -> None:
    """Of updates."""
    _add_training_inputs(command)
    names = ["AdamW", *(kind.name for kind in OURS.values())]
    command.add_argument(
        "--optimizers",
        nargs="+",
        choices=names,
        default=names,
        help="the first one is what the others are compared with (default: all)",
    )
    command.add_argument(
        "--rounds", type=count, default=5, help="of which the median counts (default: 5)"
    )


def add_sources_flags(command: argparse.ArgumentParser) -> None:
    """Of shards elsewhere, and of mixtures."""
    command.add_argument("--shards", required=True, metavar="DIR", help="folder of prepared shards")
    command.add_argument(
        "--rounds", type=count, default=3, help="of which the best counts (default: 3)"
    )


def add_peers_flags(command: argparse.ArgumentParser) -> None:
    """Of transformers' own training."""
    command.add_argument("--shards", required=True, metavar="DIR", help="folder of prepared shards")
    command.add_argument("--minutes", type=positive, required=True, help="of training")
    command.add_argument("--lr", type=positive, default=1e-4, help="the peak (default: 1e-4)")
    command.add_argument(
        "--batch_size", type=count, default=32, help="samples of a step (default: 32)"
    )
    command.add_argument(
        "--max_samples", type=count, default=1_024, help="held-out ones (default: 1024)"
    )
    command.add_argument(
        "--scores", type=count, default=8, help="how often they are scored (default: 8)"
    )
    command.add_argument("--seed", type=int, default=1, help="of weights and order (default: 1)")
    command.add_argument(
        "--picture", metavar="FILE", help="also draw loss against time as a PNG file"
    )
    command.add_argument(
        "--beside",
        nargs="+",
        default=[],
        metavar="PATH",
        help="folders of pretraining runs and earlier --json of this command, drawn beside it",
    )
    command.add_argument("--model", metavar="FILE", help="model JSON (default: BERT-base)")
    add_flags(command, ModelConfig)


def add_attention_flags(command: argparse.ArgumentParser) -> None:
    """Of attention within a window."""
    command.add_argument(
        "--lengths",
        type=count,
        nargs="+",
        default=[512, 2_048, 8_192],
        metavar="TOKENS",
        help="of the sample (default: 512 2048 8192)",
    )
    command.add_argument(
        "--windows",
        type=count,
        nargs="+",
        metavar="TOKENS",
        help="half of it on each side (default: the model's local_attention)",
    )
    command.add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16", help="(default: bf16)"
    )
    command.add_argument(
        "--rounds", type=count, default=3, help="of which the median counts (default: 3)"
    )
    command.add_argument("--model", metavar="FILE", help="model JSON (default: BERT-base)")
    add_flags(command, ModelConfig)


def _add_training_inputs(command: argparse.ArgumentParser) -> None:
    """Model, engine and samples of a benchmark of training."""
    command.add_argument("--shards", required=True, metavar="DIR", help="folder of prepared shards")
    command.add_argument(
        "--deepspeed_config",
        default="configs/zero1.json",
        help="DeepSpeed JSON (default: %(default)s)",
    )
    command.add_argument("--model", metavar="FILE", help="model JSON (default: BERT-base)")
    command.add_argument(
        "--train_batch_size", type=count, help="instead of the DeepSpeed JSON's, over all ranks"
    )
    command.add_argument(
        "--micro_batch_size",
        type=count,
        help=f"likewise, of one rank (where that is auto: {USUAL_MICRO_BATCH})",
    )
    add_flags(command, ModelConfig)
