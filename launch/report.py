"""Writes one HTML file with the curves and figures of one or several runs, side by side.

python launch/report.py runs/pretrain runs/other --output report.html

It opens in any browser without a network. A run may still be training.
"""

import argparse
import json
from pathlib import Path

from dist_bert.common.cli import Parser, check_output_file, run
from dist_bert.common.settings import add_switch


def main(arguments: argparse.Namespace) -> None:
    """Reads the runs and writes the report."""
    check_output_file(arguments.output, "--output")
    if arguments.dry_run:
        print(json.dumps({"runs": arguments.run, "output": arguments.output}, indent=2))
        return
    from dist_bert.tools.report.page import write_report

    write_report(arguments.run, arguments.output)
    size = Path(arguments.output).stat().st_size
    print(f"{arguments.output}: {size / 1e6:.1f} MB, open it in a browser")


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("run", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--output", default="report.html", metavar="FILE", help="(default: %(default)s)"
    )
    add_switch(parser, "--dry_run", "print what would be read and stop")
    run(main, parser.parse_args())
