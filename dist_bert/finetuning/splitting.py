"""A labelled set in two: to learn from, and to score on. Where a set has no held-out file."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from dist_bert.common.errors import UserError
from dist_bert.common.hashing import hash64
from dist_bert.finetuning.examples import Example, QuestionExample, WordsExample

E = TypeVar("E", bound=Example)


def split_examples(
    examples: Sequence[E], share: float = 0.1, seed: int = 42
) -> tuple[list[E], list[E]]:
    """Keeps some examples apart, chosen by a hash of their text.

    No text is on both sides: examples that stand twice stay together, questions on one context,
    and pairs that have a text in common, directly or through other pairs. Such a group is kept
    apart only if it is no larger than what is still wanted, so a text that occurs in much of the
    set is learnt from. Both parts keep the order of the set.

    Args:
        examples: of one task.
        share: of the examples that is kept apart, above 0 and below 1; never more.
        seed: of the choice.

    Returns:
        The examples to learn from, and those kept apart.

    Raises:
        UserError: no group is that small.
    """
    groups = _groups(examples)
    texts = [_texts_of(examples[group[0]])[0].encode() for group in groups]
    keys = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    order = np.argsort(hash64(seed, "held out", np.frombuffer(keys, "<u8")), kind="stable")
    num_wanted = int(share * len(examples))
    is_held_out = np.zeros(len(examples), np.bool_)
    for index in order:
        if len(groups[index]) <= num_wanted:
            is_held_out[groups[index]] = True
            num_wanted -= len(groups[index])
    if not is_held_out.any():
        smallest = min(map(len, groups), default=0)
        raise UserError(
            f"eval_share = {share:g}: of {len(examples):,} examples these are"
            f" {int(share * len(examples)):,}, fewer than the smallest group that has its texts to"
            f" itself ({smallest:,}); give a file to score on (--eval) or a larger share"
        )
    training = [e for e, held_out in zip(examples, is_held_out, strict=True) if not held_out]
    return training, [e for e, held_out in zip(examples, is_held_out, strict=True) if held_out]


def _groups(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of the examples that are held together by their texts, in the order of the set."""
    parent: dict[str, str] = {}  # text -> one of its group, in the end the same for all of it

    def root(text: str) -> str:
        while (above := parent.setdefault(text, text)) != text:
            parent[text] = parent[above]
            text = above
        return text

    for example in examples:
        first, *others = _texts_of(example)
        for other in others:
            parent[root(other)] = root(first)
    members = defaultdict(list)
    for index, example in enumerate(examples):
        members[root(_texts_of(example)[0])].append(index)
    return list(members.values())


def _texts_of(example: Example) -> list[str]:
    """What must not be on both sides."""
    if isinstance(example, QuestionExample):
        return [example.context]
    if isinstance(example, WordsExample):
        return [" ".join(example.words)]
    return [example.text_a] if example.text_b is None else [example.text_a, example.text_b]
