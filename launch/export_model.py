"""Writes a pretrained or fine-tuned run as a folder that Hugging Face's transformers loads.

    python launch/export_model.py --checkpoint runs/pretrain --output_dir exports/my_bert
    python launch/export_model.py --checkpoint runs/finetune --output_dir exports/my_classifier

AutoTokenizer and AutoModel (or AutoModelForMaskedLM, AutoModelForSequenceClassification, ...) read
it without this package. It is loaded back and compared with the run before it appears.
"""

import argparse
import json

from dist_bert.common.cli import Parser, local_path, run
from dist_bert.common.settings import add_flags, add_switch, flags_of, resolve
from dist_bert.huggingface.config import ExportConfig


def main(arguments: argparse.Namespace) -> None:
    """Finds out what kind of run it is, and exports it."""
    config = resolve(ExportConfig, None, flags_of(ExportConfig, arguments))
    if config.onnx:
        from dist_bert.huggingface.onnx_model import check_onnx  # imports torch

        check_onnx()
    from dist_bert.huggingface.export_run import (  # imports numpy
        export_finetuned,
        export_pretrained,
        find_run,
    )

    found, is_finetuned = find_run(arguments.checkpoint, config.best, config.average)
    config.check(is_finetuned)
    if arguments.dry_run:
        settings = {**vars(arguments), **vars(config), "checkpoint": found}
        print(json.dumps(settings, indent=2, default=str))
        return
    if is_finetuned:
        use = export_finetuned(found, arguments.output_dir, config)
    else:
        use = export_pretrained(arguments.checkpoint, found, arguments.output_dir, config)
    print(f"{arguments.output_dir}: {use}")


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
    add_switch(parser, "--dry_run", "print what would be done and stop")
    add_flags(parser, ExportConfig)
    run(main, parser.parse_args())
