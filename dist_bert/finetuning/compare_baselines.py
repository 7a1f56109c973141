"""Reads a labelled set, scores the plain baselines on it and shows them side by side."""

from collections.abc import Sequence
from typing import Any

from dist_bert.common.text_tables import aligned
from dist_bert.finetuning.examples import Example
from dist_bert.finetuning.readers import Labelled, ReadConfig, read_examples
from dist_bert.finetuning.splitting import split_examples


def compare_baselines(
    task: str, train: str, held_out: str | None, read: ReadConfig, share: float, seed: int
) -> dict[str, Any]:
    """Prints what was read and a table of the scores.

    Args:
        task: one of `examples.TASKS`.
        train: file of the examples to learn from.
        held_out: file of those to score; None = a part of the others.
        read: how both are read.
        share: of the examples that is kept apart where there is no file of them.
        seed: of the choice of these.

    Returns:
        All scores, for a JSON file.

    Raises:
        UserError: a file cannot be read, or has too few examples.
    """
    labelled = read_examples(task, train, read)
    training: Sequence[Example] = labelled.examples
    _print_summary(train, labelled)
    if held_out:
        other = read_examples(task, held_out, read)
        _print_summary(held_out, other)
        scored: Sequence[Example] = other.examples
    else:
        training, scored = split_examples(training, share, seed)
        print(f"{len(scored):,} of them are kept apart to score, {len(training):,} learnt from")
    from dist_bert.finetuning.baselines import score_baselines  # a second, so after all mistakes

    results = score_baselines(task, training, scored, labelled.label_names)
    names = list(next(iter(results.values()))[0].values)
    rows = [["", *results]]
    rows += [
        [name, *(f"{scores.values[name]:.4f}" for scores, _ in results.values())] for name in names
    ]
    rows.append(["seconds", *(f"{seconds:.1f}" for _, seconds in results.values())])
    print(f"\n{aligned(rows)}")
    return {
        "task": task,
        "num_training_examples": len(training),
        "num_held_out_examples": len(scored),
        "baselines": {
            name: {**scores.figures(), "seconds": seconds}
            for name, (scores, seconds) in results.items()
        },
    }


def _print_summary(path: str, labelled: Labelled) -> None:
    first, *others = labelled.summary()
    print(f"{path}: {first}", *(f"  {line}" for line in others), sep="\n")
