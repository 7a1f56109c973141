"""Answers from the scores of tokens: the best spans of all windows of a question. No torch.

A span (i, j) begins with token i of a context and ends with token j. It is looked for in the window
that shows token i with the most context, and neither i nor j is white space.

Letters: n tokens of a sample, c of the context among them, M samples, Q questions.

Source: Devlin et al. 2019, "BERT", section 4.2 and its `run_squad.py`, which takes spans from the
20 best starts and ends; here they are from all. Rajpurkar et al. 2018 for questions without answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dist_bert.finetuning.question_windows import END, OTHER, START, Window

_LEAST = np.finfo(np.float64).tiny  # a logarithm of it is -708, not infinite


class SpanScores(NamedTuple):
    """The scores of all spans of a window: logarithms, up to a constant of the question."""

    start: NDArray[np.float64]  # (c,) a span scores start[i] + end[j]
    end: NDArray[np.float64]  # (c,)
    single: NDArray[np.float64]  # (c,) of spans of one token
    null: float  # of the window having no answer


class Candidate(NamedTuple):
    """A possible answer."""

    text: str  # as it stands in the context
    start: int  # its first code point there
    score: float
    probability: float  # among the candidates: given that there is an answer


class Prediction(NamedTuple):
    """What is known of the answer to a question."""

    candidates: list[Candidate]  # with different texts, the best first; none in an empty context
    null_score: float  # of there being no answer: in the window where it is the least likely

    @property
    def null_odds(self) -> float:
        """By how much having no answer outscores the best one; infinite without candidates."""
        return self.null_score - self.candidates[0].score if self.candidates else np.inf

    def text(self, null_score_threshold: float | None) -> str:
        """The answer; "" = none.

        Args:
            null_score_threshold: there is none if `null_odds` is above it; None = there always is.
        """
        if not self.candidates:
            return ""
        is_null = null_score_threshold is not None and self.null_odds > null_score_threshold
        return "" if is_null else self.candidates[0].text


def span_scores(window: Window, logits: NDArray[np.floating]) -> SpanScores:
    """The scores of a head that points: logits of every token to be the first, or the last one.

    [CLS] stands for there being no answer in the window.

    Args:
        window: of n tokens.
        logits: (n, 2) of start and end.
    """
    start, end = _of_context(window, logits).T
    return SpanScores(start, end, start + end, float(logits[0].sum(dtype=np.float64)))


def class_scores(window: Window, logits: NDArray[np.floating]) -> SpanScores:
    """The scores of a head that tells each token's class: OTHER, START or END.

    A span of several tokens scores log p(START at i) + log p(END at j). The one token of a shorter
    answer is START and no token is END, so such a span scores log p(START at i) + log p(no END),
    given that there is an answer. That probability is the surplus of STARTs over ENDs: every answer
    has one START, those of several tokens have one END too, so their expected numbers, the sums of
    p(START) and p(END) over the context, differ by the probability of an answer of one token. It
    depends neither on how likely an answer is at all, nor on how much a loss favours both classes.
    No answer scores the logarithm of the probability that no token is START and none is END.

    Args:
        window: of n tokens.
        logits: (n, 3).
    """
    context = _of_context(window, logits)
    other, start, end = context[:, OTHER], context[:, START], context[:, END]
    total = np.logaddexp(np.logaddexp(other, start), end)
    surplus = np.exp(start - total).sum() - np.exp(end - total).sum()
    single = start - total + np.log(np.clip(surplus, _LEAST, 1.0))
    no_start, no_end = np.logaddexp(other, end) - total, np.logaddexp(other, start) - total
    return SpanScores(start - total, end - total, single, float((no_start + no_end).sum()))


def predict(
    windows: Sequence[Window],
    scores: Sequence[SpanScores],
    num_candidates: int,
    max_answer_tokens: int,
) -> Prediction:
    """The best answers to a question, of all spans that its windows have.

    Args:
        windows: all of one question.
        scores: of each of them.
        num_candidates: at most so many, with different texts; of equal texts the best is taken.
        max_answer_tokens: of a span.
    """
    text = windows[0].question.context.text
    num_spans = 2 * num_candidates  # some have equal texts
    while True:
        found, begins, ends = _best_spans(windows, scores, num_spans, max_answer_tokens)
        best: dict[str, int] = {}
        for rank, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
            best.setdefault(text[begin:end], rank)
        if len(best) >= num_candidates or len(found) < num_spans:
            break
        num_spans *= 4
    ranks = list(best.values())[:num_candidates]
    weights = np.exp(found[ranks] - found[:1])
    candidates = [
        Candidate(text[begins[rank] : ends[rank]], int(begins[rank]), float(found[rank]), float(p))
        for rank, p in zip(ranks, weights / weights.sum(), strict=True)
    ]
    return Prediction(candidates, min(window_scores.null for window_scores in scores))


def best_threshold(
    null_odds: NDArray[np.floating],
    answered_scores: NDArray[np.floating],
    null_scores: NDArray[np.floating],
) -> tuple[float, float]:
    """The `null_score_threshold` that makes the mean score of labelled questions the greatest.

    Args:
        null_odds: (Q,) of their predictions.
        answered_scores: (Q,) what each scores if it is answered by its best candidate.
        null_scores: (Q,) what each scores if the answer is that there is none.

    Returns:
        The threshold, the lowest of equals, and the mean score that it makes.
    """
    order = np.argsort(null_odds, kind="stable")
    odds = np.append(np.nextafter(null_odds[order[0]], -np.inf), null_odds[order])
    gains = (answered_scores - null_scores)[order].astype(np.float64)
    totals = np.append(0.0, np.cumsum(gains)) + null_scores.sum(dtype=np.float64)  # (Q+1,)
    # A threshold answers all questions of equal odds or none of them.
    totals[:-1][odds[:-1] == odds[1:]] = -np.inf
    best = int(totals.argmax())
    return float(odds[best]), float(totals[best] / len(null_odds))


def _of_context(window: Window, logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The rows of the context's tokens."""
    begin = window.segment_b_start
    return logits[begin : begin + window.end - window.begin].astype(np.float64)


