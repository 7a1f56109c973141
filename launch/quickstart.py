"""The main job in small, on real text of this machine: text, tokenizer, shards, training, answers.

The corpus is the documentation of the installed Python packages, so nothing is downloaded. The
quickstart ends within ten minutes: it measures a few steps and chooses the model and the number of
steps that this machine can do (`dist_bert/tools/quickstart/time_budget.py`). Training begins with
samples of 16 and 32 tokens, on which a small budget leaves the masked LM's first plateau, and
continues with 128: one run by a recipe, killed half-way and started again to show that it resumes.
Started by `make quickstart`; every step is a command of this repository, printed before it runs.
"""

import argparse

from dist_bert.common.cli import Parser, run


def main(arguments: argparse.Namespace) -> None:
    """Runs all steps and prints what came out."""
    from dist_bert.tools.quickstart.steps import run_all  # imports numpy

    run_all(arguments.setup_seconds)


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--setup_seconds", type=float, default=0.0, help="time that the set-up took, for the table"
    )
    run(main, parser.parse_args())
