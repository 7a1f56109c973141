"""Measures what this repository claims about speed, beside the alternatives, on this machine.

python launch/benchmark.py prepare --input 'text/**/*.txt' --json figures.json
deepspeed launch/benchmark.py train --shards data/shards --json figures.json
deepspeed launch/benchmark.py saves --shards data/shards --json figures.json
python launch/benchmark.py sources --shards data/shards --json figures.json
"""

import argparse
import functools
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_bert.common.cli import Parser, is_first_rank, run_rank
from dist_bert.common.errors import UserError
from dist_bert.common.settings import add_flags, flags_of, resolve
from dist_bert.model.config import ModelConfig

if TYPE_CHECKING:
    from dist_bert.data.reader import SampleReader
    from dist_bert.training.deepspeed_config import DeepSpeedConfig

_PREPARE = """Measures the preparation, then our reader of shards beside webdataset and np.memmap.

Preparation: text to shards on 1 and 2 ranks, SentencePiece alone on the same sentences, the stages,
the making of samples. Without --input, it reads the documentation of the installed Python packages,
where parsing the sources takes most of the time: give text for figures of text. Takes minutes, and
up to 2 GB in a temporary folder (TMPDIR names its place), which is removed.
"""
_TRAIN = """Measures optimizer steps on real batches, beside what one would take instead.

Ours, also with compiled layers or without DeepSpeed (plain_torch, on one rank), and transformers'
BertForPreTraining, padded as its samples come or sorted by length as ours are, take turns on one
global batch, in the precision and with the optimizer of the DeepSpeed JSON. Then: where the time of
our step goes, and how long training would wait for data at 10,000 samples a second and rank.
"""
_SAVES = """Measures what a checkpoint costs training, beside steps without one.

In turns: steps alone, steps of which the first is saved and its writing waited for, and the same
with the writing beside training, as training does it. How long the loop stands still at a save, in
seconds and steps, and what a save costs in all. Checkpoints of 12 bytes a parameter are written to
a temporary folder in --folder, which is removed.
"""
_SOURCES = """Measures training's data path on shards that lie elsewhere.

On one rank, an epoch of micro-batches (at most 200,000 samples) from the folder, through an empty
and a full cache, and from an HTTP server on this machine: at full speed, and how long a training
would wait at 10,000 samples a second. Needs room for the data set in a temporary folder (TMPDIR
names its place).
"""
_LOADER_RATE = 10_000.0  # samples a second of one rank
# Arguments that are no settings.
_UNRECORDED = ("measure", "debug", "dry_run", "json", "local_rank")


def main(arguments: argparse.Namespace) -> None:
    """Runs a benchmark, prints its tables and writes them as JSON where asked."""
    settings = {k: v for k, v in vars(arguments).items() if k not in _UNRECORDED}
    if arguments.dry_run:
        print(json.dumps(settings, indent=2))
        return
    if arguments.json and not Path(arguments.json).resolve().parent.is_dir():
        raise UserError(f"--json {arguments.json}: its folder does not exist; make it first")
    from dist_bert.common.files import write_json
    from dist_bert.common.machine import machine
    from dist_bert.common.text_tables import table

    taken_on = machine()
    _say("  ".join(f"{name} {value}" for name, value in taken_on.items()))
    figures = arguments.measure(arguments)
    for name, rows in figures.items():
        _say(f"\n{table(name, rows)}")
    if arguments.json and is_first_rank():
        write_json(arguments.json, {"machine": taken_on, "settings": settings, "figures": figures})


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of the preparation and of the reader: table -> row -> column -> figure."""
    from data_prep import benchmark

    start = time.monotonic()

    def report(*texts: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s ", *texts, flush=True)

    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        if arguments.tokenizer:
            tokenizer = Path(arguments.tokenizer)
        else:
            report("training a tokenizer")
            tokenizer = benchmark.train_tokenizer(arguments.input, folder / "tokenizer")
        figures: dict[str, Any] = benchmark.measure_preparation(
            arguments.input,
            tokenizer,
            folder,
            sequence_length=arguments.sequence_length,
            rounds=arguments.rounds,
            report=report,
        )
        # Not before: it imports torch, and the memory of what is launched is measured from the
        # size of this process.
        from dist_bert.tools.benchmark.loader import compare_loaders

        for length in benchmark.SAMPLE_LENGTHS:
            figures[f"loader_{length}"] = compare_loaders(
                benchmark.shards_folder(folder, length),
                folder,
                num_samples=arguments.loader_samples,
                rounds=arguments.rounds,
                report=functools.partial(report, f"loaders at length {length}:"),
            )
    print(
        f"\nbest of {arguments.rounds} rounds, of the stages the mean; seconds and rates are of the"
        " CPU time of all processes, unless they are of the wall; 1 MB is 1,000,000 bytes"
    )
    return figures


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of training: table -> row -> column -> figure."""
    from dist_bert.data.shard_format import TOKENIZER_NAME, Manifest
    from dist_bert.tokenizer.tokenizer import Tokenizer

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if "plain_torch" in arguments.against and world_size > 1:
        raise UserError("--against plain_torch: compares one rank; leave it out with several")
    if "compiled" in arguments.against and not _has_gpu():
        raise UserError("--against compiled: layers are compiled on GPUs alone; there is none")
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's profiler tells when it starts
    model, deepspeed, reader = _work(arguments)
    manifest = Manifest.load(arguments.shards)
    tokenizer = Tokenizer(Path(arguments.shards) / TOKENIZER_NAME)
    vocabulary = tokenizer.masking_vocabulary(
        manifest.config["whole_words"], manifest.config["mean_span_length"]
    )
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
            report=_say,
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


