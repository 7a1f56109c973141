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

from dist_bert.common.cli import check_output_file, is_first_rank
from dist_bert.common.device import num_wanted_gpus
from dist_bert.common.errors import UserError
from dist_bert.common.settings import AUTO, add_switch, flags_of, read_json, resolve
from dist_bert.model.config import ModelConfig
from dist_bert.tools.benchmark.flags import (
    USUAL_MICRO_BATCH,
    add_attention_flags,
    add_optimizers_flags,
    add_peers_flags,
    add_prepare_flags,
    add_saves_flags,
    add_sources_flags,
    add_train_flags,
)

if TYPE_CHECKING:
    from dist_bert.data.reader import SampleReader
    from dist_bert.training.deepspeed_config import DeepSpeedConfig

Figures = dict[str, Any]  # table -> row -> column -> figure
Measure = Callable[[argparse.Namespace], Figures]

_MICRO_BATCH = "train_micro_batch_size_per_gpu"  # of the DeepSpeed JSON

_PREPARE = """Measures the preparation, and our reader of shards against webdataset and np.memmap.

Preparation: text to shards on 1 and 2 ranks, SentencePiece alone on the same sentences, the stages,
the making of samples. Without --input, it reads the documentation of the installed Python packages,
where parsing the sources takes most of the time: give text for figures of text. Takes minutes, and
up to 2 GB in a temporary folder (TMPDIR names its place), which is removed.
"""
_TRAIN = """Measures optimizer steps on real batches, compared with the alternatives.

Ours, also with compiled layers, in 8 bits, with FlashAttention 3 or without DeepSpeed (plain_torch,
on one rank), and transformers' BertForPreTraining, or ModernBertForMaskedLM for a modern model,
padded as its samples come or sorted by length as ours are, take turns on one global batch, in the
precision and with the optimizer of the DeepSpeed JSON. Then: where the time of our step goes, and
how long training would wait for data at 10,000 samples a second and rank.
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
_PEERS = """Trains transformers' BertForPreTraining by its own Trainer for some minutes.

Or ModernBertForMaskedLM, for a modern model: held-out masked-LM loss against time, on the samples
and masks of a data set of ours, padded to the longest of the batch. Beside a run of ours of as many
minutes on the same cores, it says what the recipe, the unpadded model and the loop are worth
together, and --picture draws it. Warm-up of a tenth of the steps, then a linear decay; the rest is
the Trainer's default.
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
        ("prepare", "preparation and reader", _PREPARE, add_prepare_flags, measure_prepare),
        ("train", "training step and loader", _TRAIN, add_train_flags, measure_train),
        ("saves", "what checkpoints cost", _SAVES, add_saves_flags, measure_saves),
        (
            "optimizers",
            "the update's share",
            _OPTIMIZERS,
            add_optimizers_flags,
            measure_optimizers,
        ),
        ("sources", "shards elsewhere", _SOURCES, add_sources_flags, measure_sources),
        ("mixtures", "several data sets", _MIXTURES, add_sources_flags, measure_mixtures),
        ("peers", "transformers' own training", _PEERS, add_peers_flags, measure_peers),
        ("attention", "windows by length", _ATTENTION, add_attention_flags, measure_attention),
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
    for name, reason in (
        ("compiled", "layers are compiled on GPUs alone"),
        ("flash_attention_3", "is for GPUs alone"),
        ("float8", "is for GPUs alone"),
    ):
        if name in arguments.against and not num_wanted_gpus():
            raise UserError(f"--against {name}: {reason}; there is none")
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's profiler tells when it starts
    model, deepspeed, reader = training_inputs(arguments)
    for name, problems in (
        ("flash_attention_3", model.flash_attention_3_problems(deepspeed.precision)),
        ("float8", model.float8_problems(deepspeed.precision, deepspeed.zero_stage)),
    ):
        if name in arguments.against and problems:
            raise UserError(f"--against {name}: {'; '.join(problems)}")
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
    model, deepspeed, reader = training_inputs(arguments)
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
    model, deepspeed, reader = training_inputs(arguments)
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


def measure_peers(arguments: argparse.Namespace) -> Figures:
    """Figures of transformers' Trainer: table -> row -> column -> figure."""
    from dist_bert.common.pictures import MAX_LINES, check_picture
    from dist_bert.data.reader import SampleReader
    from dist_bert.data.shard_format import Manifest
    from dist_bert.tools.benchmark.loss_picture import draw_losses, earlier_curves, peer_curve
    from dist_bert.tools.benchmark.peers import train_peer  # imports torch

    if arguments.picture:
        check_picture(arguments.picture, "--picture")
        check_output_file(arguments.picture, "--picture")
    elif arguments.beside:
        raise UserError("--beside: what it names is drawn; give --picture, or leave it out")
    # Read now, to refuse what cannot be drawn, and again at the end: a run may go on meanwhile.
    if len(earlier_curves(arguments.beside)) >= MAX_LINES:
        raise UserError(f"--beside: a picture shows at most {MAX_LINES - 1} besides the new one")
    model = resolve(ModelConfig, arguments.model, flags_of(ModelConfig, arguments))
    manifest = Manifest.load(arguments.shards)
    training, held_out = (
        SampleReader(arguments.shards, manifest, split) for split in ("train", "validation")
    )
    rows = train_peer(
        model,
        training,
        held_out,
        minutes=arguments.minutes,
        learning_rate=arguments.lr,
        batch_size=arguments.batch_size,
        num_scored=arguments.max_samples,
        num_scores=arguments.scores,
        seed=arguments.seed,
        report=say,
    )
    kind = "ModernBertForMaskedLM" if model.architecture == "modern" else "BertForPreTraining"
    name = f"transformers' {kind}, lr {arguments.lr:g}"
    if arguments.picture and is_first_rank():
        curves = [*earlier_curves(arguments.beside), peer_curve(name, rows)]
        draw_losses(arguments.picture, curves)
        say(f"loss against time: {arguments.picture}")
    return {name: rows}


def training_inputs(
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
        _MICRO_BATCH: arguments.micro_batch_size,
    }
    given = {name: size for name, size in sizes.items() if size is not None}
    if read_json(arguments.deepspeed_config).get(_MICRO_BATCH) == AUTO:
        given.setdefault(_MICRO_BATCH, USUAL_MICRO_BATCH)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    deepspeed = DeepSpeedConfig.load(arguments.deepspeed_config, world_size, given)
    manifest = Manifest.load(arguments.shards)
    return model, deepspeed, SampleReader(arguments.shards, manifest, "train")


def say(text: str) -> None:
    """Prints on the first rank alone."""
    if is_first_rank():
        print(text, flush=True)
