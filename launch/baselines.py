"""Scores plain baselines on a labelled set: what a fine-tuned model has to beat.

    python launch/baselines.py --task sentence_classification --train train.csv --eval dev.csv

Beside each other: for classification the commonest label, and a linear model on TF-IDF features;
for regression the mean, such a model, and for pairs the cosine of both texts' features;
for tags of words O everywhere, and each word's commonest tag; for questions the first words of the
context, the sentence nearest to the question, and that there is no answer, where that may be.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from dist_bert.common.cli import Parser, run
from dist_bert.common.errors import UserError
from dist_bert.common.settings import add_flags, flags_of, resolve
from dist_bert.finetuning.examples import TASKS, Example
from dist_bert.finetuning.readers.read_config import ReadConfig


def main(arguments: argparse.Namespace) -> None:
    """Reads the set, scores the baselines, prints a table and writes all scores where asked."""
    read = resolve(ReadConfig, None, flags_of(ReadConfig, arguments))
    if arguments.dry_run:
        settings = {name: value for name, value in vars(arguments).items() if value is not None}
        print(json.dumps({**settings, **vars(read)}, indent=2, ensure_ascii=False))
        return
    if arguments.json and not Path(arguments.json).resolve().parent.is_dir():
        raise UserError(f"--json {arguments.json}: its folder does not exist; make it first")
    from dist_bert.common.files import write_json
    from dist_bert.common.text_tables import aligned
    from dist_bert.finetuning.readers import read_examples
    from dist_bert.finetuning.splitting import split_examples

    labelled = read_examples(arguments.task, arguments.train, read)
    training: Sequence[Example] = labelled.examples
    tell(arguments.train, labelled.summary())
    if arguments.eval:
        other = read_examples(arguments.task, arguments.eval, read)
        tell(arguments.eval, other.summary())
        held_out: Sequence[Example] = other.examples
    else:
        training, held_out = split_examples(training, arguments.eval_share, arguments.seed)
        print(f"{len(held_out):,} of them are kept apart to score, {len(training):,} learnt from")
    from dist_bert.finetuning.baselines import score_baselines  # a second, so behind all mistakes

    results = score_baselines(arguments.task, training, held_out, labelled.label_names)
    names = list(next(iter(results.values()))[0].values)
    rows = [["", *results]]
    rows += [
        [name, *(f"{scores.values[name]:.4f}" for scores, _ in results.values())] for name in names
    ]
    rows.append(["seconds", *(f"{seconds:.1f}" for _, seconds in results.values())])
    print(f"\n{aligned(rows)}")
    if arguments.json:
        figures = {
            name: {**scores.figures(), "seconds": seconds}
            for name, (scores, seconds) in results.items()
        }
        write_json(
            arguments.json,
            {
                "task": arguments.task,
                "num_training_examples": len(training),
                "num_held_out_examples": len(held_out),
                "baselines": figures,
            },
        )


def tell(path: str, lines: list[str]) -> None:
    """Says what was read."""
    first, *others = lines
    print(f"{path}: {first}", *(f"  {line}" for line in others), sep="\n")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0 and below 1")
    return value


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("--task", required=True, choices=TASKS, help="what is asked")
    parser.add_argument("--train", required=True, metavar="FILE", help="labelled examples")
    parser.add_argument("--eval", metavar="FILE", help="labelled examples to score")
    parser.add_argument(
        "--eval_share",
        type=_share,
        default=0.1,
        help="share of the training examples that is kept apart where --eval is not given"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=42, help="of the choice of these (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write all scores, by class too, here")
    parser.add_argument("--dry_run", action="store_true", help="print the settings and stop")
    add_flags(parser, ReadConfig)
    run(main, parser.parse_args())
