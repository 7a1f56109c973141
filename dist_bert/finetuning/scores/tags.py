"""Scores of words' tags, by whole entities; by seqeval in its strict mode.

An entity is right where its type, its first and its last word are. Strict: an I- that continues
nothing of its type is no part of any entity; the script of CoNLL 2003 would let it begin one.
"""

from collections.abc import Sequence

from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from dist_bert.finetuning.scores.result import ClassScores, Scores

_AVERAGES = ("micro avg", "macro avg", "weighted avg")  # rows of seqeval's report, after the types


def tag_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Scores:
    """Scores of sentences in words.

    Args:
        gold: the tags of each sentence, in IOB2; at least one word in all. A type is what stands
            behind the first hyphen.
        predicted: what was predicted, of the same lengths.
    """
    gold, predicted = [list(tags) for tags in gold], [list(tags) for tags in predicted]
    pairs = [
        pair
        for of_gold, of_predicted in zip(gold, predicted, strict=True)
        for pair in zip(of_gold, of_predicted, strict=True)
    ]
    report = {}
    if any(tag.startswith("B-") for pair in pairs for tag in pair):  # else there is no entity
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
