"""What can be benchmarked: a mode is a text, flags, and a function that returns figures.

The flags come at once: torch is imported where something is measured. Not for: the measuring of
preparation (`data_prep.benchmark`), which a mode is given.
"""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_bert.common.cli import count, is_first_rank
from dist_bert.common.device import num_wanted_gpus
from dist_bert.common.errors import UserError
from dist_bert.common.settings import add_flags, add_switch, flags_of, resolve
from dist_bert.model.config import ModelConfig
from dist_bert.training.optimizers.kinds import OURS

if TYPE_CHECKING:
    from dist_bert.data.reader import SampleReader
    from dist_bert.training.deepspeed_config import DeepSpeedConfig

Figures = dict[str, Any]  # table -> row -> column -> figure
Measure = Callable[[argparse.Namespace], Figures]

_PREPARE = """Measures the preparation, and our reader of shards against webdataset and np.memmap.

Preparation: text to shards on 1 and 2 ranks, SentencePiece alone on the same sentences, the stages,
the making of samples. Without --input, it reads the documentation of the installed Python packages,
where parsing the sources takes most of the time: give text for figures of text. Takes minutes, and
up to 2 GB in a temporary folder (TMPDIR names its place), which is removed.
"""
_TRAIN = """Measures optimizer steps on real batches, compared with the alternatives.

Ours, also with compiled layers or without DeepSpeed (plain_torch, on one rank), and transformers'
BertForPreTraining, or ModernBertForMaskedLM for a modern model, padded as its samples come or
sorted by length as ours are, take turns on one global batch, in the precision and with the
optimizer of the DeepSpeed JSON. Then: where the time of our step goes, and how long training would
wait for data at 10,000 samples a second and rank.
"""
_SAVES = """Measures what checkpoints cost training.

In turns: steps alone, steps of which the first is saved and its writing waited for, and steps of
which the first is saved while training continues, as training does it. How long the loop stands
still at a save, in seconds and steps, and what a save costs in all. Checkpoints of 12 bytes a
parameter are written to a temporary folder in --folder, which is removed.
"""
_SOURCES = """Measures training's data path on remote shards.

On one rank, an epoch of micro-batches (at most 200,000 samples) from the folder, through an empty
and a full cache, and from an HTTP server on this machine: at full speed, and how long a training
would wait at 10,000 samples a second. Needs room for the data set in a temporary folder (TMPDIR
names its place).
"""
_MIXTURES = """Measures training's data path on mixtures of 1, 2, 4 and 8 data sets.

They are parts of one data set, which needs eight shards: an epoch of micro-batches on one rank, in
CPU time, and the memory that it takes.
"""
_OPTIMIZERS = """Measures what the update takes of a training step, by optimizer.

AdamW, Lamb, StableAdamW and Muon take turns on one global batch of real samples, with the other
settings of the DeepSpeed JSON: milliseconds of a step and of its update, its share of the step.
"""
_ATTENTION = """Measures attention within a window against attention to all tokens, on the CPU.

One sample, forward and backward, at several lengths, in turns: how much a local layer saves, and
that its cost grows with length times window. Takes no shards.
"""
_LOADER_RATE = 10_000.0  # samples a second of one rank


def add_modes(parser: argparse.ArgumentParser, measure_prepare: Measure) -> None:
    """Adds a command for each mode, whose `measure` is the function to call.

    Args:
        parser: of the script.
        measure_prepare: measures the preparation, which is not of this package.
    """
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, help_text, description, add_own_flags, measure in (
        ("prepare", "preparation and reader", _PREPARE, _add_prepare_flags, measure_prepare),
        ("train", "training step and loader", _TRAIN, _add_train_flags, measure_train),
        ("saves", "what checkpoints cost", _SAVES, _add_saves_flags, measure_saves),
        (
            "optimizers",
            "the update's share",
            _OPTIMIZERS,
            _add_optimizers_flags,
            measure_optimizers,
        ),
        ("sources", "shards elsewhere", _SOURCES, _add_sources_flags, measure_sources),
        ("mixtures", "several data sets", _MIXTURES, _add_sources_flags, measure_mixtures),
        ("attention", "windows by length", _ATTENTION, _add_attention_flags, measure_attention),
    ):
        command = commands.add_parser(name, description=description, help=help_text)
        command.set_defaults(measure=measure)
        add_own_flags(command)
        command.add_argument("--json", metavar="FILE", help="also write the figures here")
        add_switch(command, "--dry_run", "print the settings and stop")


