"""Scores of words' tags, by whole entities; by seqeval in its strict mode.

An entity is correct if its type, first and last word are. Strict: an I- that does not continue an
entity of its type belongs to none; in the script of CoNLL 2003, it would begin one.
"""

from collections.abc import Sequence

from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from dist_bert.finetuning.scores.result import ClassScores, Scores

_AVERAGES = ("micro avg", "macro avg", "weighted avg")  # rows of seqeval's report, after the types


def tag_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Scores:
    """Scores of sentences in words.

    Args:
        gold: the tags of each sentence, in IOB2; at least one word in total. The type is the part
            after the first hyphen.
        predicted: the predicted tags, of the same lengths.
    """
    gold, predicted = [list(tags) for tags in gold], [list(tags) for tags in predicted]
    pairs = [
        pair
        for of_gold, of_predicted in zip(gold, predicted, strict=True)
        for pair in zip(of_gold, of_predicted, strict=True)
    ]
    report = {}
    if any(tag.startswith("B-") for pair in pairs for tag in pair):  # otherwise there is no entity
        report = classification_report(
            gold, predicted, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
        )
    averages = {name: report.pop(name, {}) for name in _AVERAGES}
    micro, macro = averages["micro avg"], averages["macro avg"]
    values = {
        "f1": float(micro.get("f1-score", 0.0)),
        "precision": float(micro.get("precision", 0.0)),
        "recall": float(micro.get("recall", 0.0)),
        "macro_f1": float(macro.get("f1-score", 0.0)),
        "token_accuracy": sum(truth == told for truth, told in pairs) / len(pairs),
    }
    per_class = [
        ClassScores(
            kind,
            float(row["precision"]),
            float(row["recall"]),
            float(row["f1-score"]),
            int(row["support"]),
        )
        for kind, row in report.items()
    ]
    return Scores(values, per_class, None, main="f1")
