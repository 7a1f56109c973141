"""Writes the files by which sentence-transformers makes vectors of texts, and compares these.

In the layout that all its versions and text-embeddings-inference read. Not for: the encoder and its
tokenizer, which are the other files of the folder (`dist_bert.huggingface.folder`).

Letters: N texts, H hidden.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.inference.embed import embed_sentences
from dist_bert.inference.text_batches import Text
from dist_bert.inference.trained_run import TrainedRun

_NUM_TEXTS = 256  # that are compared: seconds on a CPU
_MIN_COSINE = 0.9999
# Its names for what `embed_sentences` calls cls and all.
_POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
}


def write_sentence_files(
    folder: Path, hidden_size: int, max_positions: int, pooling: str, is_normalized: bool
) -> None:
    """Writes modules.json and the settings of its modules.

    Args:
        folder: has the encoder and its tokenizer.
        hidden_size: H.
        max_positions: longest text in tokens; longer ones are cut.
        pooling: `cls`, or `mean` of all tokens with [CLS] and [SEP].
        is_normalized: whether vectors have length 1.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += [("2_Normalize", "Normalize")] * is_normalized
    rows = [
        {
            "idx": index,
            "name": f"{index}",
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (path, kind) in enumerate(modules)
    ]
    for path, _ in modules[1:]:
        (folder / path).mkdir()
    files.write_json(
        folder / "1_Pooling/config.json",
        {
            "word_embedding_dimension": hidden_size,
            **{theirs: name == pooling for name, theirs in _POOLINGS.items()},
        },
    )
    if is_normalized:
        files.write_json(folder / "2_Normalize/config.json", {})
    files.write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_positions, "do_lower_case": False},
    )
    files.write_json(folder / "modules.json", rows)


def check_vectors(run: TrainedRun, folder: Path, pooling: str, texts: Iterable[str]) -> str:
    """Compares the vectors of sentence-transformers, if installed; returns the result as text.

    Args:
        run: ours.
        folder: exported from it.
        pooling: `cls` or `mean`, as in `write_sentence_files`.
        texts: the first ones are compared that are not empty and not too long, and that both
            libraries read alike: sentence-transformers strips them, and knows special pieces.

    Raises:
        UserError: vectors differ.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return "sentence-transformers is not installed, so its vectors were not compared"
    run = dataclasses.replace(run, model=run.model.cpu(), device=torch.device("cpu"))
    compared = _comparable(run, texts)
    layer = run.config.num_hidden_layers
    given = (Text(text, f"text {number}") for number, text in enumerate(compared))
    own = embed_sentences(run, given, layer, "all" if pooling == "mean" else pooling)
    ours = np.stack([embedded.vector for embedded in own]).astype(np.float64)  # (N, H)
    model: Any = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, trust_remote_code=False
    )
    theirs = model.encode(compared, show_progress_bar=False).astype(np.float64)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    lowest = float(((ours * theirs).sum(1) / lengths).min())
    found = (
        f"lowest cosine of ours and sentence-transformers' {lowest:.7f} of {len(compared)} texts"
    )
    if not lowest >= _MIN_COSINE:
        raise UserError(f"{found}, must be at least {_MIN_COSINE}; install another version of it")
    return found


def _comparable(run: TrainedRun, texts: Iterable[str]) -> list[str]:
    """The first texts of which there are vectors."""
    chosen: list[str] = []
    most = run.config.max_position_embeddings - 2  # [CLS] and [SEP]
    for text in texts:
        is_plain = text == text.strip() and "[" not in text
        if is_plain and 0 < len(run.tokenizer.encode_with_mask(text)) <= most:
            chosen.append(text)
        if len(chosen) == _NUM_TEXTS:
            break
    return chosen