def measure_train(arguments: argparse.Namespace) -> Figures:
    """Figures of training: table -> row -> column -> figure."""
    from dist_bert.data.shard_format import TOKENIZER_NAME, Manifest
    from dist_bert.tokenizer.tokenizer import Tokenizer

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if "plain_torch" in arguments.against and world_size > 1:
        raise UserError("--against plain_torch: compares one rank; leave it out with several")
    if "compiled" in arguments.against and not num_wanted_gpus():
        raise UserError("--against compiled: layers are compiled on GPUs alone; there is none")
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's profiler tells when it starts
    model, deepspeed, reader = _training_inputs(arguments)
    prepared = Manifest.load(arguments.shards).config
    tokenizer = Tokenizer(Path(arguments.shards) / TOKENIZER_NAME)
    vocabulary = tokenizer.masking_vocabulary(prepared["whole_words"], prepared["mean_span_length"])
    from dist_bert.distributed.process_group import leave_distributed, start_distributed
    from dist_bert.tools.benchmark import training as train_benchmark  # imports torch and deepspeed

    start_distributed()
    try:
        shape = deepspeed.batch_shape
        loader = train_benchmark.measure_loader(reader, vocabulary, shape, _LOADER_RATE)
        peaks = train_benchmark.peaks(deepspeed.precision, arguments.matmul_roofline)
        figures = train_benchmark.compare_steps(
            arguments.against,
            reader,
            model,
            deepspeed,
            rounds=arguments.rounds,
            device_peak=peaks["peak_tflops"] * 1e12,
            report=say,
        )
    finally:
        leave_distributed()
    for row in figures["steps"].values():
        if "matmul_tflops" in peaks:
            row["share_of_roofline"] = row["mfu"] * peaks["peak_tflops"] / peaks["matmul_tflops"]
    return {
        **figures,
        f"loader at {_LOADER_RATE:,.0f} samples/s and rank": {"ours": loader},
        "device": {"one": peaks},
    }


def measure_saves(arguments: argparse.Namespace) -> Figures:
    """Figures of checkpoints: table -> row -> column -> figure."""
    if arguments.folder and not Path(arguments.folder).is_dir():
        raise UserError(f"--folder {arguments.folder}: does not exist; make it first")
    model, deepspeed, reader = _training_inputs(arguments)
    from dist_bert.distributed.process_group import leave_distributed, start_distributed
    from dist_bert.tools.benchmark.saves import compare_saves  # imports torch and deepspeed

    start_distributed()
    try:
        rows = compare_saves(
            reader,
            model,
            deepspeed,
            arguments.folder,
            num_steps=arguments.steps,
            rounds=arguments.rounds,
            report=say,
        )
    finally:
        leave_distributed()
    return {f"saves of {arguments.steps} steps": rows}


def measure_optimizers(arguments: argparse.Namespace) -> Figures:
    """Figures of updates: table -> row -> column -> figure."""
    model, deepspeed, reader = _training_inputs(arguments)
    from dist_bert.distributed.process_group import leave_distributed, start_distributed
    from dist_bert.tools.benchmark.optimizers import compare_optimizers  # imports torch, deepspeed

    start_distributed()
    try:
        rows = compare_optimizers(
            list(dict.fromkeys(arguments.optimizers)),
            reader,
            model,
            deepspeed,
            rounds=arguments.rounds,
            report=say,
        )
    finally:
        leave_distributed()
    return {"optimizers": rows}


