"""Exports a pretrained run as a folder that Hugging Face's transformers loads without this package.

The folder appears only after it has been loaded and verified: equal logits, equal token ids. Not
for: fine-tuned runs (`dist_bert.huggingface.export_finetuned`).
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dist_bert.checkpoint.run_dir import CONFIG_NAME
from dist_bert.checkpoint.weights import published_order
from dist_bert.common import files
from dist_bert.common.redaction import redacted_values
from dist_bert.common.settings import read_json
from dist_bert.data.masking import restore
from dist_bert.data.reader import SampleReader
from dist_bert.data.shard_format import MANIFEST_NAME, Manifest
from dist_bert.huggingface.folder import (
    load_model,
    load_tokenizer,
    pretrained_kind,
    write_model,
    write_tokenizer,
)
from dist_bert.huggingface.onnx_model import write_onnx
from dist_bert.huggingface.pretrained_card import model_card
from dist_bert.huggingface.sentence_vectors import check_vectors, write_sentence_files
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.published_config import require_published_form
from dist_bert.model.published_names import family
from dist_bert.tokenizer.tokenizer import Tokenizer

_NUM_SAMPLES = 2_048  # of the shards, to compare their texts


def export(
    run: TrainedRun,
    run_dir: Path,
    output_dir: Path,
    sample_text: str | None,
    allow_differences: bool,
    with_onnx: bool = False,
    sentence_pooling: str | None = None,
    is_normalized: bool = False,
) -> None:
    """Writes the folder, loads it, compares, and prints the results.

    transformers' BERT has one activation for the layers and the MLM head. If the run has two, the
    folder only has the encoder, the pooler and the NSP head, and a printed line explains it. Its
    ModernBERT and NomicBert have only the MLM head, and a line names what is left out.

    Args:
        run: loaded from `run_dir`.
        run_dir: for its configuration, scores and tokenizer.
        output_dir: must be missing or empty; `check_new_folder` has passed.
        sample_text: file of texts, one per line; None = those of the run's shards.
        allow_differences: whether to only report texts with different token ids.
        with_onnx: whether to write `model.onnx`, too.
        sentence_pooling: `mean` or `cls`: write the files of sentence-transformers, too.
        is_normalized: whether their vectors have length 1.

    Raises:
        UserError: transformers has no such model, or its logits or ids differ; leaves no folder.
    """
    from dist_bert.huggingface.compare import check_ids, check_outputs

    require_published_form(run.config)
    if without := tuple(head for head, names in family(run.config).heads.items() if not names):
        print(
            f"left out   {', '.join(without)}: {pretrained_kind(run.config)} has none", flush=True
        )
        run = dataclasses.replace(run, missing_heads=(*run.missing_heads, *without))
    if no_mlm_head := _why_no_mlm_head(run):
        print(f"no MLM head: {no_mlm_head}", flush=True)
        run = dataclasses.replace(run, missing_heads=(*run.missing_heads, "MLM head"))
    resolved = redacted_values(read_json(run_dir / CONFIG_NAME))
    texts = _sample_texts(resolved, run.tokenizer, sample_text)
    with files.whole_folder(output_dir) as folder:
        write_model(run.own_weights(), run.config, folder, run.tokenizer)
        has_segments = run.config.type_vocab_size > 0
        write_tokenizer(run.tokenizer, run.config.max_position_embeddings, folder, has_segments)
        tokenizer = load_tokenizer(folder)
        theirs = load_model(folder, pretrained_kind(run.config))
        new_ids = published_order(run.tokenizer, run.config.vocab_size).argsort()
        equal_outputs = check_outputs(run, theirs, tokenizer, texts, new_ids)
        print(f"outputs    {equal_outputs}", flush=True)

        def encode(window: list[str]) -> list[list[int]]:
            batch: list[list[int]] = tokenizer(window, add_special_tokens=False)["input_ids"]
            return [new_ids[ids].tolist() for ids in batch]

        equal_ids = check_ids(run.tokenizer, encode, texts, allow_differences)
        check = f"Outputs: {equal_outputs}. Token ids: {equal_ids}."
        if with_onnx:
            (kind,) = read_json(folder / CONFIG_NAME)["architectures"]  # without missing heads
            equal_onnx = write_onnx(load_model(folder, kind), folder)
            print(f"onnx       {equal_onnx}", flush=True)
            check += f" ONNX: {equal_onnx}."
        if sentence_pooling is not None:
            width, most = run.config.hidden_size, run.config.max_position_embeddings
            write_sentence_files(folder, width, most, sentence_pooling, is_normalized)
            equal_vectors = check_vectors(run, folder, sentence_pooling, texts)
            print(f"vectors    {equal_vectors}", flush=True)
            check += f" Vectors: {equal_vectors}."
        card = model_card(
            output_dir.absolute().name, resolved, run.step, run_dir, run.tokenizer.kind, check,
            no_mlm_head, run.is_average,
        )  # fmt: skip
        files.write_bytes(folder / "README.md", card.encode())


def _why_no_mlm_head(run: TrainedRun) -> str:
    """The reason for an export without MLM head; empty if it has one."""
    if "MLM head" in run.missing_heads:
        return "the model has none, because it was saved for another task"
    config = run.config
    if config.architecture == "bert" and config.mlm_hidden_act != config.hidden_act:
        return (
            f"its activation is {config.mlm_hidden_act} (mlm_hidden_act), that of the layers"
            f" {config.hidden_act} (hidden_act), but transformers uses one for both, with which it"
            " would predict differently"
        )
    return ""


def _sample_texts(
    resolved: dict[str, Any], tokenizer: Tokenizer, sample_text: str | None
) -> list[str]:
    """Odd texts, then the lines of a file, or texts of the run's shards if they still exist.

    Other shards may have replaced them, or may be at the path where an imported model's would be.
    """
    from dist_bert.huggingface.compare import read_lines
    from dist_bert.huggingface.tokenizer import ODD_TEXTS

    if sample_text is not None:
        return [*ODD_TEXTS, *read_lines(sample_text)]
    phases = resolved.get("phases", {}).values()
    places = [place for phase in phases for place in phase["shards"]]
    places = places or [resolved.get("run", {}).get("shards", "data/shards")]
    for shards in map(Path, reversed(places)):
        if (shards / MANIFEST_NAME).exists() and (
            Manifest.load(shards).tokenizer["fingerprint"] == tokenizer.fingerprint
        ):
            return [*ODD_TEXTS, *_shard_texts(shards, tokenizer)]
    print(
        f"token ids  no shards of this tokenizer in {', '.join(dict.fromkeys(places))}: only"
        f" {len(ODD_TEXTS)} odd texts are compared; --sample_text FILE compares yours"
    )
    return list(ODD_TEXTS)


def _shard_texts(shards: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Both segments of the first samples, without masks: held-out samples if there are any."""
    manifest = Manifest.load(shards)
    split = "validation" if any(s.num_samples for s in manifest.splits["validation"]) else "train"
    reader = SampleReader(shards, manifest, split)
    blocks = np.repeat(np.arange(len(reader.block_sizes)), reader.block_sizes)[:_NUM_SAMPLES]
    rows = np.concatenate([np.arange(size) for size in reader.block_sizes])[:_NUM_SAMPLES]
    columns = reader.gather(blocks, rows)
    masks = (columns["masked_lm_positions"], columns["masked_lm_labels"], columns["num_masked"])
    originals = restore(columns["input_ids"], *masks)
    places = zip(originals, columns["segment_b_start"], columns["num_tokens"], strict=True)
    for ids, start, end in places:
        yield tokenizer.decode(ids[:start])
        yield tokenizer.decode(ids[start:end])
