"""Small data sets and run folders for the tests of the training half; block sizes pairwise differ.

Samples look like prepared ones: [CLS] A [SEP] B [SEP] or [CLS] A [SEP], masks drawn by the library,
originals kept beside them so that a test knows what it must find.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.common import files
from dist_bert.common.hashing import hash64
from dist_bert.data.masking import MaskingVocabulary, draw_masks, num_to_mask
from dist_bert.data.shard_format import (
    TOKENIZER_NAME,
    BlockRecord,
    FieldTypes,
    Manifest,
    ShardRecord,
    write_shard,
)
from dist_bert.model.config import ModelConfig

Block = dict[str, NDArray[Any]]
Layout = Sequence[Sequence[int]]  # samples of every block of every shard

VOCAB_SIZE = 101
SEQUENCE_LENGTH = 31
TRAIN_LAYOUT: Layout = ((5, 3), (7,), (4, 2, 6))  # 27 samples
VALIDATION_LAYOUT: Layout = ((8,), (11,))  # 19 samples
NO_TOKENIZER = b"only its hash is looked at"
TINY_MODEL = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=41,
)

# Every part of ModernBERT; how many layers are local, and their window, are a test's own.
MODERN_PARTS: dict[str, Any] = {
    "architecture": "modern",
    "norm": "pre",
    "positions": "rotary",
    "feed_forward": "geglu",
    "bias": False,
    "norm_bias": False,
    "type_vocab_size": 0,
}


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set on disk, and what lies in it."""

    folder: Path
    manifest: Manifest
    blocks: dict[str, list[Block]]  # split -> blocks in the order of the shards
    originals: dict[str, list[NDArray[Any]]]  # split -> (B, S) of each block, before masking


def make_block(
    size: int,
    max_tokens: int,
    seed: int,
    vocab_size: int = VOCAB_SIZE,
    pair_objective: str = "nsp",
) -> tuple[Block, NDArray[Any]]:
    """A block of random samples of 7 to `max_tokens` tokens, the last of full length."""
    rng = np.random.default_rng(seed)
    types = FieldTypes.fitting(vocab_size, 1_000)
    num_tokens = rng.integers(7, max_tokens + 1, size)
    num_tokens[-1] = max_tokens
    segment_b_start = rng.integers(3, num_tokens - 2)
    if pair_objective == "none":
        segment_b_start = num_tokens
    column = np.arange(max_tokens)
    originals = rng.integers(5, vocab_size, (size, max_tokens)).astype(types.piece)
    originals[:, 0] = 2
    originals[np.arange(size), segment_b_start - 1] = 3
    originals[np.arange(size), num_tokens - 1] = 3
    originals[column >= num_tokens[:, None]] = 0
    keys = hash64(seed, "synthetic", np.arange(size))
    num_masked = num_to_mask((originals >= 5).sum(axis=1), 0.15, keys)
    vocabulary = MaskingVocabulary(vocab_size=vocab_size, num_reserved_pieces=5)
    ids, positions, labels = draw_masks(originals, num_tokens, num_masked, keys, vocabulary)
    block = {
        "input_ids": ids,
        "num_tokens": num_tokens,
        "segment_b_start": segment_b_start,
        "masked_lm_positions": positions,
        "masked_lm_labels": labels,
        "num_masked": num_masked,
        "next_sentence_label": rng.integers(0, 2, size) * (segment_b_start < num_tokens),
        "document_ids": rng.integers(0, 1_000, (size, 2)),
    }
    return {field: values.astype(types.of(field)) for field, values in block.items()}, originals


def write_data_set(
    folder: Path,
    train: Layout = TRAIN_LAYOUT,
    validation: Layout = VALIDATION_LAYOUT,
    vocab_size: int = VOCAB_SIZE,
    tokenizer: bytes = NO_TOKENIZER,
    pair_objective: str = "nsp",
) -> DataSet:
    """Writes shards, tokenizer file and manifest; up to 21 blocks differ pairwise in width."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(folder / TOKENIZER_NAME, tokenizer)
    blocks: dict[str, list[Block]] = {"train": [], "validation": []}
    originals: dict[str, list[NDArray[Any]]] = {"train": [], "validation": []}
    splits: dict[str, tuple[ShardRecord, ...]] = {}
    seed = 0
    for split, layout in (("train", train), ("validation", validation)):
        records = []
        for shard, sizes in enumerate(layout):
            first = len(blocks[split])
            for size in sizes:
                seed += 1
                max_tokens = 11 + seed * 8 % (SEQUENCE_LENGTH - 10)
                block, unmasked = make_block(size, max_tokens, seed, vocab_size, pair_objective)
                blocks[split].append(block)
                originals[split].append(unmasked)
            path = folder / f"{split}-{shard:05d}.tar"
            records.append(write_shard(path, {"split": split}, blocks[split][first:]))
        splits[split] = tuple(records)
    manifest = Manifest(
        config={
            "sequence_length": SEQUENCE_LENGTH,
            "pair_objective": pair_objective,
            "whole_words": False,
            "mean_span_length": 0.0,
            "masked_lm_prob": 0.15,
        },
        tokenizer={
            "fingerprint": hashlib.sha256(tokenizer).hexdigest(),
            "vocab_size": vocab_size,
            "num_reserved_pieces": 5,
        },
        inputs=[],
        totals={"documents": 1_000},
        statistics={},
        splits=splits,
    )
    manifest.save(folder)
    return DataSet(folder, manifest, blocks, originals)


def layout_columns(layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shard and size of every block: what SampleOrder takes."""
    shard_of_block = np.repeat(np.arange(len(layout)), [len(sizes) for sizes in layout])
    return shard_of_block, np.array([size for sizes in layout for size in sizes])


