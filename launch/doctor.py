"""Looks at this machine: versions, devices, limits, MPI, gloo; says what would not work, and why.

    python launch/doctor.py
    python launch/doctor.py --recipe configs/recipes/bert.json

The second line also asks whether the recipe's data sets are here and fit together, and compares the
memory of its phases and its checkpoints with what this machine has.

Exit code 0: preparing, training and resuming work, if perhaps with warnings. 1: they do not.
"""

import argparse
import dataclasses
import json

from dist_bert.common.cli import Parser, check_output_file, run
from dist_bert.common.errors import UserError
from dist_bert.common.settings import add_switch

RECIPE_FLAGS = {
    "recipe": "also look at what this run of several phases needs",
    "model": "its model JSON (default: bert_base's values)",
    "deepspeed_config": "its DeepSpeed JSON (default: configs/zero2.json)",
}


def main(arguments: argparse.Namespace) -> int:
    """Examines the machine, prints what was found and writes it as JSON where asked."""
    check_output_file(arguments.json, "--json")
    if arguments.dry_run:
        print(json.dumps(vars(arguments), indent=2))
        return 0
    from dist_bert.common.files import write_json
    from dist_bert.tools.doctor.doctor import examine
    from dist_bert.tools.doctor.findings import report, works

    flags = {name: getattr(arguments, name) for name in RECIPE_FLAGS if getattr(arguments, name)}
    if flags and not arguments.recipe:
        raise UserError(f"--{next(iter(flags))}: needs --recipe, whose run it belongs to")
    given = [word for name, value in flags.items() for word in (f"--{name}", value)]
    findings = examine(arguments.output_dir, given)
    print(report(findings))
    if arguments.json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        write_json(arguments.json, {"works": works(findings), "findings": rows})
    return 0 if works(findings) else 1


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output_dir",
        default="runs/pretrain",
        metavar="DIR",
        help="where runs will be written (default: %(default)s)",
    )
    for name, help_text in RECIPE_FLAGS.items():
        parser.add_argument(f"--{name}", metavar="FILE", help=help_text)
    parser.add_argument("--json", metavar="FILE", help="also write the findings here")
    add_switch(parser, "--dry_run", "print the settings and stop")
    run(main, parser.parse_args())
