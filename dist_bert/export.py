"""A pretrained run as a folder that Hugging Face's transformers loads, without this package.

The folder appears only when it has been loaded back and found to do what the run does: equal
logits, equal token ids. Not for: our own weights file (`dist_bert.checkpoint_files`).

Letters: B texts of a batch, S padded length, V pieces of the model.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from dist_bert import files
from dist_bert.config import ModelConfig, read_json
from dist_bert.errors import UserError
from dist_bert.hf_names import TIED, to_published
from dist_bert.inference import TrainedRun
from dist_bert.masking import restore
from dist_bert.model import BertForPreTraining, unpad
from dist_bert.model_card import model_card
from dist_bert.reader import SampleReader
from dist_bert.run_dir import CONFIG_NAME, TOKENIZER_NAME, WEIGHTS_NAME
from dist_bert.shard_format import MANIFEST_NAME, Manifest
from dist_bert.tokenizer import CLS_ID, MASK_ID, PAD_ID, SEP_ID, Tokenizer
from dist_bert.tokenizer_config import SPECIAL_PIECES

_SPECIAL_TOKENS = dict(
    zip(
        ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
        SPECIAL_PIECES,
        strict=True,
    )
)
_NUM_SAMPLES = 2_048  # of the shards, whose texts are compared
_NUM_PAIRS = 8  # of the longest texts, whose logits are compared: up to 1 GB with 512 positions
# Of the largest logit. Float32 adds up in another order, which makes less than 1e-6 of it.
_LOGITS_TOLERANCE = 1e-4
_SHOWN_DIFFERENCES = 10


def check_export(config: ModelConfig, output_dir: Path) -> None:
    """Finds out before anything slow whether a run can be exported to a folder.

    Raises:
        UserError: it cannot.
    """
    if config.hidden_act != config.mlm_hidden_act:
        raise UserError(
            f"mlm_hidden_act = {config.mlm_hidden_act}: differs from hidden_act ="
            f" {config.hidden_act}, and transformers has one activation for both, so it would"
            " compute other answers; train with both alike to export"
        )
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(
            f"--output_dir {output_dir}: is there already and not an empty folder; name a new one"
        )
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: pip install -c constraints.txt -e '.[huggingface]'"
        ) from None


def export(
    run: TrainedRun,
    run_dir: Path,
    output_dir: Path,
    sample_text: str | None,
    allow_differences: bool,
) -> None:
    """Writes the folder, loads it back, compares, and prints what it finds.

    Args:
        run: loaded from `run_dir`.
        run_dir: for its configuration, scores and tokenizer.
        output_dir: is missing or empty; `check_export` has passed.
        sample_text: file of texts, one a line; None = those of the run's shards.
        allow_differences: whether texts with other token ids are only told.

    Raises:
        UserError: transformers computes other logits or makes other ids; no folder is left.
    """
    from dist_bert.hf_tokenizer import read_model

    resolved = read_json(run_dir / CONFIG_NAME)
    proto = read_model(run.tokenizer.path)
    texts = _sample_texts(resolved, run.tokenizer, sample_text)
    with _whole_folder(output_dir) as folder:
        _write_model(run, folder)
        _write_tokenizer(run, proto, folder)
        model, tokenizer = _load(folder)
        equal_logits = _check_logits(run, model, tokenizer, texts)
        print(f"logits     {equal_logits}", flush=True)
        equal_ids = _check_ids(run, proto, tokenizer, texts, allow_differences)
        check = f"Logits: {equal_logits}. Token ids: {equal_ids}."
        card = model_card(output_dir.absolute().name, resolved, run.step, run_dir, check)
        files.write_bytes(folder / "README.md", card.encode())


@contextlib.contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to write to that becomes `path` when the block ends without an error."""
    path = path.absolute()  # "." has no name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        with files.names_errors(path):
            yield temporary
            files.fsync(temporary)
            os.replace(temporary, path)  # an empty folder may be in its place
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    files.fsync(path.parent)


def _write_model(run: TrainedRun, folder: Path) -> None:
    """Weights and config.json; the decoder that is tied is left out, as transformers does."""
    published = to_published(run.model.state_dict(), run.config)
    tensors = {  # cloned: views of one tensor are not stored
        name: value.detach().cpu().clone() for name, value in published.items() if name not in TIED
    }
    files.write_bytes(folder / WEIGHTS_NAME, save(tensors, {"format": "pt"}))
    architecture = dataclasses.asdict(run.config)
    del architecture["mlm_hidden_act"]  # has no name there: see `check_export`
    config = {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        **architecture,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "pad_token_id": PAD_ID,
        "cls_token_id": CLS_ID,
        "sep_token_id": SEP_ID,
        "mask_token_id": MASK_ID,
        "dtype": "float32",
    }
    files.write_json(folder / CONFIG_NAME, config)


def _write_tokenizer(run: TrainedRun, proto: Any, folder: Path) -> None:
    """tokenizer.json, the two files that name its parts, and the model that it is made from."""
    from dist_bert.hf_tokenizer import fast_tokenizer

    files.write_bytes(folder / "tokenizer.json", fast_tokenizer(proto).to_str(pretty=True).encode())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # with BertTokenizer it would be WordPiece
        "model_max_length": run.config.max_position_embeddings,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **_SPECIAL_TOKENS,
    }
    files.write_json(folder / "tokenizer_config.json", settings)
    files.write_json(folder / "special_tokens_map.json", _SPECIAL_TOKENS)
    files.write_bytes(folder / TOKENIZER_NAME, run.tokenizer.path.read_bytes())


