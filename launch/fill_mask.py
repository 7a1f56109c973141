"""Answers [MASK] in texts with a run's latest checkpoint.

python launch/fill_mask.py --checkpoint runs/pretrain "The capital of France is [MASK]."
"""

import argparse
import dataclasses
import json

from dist_bert.cli import Parser, run
from dist_bert.run_dir import require_checkpoint


def main(arguments: argparse.Namespace) -> None:
    """Prints the answers, or one JSON object a text."""
    if arguments.dry_run:
        checkpoint = str(require_checkpoint(arguments.checkpoint))
        print(json.dumps({**vars(arguments), "checkpoint": checkpoint}, indent=2))
        return
    from dist_bert.fill_mask import fill_mask
    from dist_bert.inference import TrainedRun

    trained = TrainedRun.load(arguments.checkpoint)
    for text in arguments.text:
        masks = fill_mask(trained, text, arguments.top_k)
        if arguments.json:
            answers = [[dataclasses.asdict(answer) for answer in mask] for mask in masks]
            print(json.dumps({"text": text, "answers": answers}, ensure_ascii=False))
            continue
        print(text)
        for mask in masks:
            print("  " + "  ".join(f"{a.piece.lstrip('▁')} {a.probability:.1%}" for a in mask))


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("text", nargs="+", help="text with at least one [MASK]")
    parser.add_argument("--checkpoint", required=True, metavar="RUN_DIR", help="folder of a run")
    parser.add_argument("--top_k", type=int, default=5, help="answers per [MASK] (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object a text")
    parser.add_argument("--dry_run", action="store_true", help="print what would be answered")
    run(main, parser.parse_args())
