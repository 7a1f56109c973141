"""Writes the weights of a run as one safetensors file, in float32 whatever they were trained in.

    python launch/save_weights.py --checkpoint runs/pretrain --output weights.safetensors

A run that has ended has them in OUTPUT_DIR/model.safetensors already.
"""

import argparse
import json

from dist_bert.checkpoint.run_dir import BEST_NAME, LATEST_NAME, require_checkpoint
from dist_bert.common.cli import Parser, local_path, run
from dist_bert.common.settings import add_switch
from dist_bert.inference.run_flags import add_average_flag


def main(arguments: argparse.Namespace) -> None:
    """Finds the checkpoint and writes its weights."""
    pointer = BEST_NAME if arguments.best else LATEST_NAME
    checkpoint = require_checkpoint(arguments.checkpoint, pointer)
    if arguments.dry_run:
        print(json.dumps({"checkpoint": str(checkpoint), "output": str(arguments.output)}))
        return
    from dist_bert.checkpoint.format import export_weights

    export_weights(checkpoint, arguments.output, arguments.average)
    kind = "average of the weights" if arguments.average else "weights"
    print(f"{arguments.output}: the {kind} of {checkpoint.name}")


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint",
        type=local_path,
        required=True,
        metavar="RUN",
        help="folder of the run, or RUN/checkpoints/step-N",
    )
    parser.add_argument(
        "--output", type=local_path, required=True, metavar="FILE", help="is replaced"
    )
    add_switch(parser, "--best", "the checkpoint of the lowest validation loss")
    add_average_flag(parser)
    add_switch(parser, "--dry_run", "print what would be done and stop")
    run(main, parser.parse_args())
