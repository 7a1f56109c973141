"""Writes a pretrained or fine-tuned run as a folder that Hugging Face's transformers loads.

    python launch/export_model.py --checkpoint runs/pretrain --output_dir exports/my_bert
    python launch/export_model.py --checkpoint runs/finetune --output_dir exports/my_classifier

AutoTokenizer and AutoModel (or AutoModelForMaskedLM, AutoModelForSequenceClassification, ...) read
it without this package. It is loaded back and compared with the run before it appears.
"""

import argparse
import json
from pathlib import Path

from dist_bert.checkpoint.run_dir import (
    BEST_NAME,
    CONFIG_NAME,
    LATEST_NAME,
    require_weights,
    run_folder,
)
from dist_bert.common.cli import Parser, local_path, run
from dist_bert.common.settings import read_json


def main(arguments: argparse.Namespace) -> None:
    """Finds out what kind of run it is, and exports it."""
    if arguments.onnx == "true":
        from dist_bert.huggingface.onnx_model import check_onnx  # imports torch

        check_onnx()
    from dist_bert.finetuning.results import best_run  # imports numpy

    config = best_run(arguments.checkpoint) / CONFIG_NAME
    if config.exists() and "task" in read_json(config):
        _export_finetuned(arguments, config.parent)
    else:
        _export_pretrained(arguments)


def _export_pretrained(arguments: argparse.Namespace) -> None:
    pointer = BEST_NAME if arguments.best else LATEST_NAME
    checkpoint = require_weights(arguments.checkpoint, pointer)
    if arguments.dry_run:
        print(json.dumps({**vars(arguments), "checkpoint": checkpoint}, indent=2, default=str))
        return
    from dist_bert.huggingface.export_pretrained import export
    from dist_bert.huggingface.folder import check_new_folder
    from dist_bert.inference.trained_run import TrainedRun

    check_new_folder(arguments.output_dir)
    trained = TrainedRun.load(checkpoint)
    num_parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    print(f"exporting  {checkpoint}: {num_parameters / 1e6:.1f} M parameters", flush=True)
    export(trained, run_folder(arguments.checkpoint), arguments.output_dir, *_settings(arguments))
    print(
        f'{arguments.output_dir}: load it with AutoModel.from_pretrained("{arguments.output_dir}")'
    )


def _export_finetuned(arguments: argparse.Namespace, run_dir: Path) -> None:
    if arguments.dry_run:
        print(json.dumps({**vars(arguments), "checkpoint": run_dir}, indent=2, default=str))
        return
    from dist_bert.finetuning.predict import FineTunedModel
    from dist_bert.huggingface.folder import check_new_folder

    check_new_folder(arguments.output_dir)
    from dist_bert.huggingface.export_finetuned import (
        export_finetuned,  # imports transformers' tokenizers
    )

    model = FineTunedModel.load(run_dir)
    num_parameters = sum(parameter.numel() for parameter in model.head.parameters())
    print(f"exporting  {run_dir}: {num_parameters / 1e6:.1f} M parameters", flush=True)
    export_finetuned(model, arguments.output_dir, *_settings(arguments))
    print(f"{arguments.output_dir}: its README.md says how it is used")


def _settings(arguments: argparse.Namespace) -> tuple[str | None, bool, bool]:
    return arguments.sample_text, arguments.allow_differences == "true", arguments.onnx == "true"


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint",
        type=local_path,
        required=True,
        metavar="RUN_DIR",
        help="folder of a run, or RUN/checkpoints/step-N",
    )
    parser.add_argument(
        "--output_dir", type=local_path, required=True, metavar="DIR", help="is missing or empty"
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="export the checkpoint of the lowest validation loss, not the latest (of a fine-tuned"
        " run there is only the best)",
    )
    parser.add_argument(
        "--sample_text",
        metavar="FILE",
        help="texts, one a line, whose token ids are compared (default: those of the run's shards;"
        " of a fine-tuned run, beside its examples)",
    )
    parser.add_argument(
        "--allow_differences",
        choices=("true", "false"),
        default="false",
        help="export although some texts have other token ids in transformers (default: false)",
    )
    parser.add_argument(
        "--onnx",
        choices=("true", "false"),
        default="false",
        help="write model.onnx too, which runs without PyTorch (default: false)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be done and stop")
    run(main, parser.parse_args())
