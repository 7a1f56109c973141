"""Measures what this repository claims about speed, beside the alternatives, on this machine.

python launch/benchmark.py prepare --input 'text/**/*.txt' --json figures.json
"""

import argparse
import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from dist_bert.cli import Parser, run
from dist_bert.errors import UserError

_PREPARE = """Measures the preparation, then our reader of shards beside webdataset and np.memmap.

Preparation: text to shards on 1 and 2 ranks, SentencePiece alone on the same sentences, the stages,
the making of samples. Without --input, it reads the documentation of the installed Python packages,
where parsing the sources takes most of the time: give text for figures of text. Takes minutes, and
up to 2 GB in a temporary folder (TMPDIR names its place), which is removed.
"""
_UNRECORDED = ("measure", "debug", "dry_run", "json")  # arguments that are no settings


def main(arguments: argparse.Namespace) -> None:
    """Runs a benchmark, prints its tables and writes them as JSON where asked."""
    settings = {k: v for k, v in vars(arguments).items() if k not in _UNRECORDED}
    if arguments.dry_run:
        print(json.dumps(settings, indent=2))
        return
    if arguments.json and not Path(arguments.json).resolve().parent.is_dir():
        raise UserError(f"--json {arguments.json}: its folder does not exist; make it first")
    from dist_bert.figures import machine, table
    from dist_bert.files import write_json

    taken_on = machine()
    print("  ".join(f"{name} {value}" for name, value in taken_on.items()), flush=True)
    figures = arguments.measure(arguments)
    for name, rows in figures.items():
        print(f"\n{table(name, rows)}")
    if arguments.json:
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
        from dist_bert.loader_benchmark import compare_loaders

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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    parser = Parser(description=__doc__)
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
    command.add_argument("--json", metavar="FILE", help="also write the figures here")
    command.add_argument("--dry_run", action="store_true", help="print the settings and stop")
    arguments, unknown = parser.parse_known_args()
    if unknown:
        commands.choices[arguments.command].parse_args(unknown)  # names them, and the known ones
    run(main, arguments)
