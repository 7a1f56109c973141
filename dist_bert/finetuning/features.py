"""Examples as what the model takes: ids, segments and labels, in flat arrays. No torch.

Every sample is [CLS] a [SEP], or [CLS] a [SEP] b [SEP]. Not for: order or batches
(`dist_bert.finetuning.batches`).

Letters: M samples, N tokens of all of them, n tokens of one, C classes.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from dist_bert.data.batches import NO_LABEL
from dist_bert.finetuning.examples import TextExample, WordsExample
from dist_bert.finetuning.question_windows import Window, token_class_labels
from dist_bert.tokenizer.sentence_pieces import is_ideograph
from dist_bert.tokenizer.tokenizer import CLS_ID, SEP_ID, Tokenizer


@dataclasses.dataclass(frozen=True)
class Features:
    """All samples of a set.

    Attributes:
        input_ids: (N,) int32, the samples one after the other.
        offsets: (M + 1,) int64, where each begins, and the end.
        segment_b_start: (M,) int64, the place in its sample at which segment B begins; its length
            where it has none.
        sample_labels: labels of whole samples, each (M,) or (M, C), by the head's argument.
        token_labels: labels of tokens, (N,) int64, `NO_LABEL` where a token has none; None where
            tokens are not classified.
    """

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    segment_b_start: NDArray[np.int64]
    sample_labels: dict[str, NDArray[Any]]
    token_labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.segment_b_start)

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """(M,) tokens of each sample."""
        return np.diff(self.offsets)

    @property
    def num_labels(self) -> NDArray[np.int64]:
        """(M,) tokens of each sample that have a label; 0 where tokens are not classified."""
        if self.token_labels is None:
            return np.zeros(len(self), np.int64)
        ends = np.concatenate(([0], np.cumsum(self.token_labels != NO_LABEL)))
        return np.diff(ends[self.offsets])

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that is learnt from."""
        digest = hashlib.sha256()
        labels = [*self.sample_labels.values(), self.token_labels]
        for values in (self.input_ids, self.offsets, self.segment_b_start, *labels):
            if values is not None:
                digest.update(values.tobytes())
        return digest.hexdigest()


def text_features(
    examples: Sequence[TextExample],
    tokenizer: Tokenizer,
    max_seq_length: int,
    labels: NDArray[Any] | None,
) -> tuple[Features, int]:
    """One or two texts a sample; what is too long loses tokens at the end of its longer text.

    Args:
        examples: one or two texts each.
        tokenizer: of the encoder.
        max_seq_length: tokens of a sample, special ones included.
        labels: (M,) or (M, C), of the examples; None where they are to be predicted.

    Returns:
        The features, and how many samples were cut.
    """
    samples, starts, num_cut = [], [], 0
    ids_a = _encode_all(tokenizer, [example.text_a for example in examples])
    ids_b = _encode_all(tokenizer, [example.text_b or "" for example in examples])
    for example, a, b in zip(examples, ids_a, ids_b, strict=True):
        is_pair = example.text_b is not None
        kept_a, kept_b = fit_pair(len(a), len(b), max_seq_length - 2 - is_pair)
        num_cut += kept_a < len(a) or kept_b < len(b)
        sample = [CLS_ID, *a[:kept_a], SEP_ID]
        starts.append(len(sample))
        samples.append([*sample, *b[:kept_b], SEP_ID] if is_pair else sample)
    sample_labels = {} if labels is None else {"labels": labels}
    return _flat(samples, starts, sample_labels), num_cut


