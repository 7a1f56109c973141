"""Imports a published BERT as a folder that can replace the folder of a run.

A WordPiece vocabulary is renumbered: the five special pieces first, as this system requires, the
others in their order; the rows of the word embeddings and of the MLM bias move accordingly. A
byte-level BPE keeps its file and, in this folder as in every export, the published order of rows:
they move whenever the folder is read. The folder appears only after it has been loaded and verified
against transformers with the published one.

Letters: R rows of the word embeddings, V pieces.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_bert.checkpoint.run_dir import TOKENIZER_NAME
from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.checkpoint.weights import in_order, published_order, read_stored, require_rows
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.common.hashing import hash64
from dist_bert.huggingface.folder import (
    load_model,
    load_tokenizer,
    pretrained_kind,
    write_model,
    write_tokenizer,
)
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.tokenizer.tokenizer import Tokenizer

MODEL_NAME = "model.json"  # the architecture for --model; config.json is transformers' own
RECORD_NAME = "import.json"

_MIN_LINES = 3_000
_LINE_PIECES = 8


def import_model(
    source: WeightSource, output_dir: Path, sample_text: str | None, allow_differences: bool
) -> None:
    """Writes the folder, loads it, compares, and prints the results.

    Args:
        source: folder of published weights.
        output_dir: must be missing or empty; `check_new_folder` has passed.
        sample_text: file of further texts to compare, one per line.
        allow_differences: whether to only report texts with different token ids.

    Raises:
        UserError: it cannot be imported, or transformers' outputs or ids differ; leaves no folder.
    """
    from dist_bert.huggingface.compare import check_ids, check_outputs, read_lines
    from dist_bert.huggingface.tokenizer import ODD_TEXTS

    sample = [] if sample_text is None else read_lines(sample_text)
    published = load_tokenizer(source.path)
    stored = read_stored(source)
    with files.whole_folder(output_dir) as folder:
        tokenizer, order = _write_tokenizer(source, published, folder)
        weights = stored.tensors if source.tokenizer else in_order(stored.tensors, order)
        write_model(weights, source.model, folder, tokenizer)
        files.write_json(folder / MODEL_NAME, dataclasses.asdict(source.model))
        run = TrainedRun.load(folder)
        print(_summary(run, stored.left_out), flush=True)
        new_ids = order.argsort()
        texts = [*ODD_TEXTS, *vocabulary_texts(run.tokenizer), *sample]
        theirs = load_model(source.path, pretrained_kind(source.model))
        outputs = check_outputs(run, theirs, published, texts, new_ids)
        print(f"outputs    {outputs}", flush=True)

        def encode(window: list[str]) -> list[list[int]]:
            batch: list[list[int]] = published(window, add_special_tokens=False)["input_ids"]
            return [new_ids[ids].tolist() for ids in batch]

        token_ids = check_ids(run.tokenizer, encode, texts, allow_differences)
        record = {
            "source": str(source.path.absolute()),
            "missing_heads": stored.missing_heads,
            "left_out": stored.left_out,
            "outputs": outputs,
            "token_ids": token_ids,
        }
        files.write_json(folder / RECORD_NAME, record)


def vocabulary_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Lines that contain every text piece at least once, shuffled; every third in upper case."""
    pieces = np.arange(tokenizer.num_reserved_pieces, tokenizer.vocab_size)
    num_copies = -(-_MIN_LINES * _LINE_PIECES // max(1, pieces.size))
    copies, places = np.divmod(np.arange(num_copies * pieces.size), pieces.size)
    mixed = pieces[places[np.argsort(hash64("vocabulary texts", copies, places))]]
    for number, begin in enumerate(range(0, mixed.size, _LINE_PIECES)):
        line = "".join(map(tokenizer.text_of, mixed[begin : begin + _LINE_PIECES].tolist()))
        yield line.upper() if number % 3 == 2 else line


def _write_tokenizer(
    source: WeightSource, published: Any, folder: Path
) -> tuple[Tokenizer, torch.Tensor]:
    """Writes all files of the tokenizer; returns it, and (R,) the published id of each of ours."""
    path = folder / TOKENIZER_NAME
    num_rows = source.model.vocab_size
    order = None
    if source.tokenizer is not None:  # of launch/export_model.py, or byte-level BPE: as it is
        files.write_bytes(path, source.tokenizer.read_bytes())
    else:
        from dist_bert.huggingface.tokenizer import renumbered

        if not getattr(published, "is_fast", False):
            raise UserError(
                f"{source.path}: its tokenizer is a {type(published).__name__}, which is not of"
                " the tokenizers library: only WordPiece and byte-level BPE can be imported"
            )
        fast, places = renumbered(published.backend_tokenizer, num_rows, str(source.path))
        files.write_bytes(path, fast.to_str(pretty=True).encode())
        order = torch.tensor(places)
    tokenizer = Tokenizer(path)
    require_rows(tokenizer, source)
    config = source.model
    write_tokenizer(tokenizer, config.max_position_embeddings, folder, config.type_vocab_size > 0)
    return tokenizer, published_order(tokenizer, num_rows) if order is None else order


def _summary(run: TrainedRun, left_out: tuple[str, ...]) -> str:
    """Summary of the imported model, in a few lines."""
    tokenizer, config = run.tokenizer, run.config
    moved = {
        "SentencePiece": "",
        "WordPiece": ", special ones moved to 0-4",
        "byte-level BPE": ", special ones at 0-4 here, at their published ids in folders for"
        " transformers",
    }
    num_parameters = sum(value.numel() for value in run.own_weights().values())
    surplus = config.vocab_size - tokenizer.vocab_size
    rows = {
        "model": f"{num_parameters / 1e6:.1f} M parameters, {config.num_hidden_layers} layers of"
        f" {config.hidden_size}, {config.max_position_embeddings} positions",
        "vocabulary": f"{tokenizer.kind}, {tokenizer.vocab_size:,} pieces"
        + (f", {surplus:,} rows of no piece" if surplus else "")
        + moved[tokenizer.kind],
    }
    if run.missing_heads:
        rows["not in it"] = ", ".join(run.missing_heads)
    if left_out:
        rows["left out"] = ", ".join(left_out)
    return "\n".join(f"{name:<10} {value}" for name, value in rows.items())