def measure_sources(arguments: argparse.Namespace) -> Figures:
    """Figures of shards that lie elsewhere: table -> row -> column -> figure."""
    from dist_bert.data.shard_format import Manifest
    from dist_bert.tools.benchmark.sources import compare_sources

    records = Manifest.load(arguments.shards).splits["train"]
    num_bytes = sum(record.bytes for record in records)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        rows = compare_sources(
            Path(arguments.shards),
            Path(name),
            samples_per_second=_LOADER_RATE,
            rounds=arguments.rounds,
            report=say,
        )
    return {f"{len(records)} shards, {num_bytes / 1e6:.1f} MB": rows}


def measure_mixtures(arguments: argparse.Namespace) -> Figures:
    """Figures of mixtures of data sets: table -> row -> column -> figure."""
    from dist_bert.tools.benchmark.mixtures import compare_mixtures

    shards, rounds = Path(arguments.shards), arguments.rounds
    return {"mixtures": compare_mixtures(shards, [1, 2, 4, 8], rounds=rounds, report=say)}


def measure_attention(arguments: argparse.Namespace) -> Figures:
    """Figures of local and global attention: table -> row -> column -> figure."""
    model = resolve(ModelConfig, arguments.model, flags_of(ModelConfig, arguments))
    windows = arguments.windows or [model.local_attention]
    for window in windows:
        dataclasses.replace(model, local_attention=window)  # refuses what no model may have
    from dist_bert.inference.trained_run import DTYPES
    from dist_bert.tools.benchmark.windows import compare_windows  # imports torch

    rows = compare_windows(
        model,
        arguments.lengths,
        windows,
        DTYPES[arguments.precision],
        rounds=arguments.rounds,
        report=say,
    )
    return {f"attention, {model.hidden_size:,} wide": rows}


def _training_inputs(
    arguments: argparse.Namespace,
) -> "tuple[ModelConfig, DeepSpeedConfig, SampleReader]":
    """The model that a benchmark trains, the settings of its engine, and its samples."""
    from dist_bert.data.reader import SampleReader
    from dist_bert.data.shard_format import Manifest
    from dist_bert.training.deepspeed_config import DeepSpeedConfig

    if not num_wanted_gpus():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # unnamed, DeepSpeed warns of it
    model = resolve(ModelConfig, arguments.model, flags_of(ModelConfig, arguments))
    sizes = {
        "train_batch_size": arguments.train_batch_size,
        "train_micro_batch_size_per_gpu": arguments.micro_batch_size,
    }
    given = {name: size for name, size in sizes.items() if size is not None}
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    deepspeed = DeepSpeedConfig.load(arguments.deepspeed_config, world_size, given)
    manifest = Manifest.load(arguments.shards)
    return model, deepspeed, SampleReader(arguments.shards, manifest, "train")


def say(text: str) -> None:
    """Prints on the first rank alone."""
    if is_first_rank():
        print(text, flush=True)


def _add_prepare_flags(command: argparse.ArgumentParser) -> None:
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


def _add_train_flags(command: argparse.ArgumentParser) -> None:
    _add_training_inputs(command)
    command.add_argument(
        "--against",
        nargs="*",
        choices=("compiled", "plain_torch", "transformers", "transformers_sorted"),
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


def _add_saves_flags(command: argparse.ArgumentParser) -> None:
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


def _add_optimizers_flags(command: argparse.ArgumentParser) -> None:
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


def _add_sources_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--shards", required=True, metavar="DIR", help="folder of prepared shards")
    command.add_argument(
        "--rounds", type=count, default=3, help="of which the best counts (default: 3)"
    )


def _add_attention_flags(command: argparse.ArgumentParser) -> None:
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
    """The flags of `_training_inputs`."""
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
    command.add_argument("--micro_batch_size", type=count, help="likewise, of one rank")
    add_flags(command, ModelConfig)
