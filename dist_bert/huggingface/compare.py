"""Compares outputs and token ids of transformers with ours.

Not for: writing folders (`dist_bert.huggingface.folder`).

Letters: B texts of a batch, S padded length, T tokens, H hidden, R rows of the word embeddings.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_bert.common.errors import UserError
from dist_bert.huggingface.tokenizer import compare, read_model
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.micro_batches import from_padded
from dist_bert.model.published_names import family
from dist_bert.tokenizer.tokenizer import Tokenizer

_NUM_PAIRS = 8  # of the longest texts, to compare logits: up to 1 GB with 512 positions
_LONG = 1_024  # tokens of a text, where a model takes more
# Of the largest value. Float32 sums in another order, which changes less than 1e-6 of it.
_TOLERANCE = 1e-4
_SHOWN_DIFFERENCES = 10


def check_outputs(
    run: TrainedRun, model: Any, tokenizer: Any, texts: Sequence[str], new_ids: Tensor | None = None
) -> str:
    """Compares all outputs of a model for pairs of the longest texts; returns the result as text.

    Of a model with local layers, also for all texts as one, which is longer than their window.

    Args:
        run: ours; heads that it lacks are skipped.
        model: of transformers, in float32.
        tokenizer: of transformers, which makes the ids.
        texts: at least two.
        new_ids: (R,) our id for each of its ids; None = ids are the same.

    Raises:
        UserError: they differ by more than rounding.
    """
    longest = sorted(texts, key=len)[-2 * _NUM_PAIRS :]
    first, max_length = longest[::2], run.config.max_position_embeddings
    if run.config.window is not None:
        max_length = min(max_length, max(_LONG, 2 * run.config.local_attention))
        first = [" ".join(itertools.islice(texts, max_length)), *first]
    batch = tokenizer(
        first,
        longest[1::2] if run.config.type_vocab_size > 1 else None,
        truncation=True,
        max_length=max_length,
        padding=True,
        return_tensors="pt",
    )
    new_ids = torch.arange(run.config.vocab_size) if new_ids is None else new_ids
    with torch.no_grad():
        has_pairs = family(run.config).heads["NSP head"]
        of_kind = _output_pairs if has_pairs else _masked_lm_pairs
        pairs = of_kind(run, model, batch, new_ids)
    return tell_difference(pairs, int(batch["attention_mask"].sum()), len(batch["input_ids"]))


def tell_difference(
    pairs: dict[str, tuple[Tensor, Tensor]], num_tokens: int, num_samples: int
) -> str:
    """Compares our outputs with theirs; returns the result as text.

    Args:
        pairs: name -> ours and theirs, of equal shape.
        num_tokens: in the input.
        num_samples: likewise.

    Raises:
        UserError: they differ by more than rounding.
    """
    # torch's max keeps a NaN, Python's may lose it
    difference = float(torch.stack([(a - b).abs().max() for a, b in pairs.values()]).max())
    largest = float(torch.stack([a.abs().max() for a, _ in pairs.values()]).max())
    found = (
        f"largest difference {difference:.1e} at a largest value of {largest:.1f}, float32, for"
        f" {num_tokens:,} tokens of {num_samples} samples"
    )
    if not difference <= _TOLERANCE * max(1.0, largest):
        raise UserError(
            f"{', '.join(pairs)} of transformers differ from ours ({found}), must be equal up to"
            " rounding; install the versions of constraints.txt"
        )
    return f"{', '.join(pairs)}: {found}"


def _output_pairs(
    run: TrainedRun, model: Any, batch: Any, new_ids: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Our outputs and theirs: hidden states (T, H), and those of each existing head."""
    ours = run.model.cpu()
    theirs = model(**batch, output_hidden_states=True)
    is_token = batch["attention_mask"].bool()
    unpadded: dict[str, Any] = from_padded(
        new_ids[batch["input_ids"]], batch["attention_mask"], batch["token_type_ids"]
    )
    hidden = ours.encoder(**unpadded)
    cls_hidden = hidden.index_select(0, unpadded["cu_seqlens"][:-1])
    their_hidden = theirs.hidden_states[-1]
    pairs = {"hidden states": (hidden, their_hidden[is_token])}
    if "MLM head" not in run.missing_heads:
        logits = ours.mlm_logits(hidden)[:, new_ids]  # (T, R)
        pairs["MLM logits"] = (logits, theirs.prediction_logits[is_token])
    if "pooler" not in run.missing_heads:
        pairs["pooled"] = (ours.pool(cls_hidden), model.bert.pooler(their_hidden))
        if "NSP head" not in run.missing_heads:
            pairs["NSP logits"] = (ours.nsp_logits(cls_hidden), theirs.seq_relationship_logits)
    return pairs


