"""Scores plain baselines on a labelled set: what a fine-tuned model has to beat.

    python launch/baselines.py --task sentence_classification --train train.csv --eval dev.csv

Beside each other: for classification the commonest label, and a linear model on TF-IDF features;
for regression the mean, such a model, and for pairs the cosine of both texts' features;
for tags of words O everywhere, and each word's commonest tag; for questions the first words of the
context, the sentence nearest to the question, and that there is no answer, where that may be.
"""

import argparse
import json

from dist_bert.common.cli import Parser, check_output_file, positive, run
from dist_bert.common.settings import add_flags, add_switch, flags_of, resolve
from dist_bert.finetuning.examples import TASKS
from dist_bert.finetuning.readers.read_config import ReadConfig


def main(arguments: argparse.Namespace) -> None:
    """Reads the set, scores the baselines, prints a table and writes all scores where asked."""
    read = resolve(ReadConfig, None, flags_of(ReadConfig, arguments))
    if arguments.dry_run:
        settings = {name: value for name, value in vars(arguments).items() if value is not None}
        print(json.dumps({**settings, **vars(read)}, indent=2, ensure_ascii=False))
        return
    check_output_file(arguments.json, "--json")
    from dist_bert.common.files import write_json
    from dist_bert.finetuning.compare_baselines import compare_baselines

    figures = compare_baselines(
        arguments.task, arguments.train, arguments.eval, read, arguments.eval_share, arguments.seed
    )
    if arguments.json:
        write_json(arguments.json, figures)


def _inner_share(text: str) -> float:
    if (value := positive(text)) >= 1.0:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0 and below 1")
    return value


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("--task", required=True, choices=TASKS, help="what is asked")
    parser.add_argument("--train", required=True, metavar="FILE", help="labelled examples")
    parser.add_argument("--eval", metavar="FILE", help="labelled examples to score")
    parser.add_argument(
        "--eval_share",
        type=_inner_share,
        default=0.1,
        help="share of the training examples that is kept apart where --eval is not given"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=42, help="of the choice of these (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write all scores, by class too, here")
    add_switch(parser, "--dry_run", "print the settings and stop")
    add_flags(parser, ReadConfig)
    run(main, parser.parse_args())
