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
import itertools
import json
from typing import TYPE_CHECKING

from dist_bert.checkpoint.run_dir import BEST_NAME, LATEST_NAME, require_weights
from dist_bert.common.cli import Parser, run
from dist_bert.common.errors import UserError
from dist_bert.common.files import json_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dist_bert.inference.fill_mask import Comparison
    from dist_bert.inference.text_batches import Text
    from dist_bert.inference.trained_run import TrainedRun


def main(arguments: argparse.Namespace) -> None:
    """Prints the answers, or one JSON object a text; draws them side by side if asked to."""
    pointer = BEST_NAME if arguments.best else LATEST_NAME
    checkpoint = require_weights(arguments.checkpoint, pointer)
    if arguments.picture:
        from dist_bert.common.pictures import check_picture

        check_picture(arguments.picture, "--picture")
    if arguments.dry_run:
        print(json.dumps({**vars(arguments), "checkpoint": str(checkpoint)}, indent=2))
        return
    from dist_bert.inference.fill_mask import fill_masks
    from dist_bert.inference.text_batches import given_texts
    from dist_bert.inference.trained_run import TrainedRun

    texts = given_texts(arguments.text, arguments.input)
    trained = TrainedRun.load(checkpoint)
    if arguments.picture:
        texts = iter(show_comparison(trained, texts, arguments))
    for text, masks in fill_masks(trained, texts, arguments.top_k):
        if arguments.json:
            answers = [[dataclasses.asdict(answer) for answer in mask] for mask in masks]
            print(json_line({"text": text.text, "answers": answers}), end="")
            continue
        print(text.text)
        for mask in masks:
            print("  " + "  ".join(f"{a.piece.lstrip('▁')} {a.probability:.1%}" for a in mask))


def show_comparison(
    trained: "TrainedRun", texts: "Iterable[Text]", arguments: argparse.Namespace
) -> "list[Text]":
    """Draws the answers to the texts and tells how much they differ; returns the texts.

    Raises:
        UserError: there are too many texts for a picture, or one with several [MASK].
    """
    from dist_bert.common.pictures import MAX_ROWS
    from dist_bert.inference.fill_mask import compare_texts

    compared = list(itertools.islice(texts, MAX_ROWS + 1))
    if len(compared) > MAX_ROWS:
        raise UserError(f"--picture: compares at most {MAX_ROWS} texts; give fewer")
    comparison = compare_texts(trained, compared, arguments.top_k)
    draw(arguments.picture, comparison, compared)
    if comparison.has_same_left_context and len(compared) > 1 and not arguments.json:
        print(
            f"the {len(compared)} texts are the same up to [MASK]: a model that reads from left to"
            " right would answer them alike; here the answers differ by up to"
            f" {comparison.distances.max():.1%} (total variation distance)"
        )
    return compared


def draw(path: str, comparison: "Comparison", texts: "Sequence[Text]") -> None:
    """A row for each text, a column for each piece."""
    from dist_bert.common.pictures import Panel, shortened, write_tables

    labels = []
    for text in texts:
        before, mask, _ = text.text.partition("[MASK]")
        labels.append(shortened(text.text, len(before), len(before + mask)))
    pieces = [piece.lstrip("▁") or "▁" for piece in comparison.pieces]
    write_tables(
        path,
        "probabilities of the likeliest answers to [MASK]",
        labels,
        [Panel("", comparison.probabilities, pieces)],
        low=0.0,
        high=float(comparison.probabilities.max()),
        bar_label="probability",
        form=".1%",
    )


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
    parser.add_argument(
        "--picture", metavar="FILE.png", help="draw the answers to the texts side by side"
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be answered")
    run(main, parser.parse_args())
