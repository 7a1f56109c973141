"""Questions on long contexts as samples: [CLS] question [SEP] window [SEP]. No torch.

A context is encoded once, for all questions on it; a window is a range of its tokens. Not for:
answers from scores (`dist_bert.finetuning.question_answers`).

Letters: n tokens of a context, W windows of a question.

Source: Devlin et al. 2019, "BERT", section 4.2 and its `run_squad.py`: windows, max context.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.data.batches import NO_LABEL
from dist_bert.finetuning.examples import Answer, QuestionExample
from dist_bert.tokenizer.tokenizer import CLS_ID, SEP_ID, Tokenizer

OTHER, START, END = range(3)  # classes of the tokens of a context
TOKEN_CLASSES = ("OTHER", "START", "END")
_NUM_SPECIAL = 3  # [CLS] and two [SEP]
_KEPT_CONTEXTS = 32  # the longest real one, 57,000 characters, takes 0.2 MB
_SHOWN = 40  # characters of an answer in a message


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EncodedContext:
    """The tokens of a context; read only, questions share it."""

    text: str
    ids: NDArray[np.int32]  # (n,)
    offsets: NDArray[np.int32]  # (n, 2) code points [begin, end) of the text


class AnswerTokens(NamedTuple):
    """Where an answer stands among the tokens of a context."""

    first: int
    last: int
    is_widened: bool  # it begins or ends inside a piece, and takes all of it


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EncodedQuestion:
    """What the windows of a question have in common."""

    example: QuestionExample
    context: EncodedContext
    prefix: NDArray[np.int32]  # [CLS] question [SEP]
    is_cut: bool  # the question was longer
    answer: AnswerTokens | None  # None = there is none, or it is not known
    has_label: bool  # where its answer is, or that it has none, is known


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One sample: a question and a range of its context's tokens."""

    question: EncodedQuestion
    begin: int  # its first token in the context
    end: int
    max_context_begin: int  # the tokens of which no window has more context, the lesser side counts
    max_context_end: int

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """All tokens of the sample."""
        ids = self.question.context.ids[self.begin : self.end]
        return np.concatenate([self.question.prefix, ids, np.array([SEP_ID], np.int32)])

    @property
    def segment_b_start(self) -> int:
        """Place of the context's first token in the sample."""
        return len(self.question.prefix)

    @property
    def offsets(self) -> NDArray[np.int32]:
        """Code points [begin, end) in the context of the window's tokens, (end - begin, 2)."""
        return self.question.context.offsets[self.begin : self.end]

    @property
    def is_max_context(self) -> NDArray[np.bool_]:
        """Which of the window's tokens no other window of the question shows better."""
        tokens = np.arange(self.begin, self.end)
        return (tokens >= self.max_context_begin) & (tokens < self.max_context_end)

    @property
    def start_position(self) -> int:
        """Place of the answer's first token; 0, that is [CLS], where the window lacks the answer.

        `NO_LABEL` where the answer is not known.
        """
        return self._position(self.question.answer.first if self.question.answer else 0)

    @property
    def end_position(self) -> int:
        """Place of the answer's last token, likewise."""
        return self._position(self.question.answer.last if self.question.answer else 0)

    def _position(self, token: int) -> int:
        if not self.question.has_label:
            return NO_LABEL
        answer = self.question.answer
        if answer is None or not self.begin <= answer.first <= answer.last < self.end:
            return 0
        return token - self.begin + self.segment_b_start


def windows_of(
    example: QuestionExample,
    tokenizer: Tokenizer,
    max_seq_length: int,
    doc_stride: int,
    max_question_tokens: int,
    is_training: bool,
) -> list[Window]:
    """The samples of a question, in the order of its context.

    The label is the first answer whose place is known. In training, a question of whose answers
    none has a place gives no samples: it must not be learnt as one without an answer.

    Args:
        example: whose context is the same object for all questions on it, next to each other.
        tokenizer: of the encoder.
        max_seq_length: tokens of a sample, special ones included.
        doc_stride: tokens between the starts of two windows.
        max_question_tokens: the question loses what comes behind.
        is_training: answers must be there.

    Raises:
        UserError: no context fits beside a question, an answer is not where it says, or there is
            none to learn from.
    """
    if max_seq_length - max_question_tokens <= _NUM_SPECIAL:
        raise UserError(
            f"max_seq_length = {max_seq_length}: must be above max_question_tokens"
            f" ({max_question_tokens}) + {_NUM_SPECIAL}, or no context fits; change one of them"
        )
    if is_training and example.answers is None:
        raise UserError(f"{example.name}: has no answers; training needs them")
    context = _encode_context(tokenizer, example.context)
    ids = tokenizer.encode(example.question)
    prefix = np.array([CLS_ID, *ids[:max_question_tokens], SEP_ID], np.int32)
    answer = _answer_tokens(example, context)
    has_label = example.answers == () or answer is not None
    if is_training and not has_label:
        return []
    is_cut = len(ids) > max_question_tokens
    question = EncodedQuestion(example, context, prefix, is_cut, answer, has_label)
    room = max_seq_length - len(prefix) - 1
    bounds = _window_bounds(len(context.ids), room, min(room, doc_stride))
    return [Window(question, *row) for row in bounds.tolist()]