def _masked_lm_pairs(
    run: TrainedRun, model: Any, batch: Any, new_ids: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """The same of a model whose published form has the MLM head alone."""
    ours = run.model.cpu()
    is_token = batch["attention_mask"].bool()
    ids = new_ids[batch["input_ids"]]
    segments = batch["token_type_ids"] if "token_type_ids" in batch else torch.zeros_like(ids)
    unpadded: dict[str, Any] = from_padded(ids, batch["attention_mask"], segments)
    hidden = ours.encoder(**unpadded)
    pairs = {"hidden states": (hidden, model.base_model(**batch).last_hidden_state[is_token])}
    if "MLM head" not in run.missing_heads:
        logits = ours.mlm_logits(hidden)[:, new_ids]  # (T, R)
        pairs["MLM logits"] = (logits, model(**batch).logits[is_token])
    return pairs


def check_ids(
    tokenizer: Tokenizer,
    encode: Callable[[list[str]], list[list[int]]],
    texts: Sequence[str],
    allow_differences: bool,
) -> str:
    """Compares the ids of texts, prints those that differ; returns the result as text.

    Args:
        tokenizer: ours.
        encode: transformers' ids of texts, in our numbering.
        texts: any number.
        allow_differences: whether to only report differences.

    Raises:
        UserError: some differ and this is not allowed.
    """
    proto = read_model(tokenizer.path) if tokenizer.kind == "SentencePiece" else None
    result = compare(tokenizer, proto, encode, texts)
    num_other = len(result.differences) - result.num_ties
    found = f"{result.num_compared:,} texts compared, {num_other:,} differ"
    if result.num_ties:
        found += f", {result.num_ties:,} are segmented differently with equal likelihood (ties)"
    if result.num_special:
        found += f", {result.num_special:,} that spell a special piece skipped"
    print(f"token ids  {found}", flush=True)
    # Ties come last: neither segmentation is wrong.
    for difference in sorted(result.differences, key=lambda d: d.is_tie)[:_SHOWN_DIFFERENCES]:
        print(
            f"  {_excerpt(tokenizer, difference.ids, difference.fast_ids)}  in"
            f" {difference.text[:60]!r}{'  (equally likely)' if difference.is_tie else ''}"
        )
    if num_other and not allow_differences:
        raise UserError(
            f"{num_other:,} of {result.num_compared:,} texts have other token ids in transformers,"
            " must be 0; check those above, and allow them with --allow_differences true if they"
            " are acceptable"
        )
    return found


def read_lines(path: str) -> list[str]:
    """The lines of --sample_text.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"--sample_text {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"--sample_text {path}: is not UTF-8 ({error.reason}); convert it"
        ) from None


def _excerpt(tokenizer: Tokenizer, ids: list[int], fast_ids: list[int]) -> str:
    """The first ids that differ, with their pieces."""
    place = next((i for i, (a, b) in enumerate(zip(ids, fast_ids, strict=False)) if a != b), None)
    place = min(len(ids), len(fast_ids)) if place is None else place
    ours, theirs = (
        " ".join(f"{i}={tokenizer.piece(i)}" for i in side[place : place + 4]) or "end"
        for side in (ids, fast_ids)
    )
    return f"id {place}: {ours} here, {theirs} in transformers"
