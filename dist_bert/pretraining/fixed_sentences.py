"""Predictions of the model for a few held-out sentences, the same ones at every validation.

Not for: scores (`dist_bert.training.engine.validate`) or texts of one's own
(`dist_bert.inference.fill_mask`).

Letters: B samples, P masked positions of all of them, V padded vocabulary.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dist_bert.data.batches import unpad
from dist_bert.data.masking import restore
from dist_bert.data.reader import SampleReader
from dist_bert.inference.fill_mask import likeliest_pieces
from dist_bert.model.micro_batches import to_device
from dist_bert.tokenizer.tokenizer import CLS_ID, MASK_ID, SEP_ID, Tokenizer
from dist_bert.training.metrics import Prediction

_NUM_SENTENCES = 6
_MIN_TOKENS = 16  # below it a sample is a heading or a few names rather than a sentence
_TOP = 3


class FixedSentences:
    """The shortest samples of the first held-out block, with [MASK] at all their predictions.

    Where the stored sample has the original piece or a random one it is masked, too: a reader
    should see what is asked.
    """

    def __init__(self, reader: SampleReader, tokenizer: Tokenizer) -> None:
        """Chooses them by what is stored, so that every start of a run has the same ones.

        Args:
            reader: of the validation split.
            tokenizer: that made it.
        """
        size = int(reader.block_sizes[0])
        columns = reader.gather(np.zeros(size, np.int64), np.arange(size))
        num_tokens = columns["num_tokens"]
        rows = np.lexsort((num_tokens, num_tokens < _MIN_TOKENS))[:_NUM_SENTENCES]
        columns = {field: column[rows] for field, column in columns.items()}
        masks = (columns["masked_lm_positions"], columns["masked_lm_labels"], columns["num_masked"])
        originals = restore(columns["input_ids"], *masks)
        columns["input_ids"] = originals.copy()
        for row, positions, count in zip(columns["input_ids"], masks[0], masks[2], strict=True):
            row[positions[:count]] = MASK_ID
        self._tokenizer = tokenizer
        self._ends = np.cumsum(masks[2], dtype=np.int64)  # (B,) of each sample's predictions in P
        self._expected = np.concatenate(
            [labels[:count] for labels, count in zip(masks[1], masks[2], strict=True)]
        )
        self._texts = [
            _readable(tokenizer, masked[:count], original[:count])
            for masked, original, count in zip(
                columns["input_ids"], originals, columns["num_tokens"], strict=True
            )
        ]
        totals = {"num_masked": int(self._ends[-1]), "num_samples": len(rows)}
        self._batch = {**unpad(columns), "masked_lm_labels": None, **totals}

    def ask(self, engine: Any) -> list[Prediction]:
        """The likeliest pieces for every [MASK]; called by all ranks together, as ZeRO-3 needs it.

        Args:
            engine: the DeepSpeed engine, or anything with its `module`, `device`, `eval`, `train`.
        """
        engine.eval()
        with torch.no_grad():
            logits, _ = engine(**to_device(self._batch, engine.device))
        engine.train()
        answers = [
            [{"piece": a.piece, "probability": round(a.probability, 6)} for a in mask]
            for mask in likeliest_pieces(logits[: len(self._expected)], self._tokenizer, _TOP)
        ]
        pieces = [self._tokenizer.piece(int(index)) for index in self._expected]
        bounds = itertools.pairwise((0, *self._ends.tolist()))
        return [
            {"text": text, "expected": pieces[start:end], "answers": answers[start:end]}
            for text, (start, end) in zip(self._texts, bounds, strict=True)
        ]


def _readable(tokenizer: Tokenizer, ids: Sequence[int], originals: Sequence[int]) -> str:
    """A sample as text: [MASK] where it is asked, [SEP] between its segments."""
    text = ""
    pairs = zip(ids, originals, strict=True)
    for is_special, group in itertools.groupby(pairs, lambda p: p[0] in (CLS_ID, SEP_ID, MASK_ID)):
        run = list(group)
        if not is_special:
            text += _space_before(tokenizer, run[0][1]) + tokenizer.decode(i for i, _ in run)
            continue
        for index, original in run:
            if index == SEP_ID:
                text += " [SEP]"
            elif index == MASK_ID:
                text += f"{_space_before(tokenizer, original)}[MASK]"
    return text.strip().removesuffix(" [SEP]")


def _space_before(tokenizer: Tokenizer, index: int) -> str:
    return " " if tokenizer.text_of(int(index)).startswith(" ") else ""
