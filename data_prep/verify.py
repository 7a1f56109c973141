"""Verifies a finished data set against its manifest: every byte, and every rule for the samples.

Uses only the guarantees of the format (docs/data-format.md), not how the samples were made.

Letters: B samples of a block, S longest sample in tokens, P most predictions of a sample.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.samples import SampleStatistics, measure
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.data.masking import restore
from dist_bert.data.sample_rules import check_ranges, check_rules
from dist_bert.data.shard_format import SPLITS, Manifest
from dist_bert.data.shard_source import ShardSource
from dist_bert.tokenizer.tokenizer import CLS_ID, MASK_ID, SEP_ID, Tokenizer

Block = dict[str, NDArray[Any]]

_LABELS = {"nsp": ("true next", "random next"), "sop": ("in order", "swapped")}


def verify(place: str | Path | ShardSource, report: Callable[[str], None]) -> Manifest:
    """Checks a whole data set.

    Args:
        place: its folder, or the source of its files.
        report: called for every correct shard.

    Raises:
        UserError: the first violation, with shard, block and sample.
    """
    source = ShardSource.of(place)
    manifest = source.manifest()
    tokenizer = source.tokenizer_path(manifest)
    if not tokenizer.exists() or (
        files.sha256_of_file(tokenizer) != manifest.tokenizer["fingerprint"]
    ):
        raise UserError(f"{tokenizer}: is missing, or is not the tokenizer that made the shards")
    held_out = np.zeros(0, np.int64)  # documents of the validation split, the smaller one
    for split in reversed(SPLITS):
        statistics = SampleStatistics()
        for shard in manifest.splits[split]:
            file = source.open(shard, manifest.field_types)
            for index in range(len(shard.blocks)):
                block = file.block(index)  # checks its crc32
                where = f"{file.path}: block {index}"
                _check_samples(where, block, manifest)
                if split == "validation":
                    held_out = np.union1d(held_out, block["document_ids"])
                else:
                    _check_split(where, block, held_out)
                statistics.add(measure(block, MASK_ID))
            if files.sha256_of_file(file.path) != shard.sha256:
                raise UserError(
                    f"{file.path}: bytes between its blocks differ from the manifest (sha256);"
                    " prepare this shard again"
                )
            report(f"{shard.file}  {shard.num_samples:,} samples in {len(shard.blocks)} blocks")
        said = manifest.statistics.get(split, {})
        _check_statistics(f"{source.place}: {split}", statistics, said)
    return manifest


def show(place: str | Path | ShardSource, count: int) -> Iterator[str]:
    """The first training samples as text: masked, with the labels of tokens and pair."""
    source = ShardSource.of(place)
    manifest = source.manifest()
    labels = _LABELS.get(manifest.config["pair_objective"])
    tokenizer = Tokenizer(source.tokenizer_path(manifest))
    for shard in manifest.splits["train"]:
        file = source.open(shard, manifest.field_types)
        for index in range(len(shard.blocks)):
            block = file.block(index)
            for row in range(min(count, shard.blocks[index].num_samples)):
                sample = {field: column[row] for field, column in block.items()}
                yield _as_text(sample, tokenizer, labels)
            count -= shard.blocks[index].num_samples
            if count <= 0:
                return


def _check_samples(where: str, block: Block, manifest: Manifest) -> None:
    """Checks the rules for each single sample of a block."""
    check_ranges(where, block, manifest)
    input_ids, num_tokens = block["input_ids"], block["num_tokens"].astype(np.int64)
    positions, labels = block["masked_lm_positions"].astype(np.int64), block["masked_lm_labels"]
    num_masked, segment_b_start = block["num_masked"], block["segment_b_start"].astype(np.int64)
    originals = restore(input_ids, positions, labels, num_masked)
    rows = np.arange(num_tokens.size)
    column = np.arange(input_ids.shape[1])
    is_prediction = np.arange(positions.shape[1]) < num_masked[:, None]
    is_separator = (column == segment_b_start[:, None] - 1) | (column == num_tokens[:, None] - 1)
    is_text = (column > 0) & (column < num_tokens[:, None]) & ~is_separator
    rules = {
        "a sample begins with [CLS]": originals[:, 0] == CLS_ID,
        "segments end with [SEP]": (originals == SEP_ID)[rows, segment_b_start - 1]
        & (originals == SEP_ID)[rows, num_tokens - 1],
        "no other token is [PAD], [CLS], [SEP] or [MASK]": ~(
            is_text & np.isin(originals, (0, CLS_ID, SEP_ID, MASK_ID))
        ).any(1),
        "padding is 0": ~(input_ids * (column >= num_tokens[:, None])).any(1)
        & ~(positions * ~is_prediction).any(1)
        & ~(labels * ~is_prediction).any(1),
        "document_ids are below the number of documents": (
            block["document_ids"] < manifest.totals["documents"]
        ).all(1),
        **_document_rules(block, manifest.config["pair_objective"]),
    }
    check_rules(where, rules)


def _document_rules(block: Block, objective: str) -> dict[str, NDArray[np.bool_]]:
    """Rules of the objective for the documents; (B,) whether each sample follows them."""
    label, (document_a, document_b) = block["next_sentence_label"], block["document_ids"].T
    if objective == "none":
        return {"a sample is from one document": document_a == document_b}
    if objective == "sop":
        return {"both segments are from one document": document_a == document_b}
    return {
        "a random B is from another document, a true one from the same": (document_a != document_b)
        == (label == 1)
    }


def _check_split(where: str, block: Block, held_out: NDArray[np.integer]) -> None:
    shared = np.intersect1d(block["document_ids"], held_out)
    if shared.size:
        raise UserError(f"{where}: document {shared[0]} is in both splits")


def _check_statistics(where: str, found: SampleStatistics, said: dict[str, Any]) -> None:
    """Compares the counts with the manifest's; losses of text are not visible in samples."""
    for name, value in vars(found).items():
        is_seen = not name.startswith(("num_document", "num_truncated", "num_dropped", "num_cuts"))
        if is_seen and value != said.get(name):
            raise UserError(f"{where}: {name} is {value}, the manifest says {said.get(name)}")


def _as_text(sample: dict[str, Any], tokenizer: Tokenizer, labels: tuple[str, str] | None) -> str:
    """A sample as readable text; `labels` are the meanings of 0 and 1, None if there is no B."""
    start, stop = int(sample["segment_b_start"]), int(sample["num_tokens"])
    pieces = [tokenizer.text_of(i) for i in sample["input_ids"][:stop]]
    count = int(sample["num_masked"])
    masks = zip(
        sample["masked_lm_positions"][:count], sample["masked_lm_labels"][:count], strict=True
    )
    answers = ", ".join(f"{p}: {tokenizer.piece(i)}" for p, i in masks)
    lines = [f"A: {''.join(pieces[1 : start - 1]).strip()}"]
    if labels:
        label = labels[sample["next_sentence_label"]]
        lines.append(f"B: {''.join(pieces[start : stop - 1]).strip()}  ({label})")
    return "\n".join([*lines, f"answers: {answers}"])
