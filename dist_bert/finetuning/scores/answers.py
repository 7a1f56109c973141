"""Scores of answers to questions: exact match and F1, as defined by the official evaluations.

English is scored by words, as in SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018). Chinese is scored
by characters, as in CMRC 2018 (Cui et al. 2019), for all Chinese sets: DRCD (Shao et al. 2018) was
published without a script. A question's score is the best over its answers, a set's the mean over
its questions.

CMRC's script splits the words between Chinese characters with nltk. A rule of one line replaces it,
which splits at the same marks and keeps English contractions whole.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Literal

from dist_bert.finetuning.scores.result import Scores

Language = Literal["en", "zh"]

_IDEOGRAPH = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)  # of ASCII only, as in SQuAD
# Characters that CMRC removes: exactly these, not all punctuation.
_NO_MARKS = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHARACTER = "[\u4e00-\u9fa5]"  # Chinese characters in CMRC
_WORD = r"""[^\s一-龥!-/:-@\[-`{-~–—«»“”‘’„]"""
# A Chinese character; a word, with points inside, and commas before digits; any other mark.
_SEGMENT = re.compile(rf"{_CHARACTER}|{_WORD}+(?:(?:['.]|,(?=\d)){_WORD}+)*|\S")


def answer_scores(
    gold: Mapping[str, Sequence[str]], predicted: Mapping[str, str], language: Language
) -> Scores:
    """Scores of a set of questions.

    If it has questions without an answer, these are correct if "" was predicted, scores of both
    kinds of question are also given separately, and the rules of SQuAD 2.0 apply to all questions.

    Args:
        gold: id -> texts of a question's answers; () = no answer in its text. Not empty.
        predicted: id -> predicted text, for the same questions; "" = no answer.
        language: whose rules to compare texts by.
    """
    assert gold.keys() == predicted.keys() and gold
    may_lack_answers = not all(gold.values())
    scores = {
        key: score_answer(answers, predicted[key], language, may_lack_answers)
        for key, answers in gold.items()
    }
    exact_match, f1 = _means(scores.values())
    values = {"f1": f1, "exact_match": exact_match}
    if may_lack_answers:
        answered = [scores[key] for key, answers in gold.items() if answers]
        if answered:
            values["has_answer_exact_match"], values["has_answer_f1"] = _means(answered)
        values["no_answer_accuracy"], _ = _means(scores[key] for key in gold if not gold[key])
    return Scores(values, [], None, main="f1")


def score_answer(
    answers: Sequence[str], predicted: str, language: Language, may_lack_answers: bool
) -> tuple[float, float]:
    """Exact match and F1 of one question.

    Args:
        answers: texts of its answers; () = none.
        predicted: the predicted text; "" = none.
        language: whose rules to compare texts by.
        may_lack_answers: whether the set has questions without an answer: then a text that the
            rules reduce to nothing counts as none (SQuAD 2.0), else it only equals another such
            text (1.1).
    """
    normal, parts = (_words, _words) if language == "en" else (_without_marks, _segments)
    texts = list(answers)
    if may_lack_answers:
        texts = [text for text in answers if normal(text)] or [""]
    exact_match = any(normal(text) == normal(predicted) for text in texts)
    f1 = 0.0
    for text in texts:
        of_answer, of_predicted = parts(text), parts(predicted)
        if may_lack_answers and not (of_answer and of_predicted):
            f1 = max(f1, float(of_answer == of_predicted))
            continue
        if language == "en":
            num_common = (Counter(of_answer) & Counter(of_predicted)).total()
        else:
            num_common = _longest_common_stretch(of_answer, of_predicted)
        if num_common:  # 2PR / (P + R), with the common numerator of P and R
            f1 = max(f1, 2 * num_common / (len(of_answer) + len(of_predicted)))
    return float(exact_match), f1


def language_of(texts: Iterable[str]) -> Language:
    """Chinese if more than half of the texts contain a Chinese character, else English."""
    has_ideograph = [_IDEOGRAPH.search(text) is not None for text in texts]
    return "zh" if 2 * sum(has_ideograph) > len(has_ideograph) else "en"


def _means(scores: Iterable[tuple[float, float]]) -> tuple[float, float]:
    exact_matches, f1s = zip(*scores, strict=True)
    return sum(exact_matches) / len(exact_matches), sum(f1s) / len(f1s)


def _words(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    return _ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _without_marks(text: str) -> str:
    return text.lower().strip().translate(_NO_MARKS)


def _segments(text: str) -> list[str]:
    """Chinese characters, and the words and marks between them."""
    return _SEGMENT.findall(_without_marks(text))


def _longest_common_stretch(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest contiguous run that both have, without gaps."""
    return SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