def _check_logits(run: TrainedRun, model: Any, tokenizer: Any, texts: list[str]) -> str:
    """Compares all logits of pairs of texts; returns what was found.

    Raises:
        UserError: they differ by more than rounding.
    """
    texts = sorted(texts, key=len)[-2 * _NUM_PAIRS :]
    batch = tokenizer(
        texts[::2],
        texts[1::2] if run.config.type_vocab_size > 1 else None,
        truncation=True,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        theirs = model(**batch)
        ours = _logits(run.model.cpu(), batch)
    is_token = batch["attention_mask"].bool()
    num_pieces = run.config.vocab_size
    pairs = (
        (ours[0][:, :num_pieces], theirs.prediction_logits[is_token]),
        (ours[1], theirs.seq_relationship_logits),
    )
    # torch's max keeps a NaN, Python's may lose it
    difference = float(torch.stack([(a - b).abs().max() for a, b in pairs]).max())
    largest = float(torch.stack([a.abs().max() for a, _ in pairs]).max())
    found = (
        f"largest difference {difference:.1e} where they reach {largest:.1f}, float32, at"
        f" {int(is_token.sum()):,} tokens of {len(is_token)} samples"
    )
    if not difference <= _LOGITS_TOLERANCE * max(1.0, largest):
        raise UserError(
            f"logits of transformers differ from the run's ({found}), must be equal up to rounding;"
            " install the versions of constraints.txt"
        )
    return found


def _logits(model: BertForPreTraining, batch: Any) -> tuple[Tensor, Tensor]:
    """Our answers to padded input: of all tokens (T, V), and of next sentences (B, 2)."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    unpadded: dict[str, Any] = unpad(*(batch[name] for name in names))
    hidden = model.encoder(**unpadded)
    cls_hidden = hidden.index_select(0, unpadded["cu_seqlens"][:-1])
    return model.mlm_logits(hidden), model.nsp_logits(cls_hidden)


def _check_ids(
    run: TrainedRun, proto: Any, tokenizer: Any, texts: list[str], allow_differences: bool
) -> str:
    """Compares the ids of texts, prints those that differ; returns what was found.

    Raises:
        UserError: some differ, and that is not allowed.
    """
    from dist_bert.hf_tokenizer import compare

    def encode(window: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(window, add_special_tokens=False)["input_ids"]
        return ids

    result = compare(run.tokenizer, proto, encode, texts)
    num_other = len(result.differences) - result.num_ties
    found = f"{result.num_compared:,} texts compared, {num_other:,} differ"
    if result.num_ties:
        found += f", {result.num_ties:,} are cut otherwise at equal likelihood"
    if result.num_special:
        found += f", {result.num_special:,} that spell a special piece left out"
    print(f"token ids  {found}", flush=True)
    # Ties come last: neither side of them is wrong.
    for difference in sorted(result.differences, key=lambda d: d.is_tie)[:_SHOWN_DIFFERENCES]:
        print(
            f"  {_excerpt(run.tokenizer, difference.ids, difference.fast_ids)}  in"
            f" {difference.text[:60]!r}{'  (equally likely)' if difference.is_tie else ''}"
        )
    if num_other and not allow_differences:
        raise UserError(
            f"{num_other:,} of {result.num_compared:,} texts have other token ids in transformers,"
            " must be 0; look at those above, and export with --allow_differences true if you can"
            " do with them"
        )
    return found


def _excerpt(tokenizer: Tokenizer, ids: list[int], fast_ids: list[int]) -> str:
    """The first ids that are not the same, with their pieces."""
    place = next((i for i, (a, b) in enumerate(zip(ids, fast_ids, strict=False)) if a != b), None)
    place = min(len(ids), len(fast_ids)) if place is None else place
    ours, theirs = (
        " ".join(f"{i}={tokenizer.piece(i)}" for i in side[place : place + 4]) or "end"
        for side in (ids, fast_ids)
    )
    return f"id {place}: {ours} here, {theirs} in transformers"


def _load(folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer that anyone who has the folder gets from transformers."""
    import transformers

    # its bar and hints are for those who load a model to use it
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForPreTraining.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer


def _sample_texts(
    resolved: dict[str, Any], tokenizer: Tokenizer, sample_text: str | None
) -> list[str]:
    """Odd texts, then the lines of a file, or texts of the run's shards if they are still there."""
    from dist_bert.hf_tokenizer import ODD_TEXTS

    if sample_text is not None:
        return [*ODD_TEXTS, *_lines(sample_text)]
    shards = Path(resolved.get("run", {}).get("shards", "data/shards"))
    if (shards / MANIFEST_NAME).exists():
        return [*ODD_TEXTS, *_shard_texts(shards, tokenizer)]
    print(
        f"token ids  the run's shards are not in {shards} any more: only {len(ODD_TEXTS)} odd texts"
        " are compared; --sample_text FILE compares yours"
    )
    return list(ODD_TEXTS)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"--sample_text {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"--sample_text {path}: is not UTF-8 ({error.reason}); convert it"
        ) from None


def _shard_texts(shards: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Both segments of the first samples, without masks: held-out ones where there are any."""
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
