"""Measures what this repository claims about speed, beside the alternatives, on this machine.

python launch/benchmark.py prepare --input 'text/**/*.txt' --json figures.json
deepspeed launch/benchmark.py train --shards data/shards --json figures.json
deepspeed launch/benchmark.py saves|optimizers --shards data/shards --json figures.json
python launch/benchmark.py sources|mixtures --shards data/shards --json figures.json
python launch/benchmark.py peers --shards data/shards --minutes 20 --json figures.json
python launch/benchmark.py attention --model configs/model/modern_base.json --json figures.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from dist_bert.common.cli import Parser, check_output_file, is_first_rank, run_rank
from dist_bert.tools.benchmark.modes import add_modes, say

# Arguments that are no settings.
_UNRECORDED = ("measure", "debug", "dry_run", "json", "local_rank")


def main(arguments: argparse.Namespace) -> None:
    """Runs a benchmark, prints its tables and writes them as JSON where asked."""
    settings = {k: v for k, v in vars(arguments).items() if k not in _UNRECORDED}
    if arguments.dry_run:
        print(json.dumps(settings, indent=2))
        return
    check_output_file(arguments.json, "--json")
    from dist_bert.common.files import write_json
    from dist_bert.common.machine import machine
    from dist_bert.common.text_tables import table

    taken_on = machine()
    say("  ".join(f"{name} {value}" for name, value in taken_on.items()))
    figures = arguments.measure(arguments)
    for name, rows in figures.items():
        say(f"\n{table(name, rows)}")
    if arguments.json and is_first_rank():
        write_json(arguments.json, {"machine": taken_on, "settings": settings, "figures": figures})


def measure_prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of the preparation and of the reader: table -> row -> column -> figure."""
    from data_prep.benchmark import measure_all

    def compare_loaders(shards: Path, folder: Path, **settings: Any) -> dict[str, Any]:
        # Not before: it imports torch, and the memory of what is launched is measured from the
        # size of this process.
        from dist_bert.tools.benchmark import loader

        num_samples, rounds = arguments.loader_samples, arguments.rounds
        return loader.compare_loaders(
            shards, folder, num_samples=num_samples, rounds=rounds, **settings
        )

    return measure_all(
        arguments.input,
        arguments.tokenizer,
        sequence_length=arguments.sequence_length,
        rounds=arguments.rounds,
        compare_loaders=compare_loaders,
    )


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the launcher passes it, first
    add_modes(parser, measure_prepare)
    run_rank(main, parser.parse_args())
