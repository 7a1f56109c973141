"""Checks the ranges of a block's samples; violations would crash training or corrupt the model.

Bytes that match their sums may still be wrong. Cheap enough for every block that is read;
`data_prep.verify` checks all other rules of the format.

Letters: B samples of a block, S longest sample in tokens, P most predictions of a sample.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.data.masking import NUM_SPECIAL_IDS
from dist_bert.data.shard_format import Manifest

Block = Mapping[str, NDArray[Any]]
Rules = dict[str, NDArray[np.bool_]]  # rule -> (B,) or (B, anything) whether a sample follows it


def check_ranges(where: str, block: Block, manifest: Manifest) -> None:
    """Checks all samples of a block.

    Args:
        where: shard and block, for errors.
        block: its fields.
        manifest: of the data set.

    Raises:
        UserError: a sample breaks a rule; names the first one.
    """
    num_tokens, num_masked = block["num_tokens"], block["num_masked"]
    positions, labels = block["masked_lm_positions"], block["masked_lm_labels"]
    vocab_size = manifest.tokenizer["vocab_size"]
    most_tokens = min(block["input_ids"].shape[1], manifest.config["sequence_length"])
    is_padding = np.arange(positions.shape[1], dtype=num_masked.dtype) >= num_masked[:, None]
    rules = {
        "num_tokens is 3 to sequence_length": (num_tokens >= 3) & (num_tokens <= most_tokens),
        **_segment_rules(block, manifest.config["pair_objective"]),
        "something is masked": (num_masked > 0) & (num_masked <= positions.shape[1]),
        "masked positions are inside the sample": positions < num_tokens[:, None],
        "pieces are below vocab_size": block["input_ids"] < vocab_size,
        "labels are below vocab_size": labels < vocab_size,
        # These two leave a sample at least `num_masked` tokens to draw fresh masks from.
        "masked positions ascend": (positions[:, 1:] > positions[:, :-1]) | is_padding[:, 1:],
        "no special token is masked": (labels >= NUM_SPECIAL_IDS) | is_padding,
    }
    check_rules(where, rules)


def _segment_rules(block: Block, objective: str) -> Rules:
    start, label = block["segment_b_start"].astype(np.int64), block["next_sentence_label"]
    if objective == "none":
        return {
            "there is one segment": start == block["num_tokens"],
            "next_sentence_label is 0": label == 0,
        }
    return {
        "both segments hold text": (start >= 3) & (start + 2 <= block["num_tokens"]),
        "next_sentence_label is 0 or 1": label <= 1,
    }


def check_rules(where: str, rules: Rules) -> None:
    """Raises a `UserError` for the first broken rule, with `where` and the sample."""
    for rule, holds in rules.items():
        if not holds.all():
            sample = int(np.argwhere(~holds)[0, 0])
            raise UserError(f"{where}: sample {sample} breaks the rule: {rule}")
