"""Writes a pretrained run as a folder that Hugging Face's transformers loads.

    python launch/export_model.py --checkpoint runs/pretrain --output_dir exports/my_bert

AutoTokenizer and AutoModel (or AutoModelForMaskedLM, AutoModelForPreTraining) read it without this
package. It is loaded back and compared with the run before it appears.
"""

import argparse
import json
from pathlib import Path

from dist_bert.cli import Parser, run
from dist_bert.run_dir import BEST_NAME, LATEST_NAME, require_weights
from dist_bert.weight_source import WeightSource


def main(arguments: argparse.Namespace) -> None:
    """Finds the checkpoint, checks that it can be exported, and exports it."""
    pointer = BEST_NAME if arguments.best else LATEST_NAME
    checkpoint = require_weights(arguments.checkpoint, pointer)
    if arguments.dry_run:
        print(json.dumps({**vars(arguments), "checkpoint": checkpoint}, indent=2, default=str))
        return
    from dist_bert.export import check_export, export
    from dist_bert.inference import TrainedRun

    source = WeightSource.find(arguments.checkpoint, "--checkpoint")
    check_export(source.model, arguments.output_dir)
    trained = TrainedRun.load(arguments.checkpoint, pointer)
    num_parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    print(f"exporting  {checkpoint}: {num_parameters / 1e6:.1f} M parameters", flush=True)
    allow_differences = arguments.allow_differences == "true"
    export(
        trained,
        arguments.checkpoint,
        arguments.output_dir,
        arguments.sample_text,
        allow_differences,
    )
    print(
        f'{arguments.output_dir}: load it with AutoModel.from_pretrained("{arguments.output_dir}")'
    )


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="RUN_DIR", help="folder of a run"
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, metavar="DIR", help="is missing or empty"
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="export the checkpoint of the lowest validation loss, not the latest",
    )
    parser.add_argument(
        "--sample_text",
        metavar="FILE",
        help="texts, one a line, whose token ids are compared (default: those of the run's shards)",
    )
    parser.add_argument(
        "--allow_differences",
        choices=("true", "false"),
        default="false",
        help="export although some texts have other token ids in transformers (default: false)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be done and stop")
    run(main, parser.parse_args())
