"""Answers [MASK] in texts with a pretrained run.

    python launch/fill_mask.py --checkpoint runs/pretrain "The capital of France is [MASK]."
    python launch/fill_mask.py --checkpoint runs/pretrain --input texts.txt --json > answers.jsonl

A file (or - for standard input) holds one text a line; answers come in its order.
"""

import argparse
import dataclasses
import json

from dist_bert.cli import Parser, run
from dist_bert.run_dir import BEST_NAME, LATEST_NAME, require_weights


def main(arguments: argparse.Namespace) -> None:
    """Prints the answers, or one JSON object a text."""
    pointer = BEST_NAME if arguments.best else LATEST_NAME
    checkpoint = require_weights(arguments.checkpoint, pointer)
    if arguments.dry_run:
        print(json.dumps({**vars(arguments), "checkpoint": str(checkpoint)}, indent=2))
        return
    from dist_bert.fill_mask import fill_masks
    from dist_bert.inference import TrainedRun
    from dist_bert.text_batches import given_texts

    texts = given_texts(arguments.text, arguments.input)
    trained = TrainedRun.load(checkpoint)
    for text, masks in fill_masks(trained, texts, arguments.top_k):
        if arguments.json:
            answers = [[dataclasses.asdict(answer) for answer in mask] for mask in masks]
            print(json.dumps({"text": text.text, "answers": answers}, ensure_ascii=False))
            continue
        print(text.text)
        for mask in masks:
            print("  " + "  ".join(f"{a.piece.lstrip('▁')} {a.probability:.1%}" for a in mask))


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("text", nargs="*", help="text with at least one [MASK]")
    parser.add_argument("--input", metavar="FILE", help="file of texts, one a line; - for stdin")
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN_DIR",
        help="folder of a run or model, or RUN/checkpoints/step-N",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="use the checkpoint of the lowest validation loss, not the latest",
    )
    parser.add_argument("--top_k", type=int, default=5, help="answers per [MASK] (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object a text")
    parser.add_argument("--dry_run", action="store_true", help="print what would be answered")
    run(main, parser.parse_args())
