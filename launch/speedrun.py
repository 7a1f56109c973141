"""How long this machine takes to a fixed masked-LM loss: a track's entry, once for each seed.

    python launch/speedrun.py --track configs/speedrun/docs.json --class two_cores

prepares text, tokenizer and shards first, which the clock does not count. A change to the recipe
is a record if the mean of at least three seeds reaches the target sooner: `--json` writes it,
`--records` prints the table of all of them.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from dist_bert.common.cli import Parser, check_output_file, local_path, run
from dist_bert.common.settings import add_switch
from dist_bert.tools.speedrun.track import CLASSES, Track

ENTRY = {
    "recipe": "its phases; data sets are named data/shards_N",
    "model": "its model JSON",
    "deepspeed_config": "its DeepSpeed JSON, with the peak learning rate",
}


def main(arguments: argparse.Namespace) -> None:
    """Prints the table of the records, or runs an entry and writes its record where asked."""
    from dist_bert.tools.speedrun.record import Record, table

    if arguments.records:
        print(table(Record.read_all(Path("records"))))
        return
    given = {name: getattr(arguments, name) for name in ENTRY if getattr(arguments, name)}
    track = dataclasses.replace(Track.read(arguments.track), **given)
    if arguments.dry_run:
        print(json.dumps({**vars(arguments), **vars(track)}, indent=2, default=str))
        return
    check_output_file(arguments.json, "--json")
    from dist_bert.common.files import write_json
    from dist_bert.tools.speedrun.run import run as run_entry

    record = run_entry(track, arguments.machine_class, arguments.seeds, arguments.change)
    if arguments.json:
        write_json(arguments.json, record.figures())


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    default = "configs/speedrun/docs.json"
    track_help = f"text, target and the entry to beat (default: {default})"
    parser.add_argument(
        "--track", type=local_path, default=Path(default), metavar="FILE", help=track_help
    )
    for name, help_text in ENTRY.items():
        parser.add_argument(f"--{name}", metavar="FILE", help=f"{help_text} (default: the track's)")
    parser.add_argument(
        "--class", dest="machine_class", choices=CLASSES, default="two_cores", help="the machine"
    )
    seeds_help = "trainings, one for each (default: 1 2 3)"
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help=seeds_help)
    parser.add_argument("--change", default="", help="what is new, in a line of the record")
    parser.add_argument("--json", metavar="FILE", help="gets the record, in records/")
    add_switch(parser, "--records", "print the table of all records and stop")
    add_switch(parser, "--dry_run", "print the resolved entry and stop")
    run(main, parser.parse_args())
