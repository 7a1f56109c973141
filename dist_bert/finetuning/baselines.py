"""Plain baselines: what a labelled set gives without an encoder, for a fine-tuned one to beat.

Each learns from the training examples alone and is scored like any model. They are deterministic.
"""

import functools
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.svm import LinearSVC

from dist_bert.finetuning.examples import (
    PAIR_TASKS,
    REGRESSION_TASKS,
    QuestionExample,
    TextExample,
    WordsExample,
)
from dist_bert.finetuning.readers.tags import parse_tag, to_iob2
from dist_bert.finetuning.scores import (
    Scores,
    answer_scores,
    classification_scores,
    language_of,
    multi_label_scores,
    regression_scores,
    tag_scores,
)

OUTSIDE = "O"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
Timed = tuple[Scores, float]  # with the seconds that learning, answering and scoring took


def score_baselines(
    task: str, training: Sequence[Any], held_out: Sequence[Any], names: Sequence[str] | None
) -> dict[str, Timed]:
    """Scores the baselines of a task.

    Args:
        task: one of `examples.TASKS`.
        training: examples of it to learn from, with labels.
        held_out: examples of it to be scored, with labels.
        names: of the classes, as a label list has them; None = those of the examples.

    Returns:
        Name of a baseline -> its scores and what it took.
    """
    baselines: dict[str, Callable[[Any, Any], list[Any]]]
    score: Callable[[Any, Any], Scores]
    if task == "question_answering":
        baselines = {"first words": first_words, "nearest sentence": nearest_sentence}
        if not all(example.answers for example in training):
            baselines["no answer"] = no_answer
        score = _score_answers
    elif task == "token_classification":
        baselines, score = {"all O": all_outside, "word lookup": word_lookup}, _score_tags
    elif task in REGRESSION_TASKS:
        baselines = {"mean": mean_number, "linear on TF-IDF": linear_numbers}
        if task in PAIR_TASKS:
            baselines["cosine of TF-IDF"] = likeness_numbers
        score = _score_numbers
    else:
        baselines = {"commonest": commonest_labels, "linear on TF-IDF": linear_labels}
        both = [*training, *held_out]
        has_several = any(len(example.labels) != 1 for example in both)
        score = functools.partial(
            _score_labels, classes=names or _classes(both), has_several=has_several
        )
    results = {}
    for name, baseline in baselines.items():
        start = time.perf_counter()
        scores = score(held_out, baseline(training, held_out))
        results[name] = scores, time.perf_counter() - start
    return results


def commonest_labels(
    training: Sequence[TextExample], examples: Sequence[TextExample]
) -> list[tuple[str, ...]]:
    """The commonest label; where several apply, the commonest set of them."""
    counts = Counter(tuple(sorted(example.labels or ())) for example in training)
    return [counts.most_common(1)[0][0]] * len(examples)


def linear_labels(
    training: Sequence[TextExample], examples: Sequence[TextExample]
) -> list[tuple[str, ...]]:
    """What a linear support vector machine says (scikit-learn's LinearSVC, one class against all).

    Features of a text are its words, marks and pairs of neighbours, in Chinese its stretches of 1
    to 3 characters, weighted by log frequency times inverse document frequency (TF-IDF). A pair
    has those of both texts, their product (what both have) and the sum of it (the cosine).
    """
    if len({example.labels for example in training}) == 1:
        return [training[0].labels or ()] * len(examples)  # there is nothing to tell apart
    vectorizer = _fitted(training)
    features, features_held_out = (_features(vectorizer, part) for part in (training, examples))
    machine = LinearSVC(random_state=0)
    if all(len(example.labels or ()) == 1 for example in training):
        machine.fit(features, [(example.labels or ())[0] for example in training])
        return [(str(label),) for label in machine.predict(features_held_out)]
    classes = _classes(training)
    applies = _membership([example.labels or () for example in training], classes)
    chosen = np.ones((len(examples), len(classes)), np.bool_)
    for index in np.flatnonzero(~applies.all(axis=0)):  # of the others there is nothing to learn
        machine.fit(features, applies[:, index])
        chosen[:, index] = machine.predict(features_held_out)
    return [tuple(classes[index] for index in np.flatnonzero(row)) for row in chosen]


def mean_number(training: Sequence[TextExample], examples: Sequence[TextExample]) -> list[float]:
    """The mean of the training set."""
    return [float(_targets(training).mean())] * len(examples)


def linear_numbers(training: Sequence[TextExample], examples: Sequence[TextExample]) -> list[float]:
    """What a linear regression says that is held small (scikit-learn's Ridge).

    Its features are those of `linear_labels`.
    """
    vectorizer = _fitted(training)
    machine = Ridge(random_state=0).fit(_features(vectorizer, training), _targets(training))
    return [float(number) for number in machine.predict(_features(vectorizer, examples))]


def likeness_numbers(
    training: Sequence[TextExample], examples: Sequence[TextExample]
) -> list[float]:
    """Of pairs: a line through how alike both texts are, the cosine of their TF-IDF features."""
    vectorizer = _fitted(training)

    def likeness(part: Sequence[TextExample]) -> Any:
        first = vectorizer.transform([example.text_a for example in part])
        second = vectorizer.transform([example.text_b for example in part])
        return np.asarray(first.multiply(second).sum(axis=1))

    line = LinearRegression().fit(likeness(training), _targets(training))
    return [float(number) for number in line.predict(likeness(examples))]


