"""Looks at this machine: versions, devices, limits, MPI, gloo; says what would not work, and why.

python launch/doctor.py

Exit code 0: preparing, training and resuming work, if perhaps with warnings. 1: they do not.
"""

import argparse
import dataclasses
import json

from dist_bert.common.cli import Parser, check_output_file, run
from dist_bert.common.settings import add_switch


def main(arguments: argparse.Namespace) -> int:
    """Examines the machine, prints what was found and writes it as JSON where asked."""
    check_output_file(arguments.json, "--json")
    if arguments.dry_run:
        print(json.dumps({"output_dir": arguments.output_dir, "json": arguments.json}, indent=2))
        return 0
    from dist_bert.common.files import write_json
    from dist_bert.tools.doctor.doctor import examine, report, works

    findings = examine(arguments.output_dir)
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
    parser.add_argument("--json", metavar="FILE", help="also write the findings here")
    add_switch(parser, "--dry_run", "print the settings and stop")
    run(main, parser.parse_args())