def saves(arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of checkpoints: table -> row -> column -> figure."""
    if arguments.folder and not Path(arguments.folder).is_dir():
        raise UserError(f"--folder {arguments.folder}: does not exist; make it first")
    model, deepspeed, reader = _work(arguments)
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
            report=_say,
        )
    finally:
        leave_distributed()
    return {f"saves of {arguments.steps} steps": rows}


def sources(arguments: argparse.Namespace) -> dict[str, Any]:
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
            report=_say,
        )
    return {f"{len(records)} shards, {num_bytes / 1e6:.1f} MB": rows}


def _work(arguments: argparse.Namespace) -> "tuple[ModelConfig, DeepSpeedConfig, SampleReader]":
    """What a training benchmark trains: the model, how, and its samples."""
    from dist_bert.data.reader import SampleReader
    from dist_bert.data.shard_format import Manifest
    from dist_bert.training.deepspeed_config import DeepSpeedConfig

    if not _has_gpu():
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


def _has_gpu() -> bool:
    return bool(list(Path("/dev").glob("nvidia[0-9]*")))


def _say(text: str) -> None:
    if is_first_rank():
        print(text, flush=True)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 1")
    return int(text)


def _add_work(command: argparse.ArgumentParser) -> None:
    """The flags of `_work`."""
    command.add_argument("--shards", required=True, metavar="DIR", help="folder of prepared shards")
    command.add_argument(
        "--deepspeed_config",
        default="configs/zero1.json",
        help="DeepSpeed JSON (default: %(default)s)",
    )
    command.add_argument("--model", metavar="FILE", help="model JSON (default: BERT-base)")
    command.add_argument(
        "--train_batch_size", type=_count, help="instead of the DeepSpeed JSON's, over all ranks"
    )
    command.add_argument("--micro_batch_size", type=_count, help="likewise, of one rank")
    add_flags(command, ModelConfig)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", metavar="FILE", help="also write the figures here")
    command.add_argument("--dry_run", action="store_true", help="print the settings and stop")


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the launcher passes it, first
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = commands.add_parser("prepare", description=_PREPARE, help="preparation and reader")
    command.set_defaults(measure=prepare)
    command.add_argument(
        "--input", nargs="+", metavar="GLOB", default=[], help="text files; ** for any depth"
    )
    command.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="from train_tokenizer.py (default: one of 8,192 pieces is made from the text)",
    )
    command.add_argument(
        "--sequence_length", type=_count, default=128, help="for text to shards (default: 128)"
    )
    command.add_argument(
        "--rounds", type=_count, default=3, help="of which the best counts (default: 3)"
    )
    command.add_argument(
        "--loader_samples",
        type=_count,
        default=32_768,
        help="samples that the readers are compared on, by whole shards (default: 32768)",
    )
    _add_common(command)
    command = commands.add_parser("train", description=_TRAIN, help="training step and loader")
    command.set_defaults(measure=train)
    _add_work(command)
    command.add_argument(
        "--against",
        nargs="*",
        choices=("compiled", "plain_torch", "transformers", "transformers_sorted"),
        default=["transformers", "transformers_sorted"],
        help="what ours is compared with (default: both of transformers)",
    )
    command.add_argument(
        "--rounds", type=_count, default=3, help="of which the median counts (default: 3)"
    )
    command.add_argument(
        "--matmul_roofline",
        action="store_true",
        help="measure the largest rate of matrix products on this device, and compare with it",
    )
    _add_common(command)
    command = commands.add_parser("saves", description=_SAVES, help="checkpoints beside training")
    command.set_defaults(measure=saves)
    _add_work(command)
    command.add_argument(
        "--steps", type=_count, default=10, help="of a turn: longer than a save (default: 10)"
    )
    command.add_argument(
        "--rounds", type=_count, default=3, help="of which the median counts (default: 3)"
    )
    command.add_argument(
        "--folder", metavar="DIR", help="on the disk that is measured (default: TMPDIR's)"
    )
    _add_common(command)
    command = commands.add_parser("sources", description=_SOURCES, help="shards elsewhere")
    command.set_defaults(measure=sources)
    command.add_argument("--shards", required=True, metavar="DIR", help="folder of prepared shards")
    command.add_argument(
        "--rounds", type=_count, default=3, help="of which the best counts (default: 3)"
    )
    _add_common(command)
    arguments, unknown = parser.parse_known_args()
    if unknown:
        commands.choices[arguments.command].parse_args(unknown)  # names them, and the known ones
    run_rank(main, arguments)