def all_outside(
    training: Sequence[WordsExample], examples: Sequence[WordsExample]
) -> list[list[str]]:
    """O for every word, the commonest tag of all sets of names."""
    return [[OUTSIDE] * len(example.words) for example in examples]


def word_lookup(
    training: Sequence[WordsExample], examples: Sequence[WordsExample]
) -> list[list[str]]:
    """For each word its commonest tag in training, O for unknown ones.

    An I- that continues nothing of its type begins a name, as the script of CoNLL 2003 reads it.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in training:
        for word, tag in zip(example.words, example.tags or (), strict=True):
            counts[word][tag] += 1
    commonest = {word: of_word.most_common(1)[0][0] for word, of_word in counts.items()}
    return [
        to_iob2([parse_tag(commonest.get(word, OUTSIDE)) for word in example.words], "iob2")[0]
        for example in examples
    ]


def first_words(
    training: Sequence[QuestionExample], examples: Sequence[QuestionExample]
) -> list[str]:
    """The first words of the context (in Chinese, characters), as many as answers mostly have.

    That is the median of the first answers in training.
    """
    answers = [example.answers[0].text for example in training if example.answers]
    is_chinese = language_of(answers) == "zh"
    unit = re.compile(r"\S" if is_chinese else r"\S+")
    size = int(np.median([len(unit.findall(answer)) for answer in answers] or [1]))
    beginning = re.compile(rf"\s*({unit.pattern}(?:\s*{unit.pattern}){{0,{max(size, 1) - 1}}})")
    return [beginning.match(example.context)[1] for example in examples]  # type: ignore[index]


def nearest_sentence(
    training: Sequence[QuestionExample], examples: Sequence[QuestionExample]
) -> list[str]:
    """The sentence of the context whose TF-IDF features are nearest to the question's (cosine).

    Features are as in `linear_labels`; their document frequencies are those of the sentences of
    all contexts, the scored ones too: these are given with the question.
    """
    contexts = list(dict.fromkeys(example.context for example in (*training, *examples)))
    sentences = {context: _sentences(context) for context in contexts}
    vectorizer = _tf_idf(contexts)
    vectorizer.fit([sentence for of_it in sentences.values() for sentence in of_it])
    questions = vectorizer.transform([example.question for example in examples])
    asked_of = {example.context for example in examples}
    vectors = {context: vectorizer.transform(sentences[context]) for context in asked_of}
    answers = []
    for index, example in enumerate(examples):
        nearness = (vectors[example.context] @ questions[index].T).toarray()[:, 0]
        answers.append(sentences[example.context][int(nearness.argmax())])
    return answers


def no_answer(
    training: Sequence[QuestionExample], examples: Sequence[QuestionExample]
) -> list[str]:
    """That no context holds an answer."""
    return [""] * len(examples)


def _score_answers(examples: Sequence[QuestionExample], answers: Sequence[str]) -> Scores:
    gold = {e.id: tuple(answer.text for answer in e.answers or ()) for e in examples}
    language = language_of(text for texts in gold.values() for text in texts)
    told = {example.id: answer for example, answer in zip(examples, answers, strict=True)}
    return answer_scores(gold, told, language)


def _score_tags(examples: Sequence[WordsExample], answers: Sequence[Sequence[str]]) -> Scores:
    return tag_scores([example.tags or () for example in examples], answers)


def _score_labels(
    examples: Sequence[TextExample],
    answers: Sequence[tuple[str, ...]],
    classes: Sequence[str],
    has_several: bool,
) -> Scores:
    gold = _membership([example.labels or () for example in examples], classes)
    predicted = _membership(answers, classes)
    if has_several:
        return multi_label_scores(gold, predicted, classes)
    return classification_scores(gold.argmax(axis=1), predicted.argmax(axis=1), classes)


def _score_numbers(examples: Sequence[TextExample], answers: Sequence[float]) -> Scores:
    return regression_scores(_targets(examples), np.array(answers))


def _targets(examples: Sequence[TextExample]) -> NDArray[np.float64]:
    return np.array([example.target for example in examples], np.float64)


def _sentences(context: str) -> list[str]:
    return [part.strip() for part in _SENTENCE_END.split(context) if part.strip()]


def _tf_idf(texts: Sequence[str]) -> TfidfVectorizer:
    """A vectorizer that suits the texts, not fitted yet."""
    if language_of(texts) == "zh":
        return TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")


def _fitted(training: Sequence[TextExample]) -> TfidfVectorizer:
    """A vectorizer fitted on all texts of a training set."""
    texts = [t for e in training for t in (e.text_a, e.text_b) if t is not None]
    return _tf_idf(texts).fit(texts)


def _features(vectorizer: TfidfVectorizer, examples: Sequence[TextExample]) -> Any:
    first = vectorizer.transform([example.text_a for example in examples])
    if examples[0].text_b is None:
        return first
    second = vectorizer.transform([example.text_b for example in examples])
    common = first.multiply(second)
    return sparse.hstack([first, second, common, sparse.csr_matrix(common.sum(axis=1))]).tocsr()


def _classes(examples: Sequence[TextExample]) -> list[str]:
    return sorted({label for example in examples for label in example.labels or ()})


def _membership(labels: Sequence[tuple[str, ...]], classes: Sequence[str]) -> NDArray[np.bool_]:
    """(N, C) which classes the labels of each example name."""
    index_of = {name: index for index, name in enumerate(classes)}
    applies = np.zeros((len(labels), len(classes)), np.bool_)
    for row, names in enumerate(labels):
        applies[row, [index_of[name] for name in names]] = True
    return applies