def _best_spans(
    windows: Sequence[Window],
    scores: Sequence[SpanScores],
    num_spans: int,
    max_answer_tokens: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Scores, begins and ends in code points of the best spans, the best first.

    Fewer than `num_spans` only if there are no more.
    """
    parts = [
        _spans_of_window(*each, num_spans, max_answer_tokens)
        for each in zip(windows, scores, strict=True)
    ]
    found, begins, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    best = np.argsort(-found, kind="stable")[:num_spans]
    return found[best], begins[best], ends[best]


def _spans_of_window(
    window: Window, scores: SpanScores, num_spans: int, max_answer_tokens: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The same of one window, in any order: the band of all its spans, 0.1 ms."""
    offsets = window.offsets.astype(np.int64)
    is_blank = offsets[:, 0] == offsets[:, 1]
    chosen = slice(window.max_context_begin - window.begin, window.max_context_end - window.begin)
    start = np.where(is_blank, -np.inf, scores.start)[chosen]
    padding = np.full(max_answer_tokens, -np.inf)
    end = np.concatenate([np.where(is_blank, -np.inf, scores.end), padding])
    band = start[:, None] + sliding_window_view(end, max_answer_tokens)[chosen]  # [i, j - i]
    band[:, 0] = np.where(is_blank, -np.inf, scores.single)[chosen]
    flat = band.ravel()
    best = np.arange(flat.size)
    if flat.size > num_spans:
        best = np.argpartition(flat, -num_spans)[-num_spans:]
    best = np.sort(best[flat[best] > -np.inf])
    first, length = np.divmod(best, max_answer_tokens)
    first += chosen.start
    return flat[best], offsets[first, 0], offsets[first + length, 1]