def fit_pair(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """How many tokens stay of two texts: the longer one loses until both fit into the room.

    As `truncate_seq_pair` of google-research/bert, without its loop.
    """
    shorter = min(length_a, length_b)
    if length_a + length_b <= room:
        return length_a, length_b
    if shorter <= room // 2:
        rest = room - shorter
        return (length_a, rest) if length_a == shorter else (rest, length_b)
    return room - room // 2, room // 2


def word_features(
    examples: Sequence[WordsExample],
    tokenizer: Tokenizer,
    max_seq_length: int,
    tags: Sequence[str],
) -> tuple[Features, list[NDArray[np.int64]], int]:
    """A sentence of words a sample; a word's label stands at its first piece.

    Args:
        examples: whose tags are all among `tags`, or all None.
        tokenizer: of the encoder.
        max_seq_length: tokens of a sample; a longer sentence loses its last words.
        tags: names, in the order of the scores.

    Returns:
        The features, the place of the first piece of every word that was kept, for each sample,
        and how many samples were cut.
    """
    tag_of = {name: index for index, name in enumerate(tags)}
    samples, all_places, token_labels, num_cut = [], [], [], 0
    for example in examples:
        pieces = tokenizer.encode_words(list(example.words), spaces_before(example.words))
        ends = 1 + np.cumsum([len(ids) for ids in pieces])
        num_words = int(np.searchsorted(ends, max_seq_length - 1, "right"))
        num_cut += num_words < len(pieces)
        places = np.concatenate(([1], ends))[:num_words].astype(np.int64)
        sample = [CLS_ID, *(i for ids in pieces[:num_words] for i in ids), SEP_ID]
        labels = np.full(len(sample), NO_LABEL, np.int64)
        if example.tags is not None:
            labels[places] = [tag_of[tag] for tag in example.tags[:num_words]]
        samples.append(sample)
        all_places.append(places)
        token_labels.append(labels)
    features = _flat(samples, [len(sample) for sample in samples], {})
    has_labels = bool(examples) and examples[0].tags is not None
    flat = np.concatenate(token_labels) if has_labels else None
    return dataclasses.replace(features, token_labels=flat), all_places, num_cut


def spaces_before(words: Sequence[str]) -> list[bool]:
    """Whether each word has a space before it: not between ideographs, which are written without.

    Word lists do not say how their text was spaced; pretraining text has spaces where its script
    has them.
    """
    return [True] + [
        not (is_ideograph(left[-1:]) and is_ideograph(right[:1]))
        for left, right in itertools.pairwise(words)
    ]


def question_features(
    windows: Sequence[Window], has_answers: bool, as_token_classes: bool
) -> Features:
    """A window of a context a sample; the ends of its answer, or a class for every token."""
    samples = [window.input_ids for window in windows]
    starts = [window.segment_b_start for window in windows]
    labels: dict[str, NDArray[Any]] = {}
    if has_answers and not as_token_classes:
        labels["start_positions"] = np.array([w.start_position for w in windows], np.int64)
        labels["end_positions"] = np.array([w.end_position for w in windows], np.int64)
    features = _flat(samples, starts, labels)
    if not (has_answers and as_token_classes):
        return features
    classes = np.concatenate([token_class_labels(window) for window in windows])
    return dataclasses.replace(features, token_labels=classes)


def _encode_all(tokenizer: Tokenizer, texts: list[str]) -> list[NDArray[np.int32]]:
    ids, offsets = tokenizer.encode_batch(texts)
    return np.split(ids, offsets[1:-1])


def _flat(
    samples: Sequence[Sequence[int] | NDArray[np.integer]],
    segment_b_start: Sequence[int],
    sample_labels: dict[str, NDArray[Any]],
) -> Features:
    lengths = np.fromiter(map(len, samples), np.int64, len(samples))
    return Features(
        np.concatenate([np.asarray(sample, np.int32) for sample in samples]),
        np.concatenate(([0], np.cumsum(lengths))),
        np.asarray(segment_b_start, np.int64),
        sample_labels,
    )


def mean_cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Mean over the rows of scores (N, C) whose label (N,) is not `NO_LABEL`."""
    has_label = labels != NO_LABEL
    logs = log_softmax(logits[has_label], axis=1)
    return float(-logs[np.arange(len(logs)), labels[has_label]].mean())
