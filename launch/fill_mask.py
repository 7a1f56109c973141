r"""Answers [MASK] in texts with a pretrained run.

    python launch/fill_mask.py --checkpoint runs/pretrain "The capital of France is [MASK]."
    python launch/fill_mask.py --checkpoint runs/pretrain --input texts.txt --json > answers.jsonl

A file (or - for standard input) holds one text a line; answers come in its order. With --picture,
texts with one [MASK] each are compared, e.g. the same beginning with different endings:

    python launch/fill_mask.py --checkpoint runs/pretrain --picture answers.png \\
        "He went to the [MASK] to borrow money." "He went to the [MASK] to catch fish."
"""

import argparse
import dataclasses
import json

from dist_bert.common.cli import Parser, check_output_file, run
from dist_bert.common.files import json_line
from dist_bert.common.settings import add_switch
from dist_bert.inference.run_flags import add_run_flags, chosen_weights
from dist_bert.tokenizer.config import bare_piece


def main(arguments: argparse.Namespace) -> None:
    """Prints the answers, or one JSON object a text; draws them side by side if asked to."""
    checkpoint = chosen_weights(arguments)
    if arguments.picture:
        from dist_bert.common.pictures import check_picture

        check_picture(arguments.picture, "--picture")
        check_output_file(arguments.picture, "--picture")
    if arguments.dry_run:
        print(json.dumps({**vars(arguments), "checkpoint": str(checkpoint)}, indent=2))
        return
    from dist_bert.inference.fill_mask import draw_comparison, fill_masks
    from dist_bert.inference.text_batches import given_texts
    from dist_bert.inference.trained_run import TrainedRun

    texts = given_texts(arguments.text, arguments.input)
    trained = TrainedRun.load(checkpoint, is_average=arguments.average)
    if arguments.picture:
        compared, found = draw_comparison(trained, texts, arguments.top_k, arguments.picture)
        if found and not arguments.json:
            print(found)
        texts = iter(compared)
    for text, masks in fill_masks(trained, texts, arguments.top_k):
        if arguments.json:
            answers = [[dataclasses.asdict(answer) for answer in mask] for mask in masks]
            print(json_line({"text": text.text, "answers": answers}), end="")
            continue
        print(text.text)
        for mask in masks:
            print("  " + "  ".join(f"{bare_piece(a.piece)} {a.probability:.1%}" for a in mask))


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("text", nargs="*", help="text with at least one [MASK]")
    parser.add_argument("--input", metavar="FILE", help="file of texts, one a line; - for stdin")
    add_run_flags(parser)
    parser.add_argument("--top_k", type=int, default=5, help="answers per [MASK] (default: 5)")
    add_switch(parser, "--json", "one JSON object a text")
    parser.add_argument(
        "--picture", metavar="FILE.png", help="draw the answers to the texts side by side"
    )
    add_switch(parser, "--dry_run", "print what would be answered")
    run(main, parser.parse_args())
