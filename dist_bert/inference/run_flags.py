"""The flags that name a trained run, for every script that uses one; torch is not imported."""

import argparse
from pathlib import Path

from dist_bert.checkpoint.run_dir import (
    BEST_NAME,
    LATEST_NAME,
    require_average,
    require_weights,
)
from dist_bert.common.settings import add_switch


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--checkpoint`, `--best` and `--average`."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN_DIR",
        help="folder of a run or model, or RUN/checkpoints/step-N",
    )
    add_switch(parser, "--best", "use the checkpoint of the lowest validation loss, not the latest")
    add_average_flag(parser)


def add_average_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--average`."""
    add_switch(parser, "--average", "use the average of the weights, of a run with average_decay")


def chosen_weights(arguments: argparse.Namespace) -> Path:
    """The checkpoint, or file of weights, that the flags choose.

    Raises:
        UserError: there is none, or it has no average where that is asked for.
    """
    weights = require_weights(arguments.checkpoint, BEST_NAME if arguments.best else LATEST_NAME)
    if arguments.average:
        require_average(weights)
    return weights