def block_shapes(records: Sequence[ShardRecord]) -> list[tuple[int, int, int]]:
    """(B, S, P) of every block, for tests that want them different."""
    blocks: list[BlockRecord] = [block for record in records for block in record.blocks]
    return [(b.num_samples, b.max_tokens, b.max_masked) for b in blocks]


def write_run(
    run_dir: Path, tokenizer: Path, model: ModelConfig, deepspeed: dict[str, Any], step: int = 17
) -> Any:
    """A run's folder as pretraining leaves it, with one checkpoint; returns the model in it."""
    import torch

    from dist_bert.checkpoint.format import WEIGHT, Fragment, FragmentFile, write_state
    from dist_bert.model.bert import BertForPreTraining

    torch.manual_seed(3)
    bert = BertForPreTraining(model)
    with torch.no_grad():
        for parameter in bert.parameters():  # biases and LayerNorms too: no weight is what it was
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    checkpoint = run_dir / "checkpoints" / f"step-{step:09d}"
    checkpoint.mkdir(parents=True)
    parameters = dict(bert.named_parameters())
    fragments = [Fragment(n, 0, {WEIGHT: p.data.view(-1)}) for n, p in parameters.items()]
    contents = {
        "state": {"step": step},
        "identity": {},
        "shapes": {name: list(parameter.shape) for name, parameter in parameters.items()},
        "files": [dataclasses.asdict(FragmentFile.write(checkpoint, 0, fragments))],
    }
    write_state(checkpoint, contents)
    (run_dir / "checkpoints" / "latest").write_text(f"{checkpoint.name}\n")
    config = {"model": dataclasses.asdict(model), "deepspeed": deepspeed}
    files.write_json(run_dir / "config.json", config)
    (run_dir / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return bert.eval()


def write_finetuned_run(
    run_dir: Path,
    tokenizer: Path,
    model: ModelConfig,
    task_name: str,
    facts: dict[str, Any],
    examples: Path,
    **read: str,
) -> Any:
    """A fine-tuning run's folder as it is left at the end, with random weights; returns the head.

    Args:
        run_dir: new.
        tokenizer: the file of the encoder's tokenizer.
        model: the architecture.
        task_name: one of `dist_bert.finetuning.examples.TASKS`.
        facts: what the task is made with, beside its tokenizer.
        examples: what it was scored on.
        read: settings of reading them.
    """
    import torch
    from safetensors.torch import save_file

    from dist_bert.finetuning.config import FinetuneConfig
    from dist_bert.finetuning.job import task_of
    from dist_bert.finetuning.readers import ReadConfig
    from dist_bert.tokenizer.tokenizer import Tokenizer

    run_dir.mkdir(parents=True)
    (run_dir / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    task = {"name": task_name, **facts}
    torch.manual_seed(4)
    head = task_of(task, Tokenizer(tokenizer), str(run_dir)).new_head(model)
    with torch.no_grad():
        for parameter in head.parameters():  # far from the initial ones: answers differ
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    save_file(head.state_dict(), run_dir / "model.safetensors")
    settings = FinetuneConfig(task=task_name, train="train.txt", eval=str(examples))
    files.write_json(
        run_dir / "config.json",
        {
            "model": dataclasses.asdict(model),
            "task": task,
            "finetune": dataclasses.asdict(settings),
            "read": dataclasses.asdict(ReadConfig(**read)),  # type: ignore[arg-type]
            "run": {"num_train_steps": 29, "warmup_steps": 3, "schedule": "linear"},
            "deepspeed": {"train_batch_size": 8, "optimizer": {"type": "AdamW"}},
            "encoder": {"path": "somewhere/the_encoder", "checkpoint": ""},
            "sets": {"train": {"examples": 1_009}, "eval": {"examples": 40}},
        },
    )
    score = {"name": "some", "precision": 0.5, "recall": 0.25, "f1": 0.75, "support": 11}
    results = {
        "main": "f1",
        "values": {"f1": 0.8125},
        "per_class": [] if task_name == "question_answering" else [score],
        "confusion": None,
        **{"step": 17, "lr": 5e-5, "seed": 42, "identity": {}, "loss": 0.5},
    }
    if facts.get("may_lack_answers"):
        results["null_score_threshold"] = 0.5
    files.write_json(run_dir / "results.json", results)
    return head.eval()