def with_few_null_windows(windows: list[Window], most: int) -> list[Window]:
    """Of a question's windows those with the answer, and `most` of the others, evenly spaced.

    A whole paper has fifty windows without the answer for one with it: a model that learns from all
    of them learns for long only that there is none. Null instances were thinned out likewise by
    Alberti et al. 2019, https://arxiv.org/abs/1901.08634.
    """
    null = [place for place, window in enumerate(windows) if window.start_position == 0]
    if len(null) <= most:
        return windows
    kept = {null[(2 * k + 1) * len(null) // (2 * most)] for k in range(most)}
    return [
        window for place, window in enumerate(windows) if window.start_position or place in kept
    ]


def token_class_labels(window: Window) -> NDArray[np.int64]:
    """The class of every token of a sample, for a head that tells the classes of tokens.

    The answer's first token is START, its last one END, all others are OTHER. Of an answer of one
    token that token is START and none is END: see `answers.class_scores`. `NO_LABEL` everywhere
    where the answer is not known.
    """
    length = window.segment_b_start + window.end - window.begin + 1
    if not window.question.has_label:
        return np.full(length, NO_LABEL, np.int64)
    labels = np.full(length, OTHER, np.int64)
    if window.start_position:
        labels[window.end_position] = END
        labels[window.start_position] = START
    return labels


# By the context itself: a string computes its hash once, and finds its own object by identity.
@functools.lru_cache(_KEPT_CONTEXTS)
def _encode_context(tokenizer: Tokenizer, text: str) -> EncodedContext:
    ids, offsets = tokenizer.encode_with_offsets(text)
    return EncodedContext(text, np.array(ids, np.int32), offsets.astype(np.int32))


def _answer_tokens(example: QuestionExample, context: EncodedContext) -> AnswerTokens | None:
    """The tokens of the first answer that has a place; all places are checked."""
    for answer in example.answers or ():
        if answer.start is not None:
            _check_place(answer, example)
    found = (_tokens_of(answer, context) for answer in example.answers or ())
    return next((tokens for tokens in found if tokens is not None), None)


def _check_place(answer: Answer, example: QuestionExample) -> None:
    start = answer.start or 0
    there = example.context[max(start, 0) : start + len(answer.text)]
    if start < 0 or there != answer.text:
        raise UserError(
            f"{example.name}: the answer {answer.text[:_SHOWN]!r} must be at character {start} of"
            f" its context, where {there[:_SHOWN]!r} is; correct its place, or leave it out"
        )


def _tokens_of(answer: Answer, context: EncodedContext) -> AnswerTokens | None:
    """None where an answer has no place, or no piece that is visible."""
    text = answer.text.strip()
    if answer.start is None or not text:
        return None
    begin = answer.start + answer.text.index(text)
    end = begin + len(text)
    # An empty stretch, of white space, lies at the end of the one before: it is in neither.
    first = int(np.searchsorted(context.offsets[:, 1], begin, "right"))
    last = int(np.searchsorted(context.offsets[:, 0], end, "left")) - 1
    if first > last:
        return None
    is_whole = (context.offsets[first, 0], context.offsets[last, 1]) == (begin, end)
    return AnswerTokens(first, last, not is_whole)


def _window_bounds(num_tokens: int, room: int, stride: int) -> NDArray[np.int64]:
    """Begins, ends, and begins and ends of the max context of all windows, (W, 4).

    A token may stand in several windows. It counts in the one in which the lesser of the numbers of
    tokens left and right of it is the greatest, plus a hundredth of the window's length; the first
    of equals. Of two windows this favours the left one up to some token and the right one from
    there on, so that these tokens are a range of each.
    """
    num_windows = 1 + max(0, -(-(num_tokens - room) // stride))
    begins = np.arange(num_windows) * stride
    ends = np.minimum(begins + room, num_tokens)
    tokens = begins[1:, None] + np.arange(room - stride)  # (W-1, overlap) with the window before
    left, right = (
        100 * np.minimum(tokens - begin[:, None], end[:, None] - 1 - tokens)
        + (end - begin)[:, None]
        for begin, end in ((begins[:-1], ends[:-1]), (begins[1:], ends[1:]))
    )
    borders = begins[1:] + (left >= right).sum(1)
    return np.stack([begins, ends, np.append(0, borders), np.append(borders, num_tokens)], axis=1)
