"""Writes folders in Hugging Face layout, and loads them with transformers.

Not for: comparisons before such a folder appears (`dist_bert.huggingface.compare`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dist_bert.checkpoint.run_dir import CONFIG_NAME, TOKENIZER_NAME, WEIGHTS_NAME
from dist_bert.checkpoint.weights import in_order, published_order
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.model.config import ModelConfig
from dist_bert.model.published_config import to_published_config
from dist_bert.model.published_names import Family, family, to_published
from dist_bert.tokenizer.config import SPECIAL_PIECES
from dist_bert.tokenizer.tokenizer import Tokenizer

_SPECIAL_TOKENS = dict(
    zip(
        ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
        SPECIAL_PIECES,
        strict=True,
    )
)
# For transformers: no downloads, no remote code; if unset, it prompts on the terminal.
_NO_OTHERS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def check_new_folder(output_dir: Path) -> None:
    """Checks before slow work whether a folder can be written and verified.

    Raises:
        UserError: it exists and is not empty, or transformers is not installed.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(
            f"--output_dir {output_dir}: exists and is not an empty folder; name a new one"
        )
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: pip install -c constraints.txt -e '.[huggingface]'"
        ) from None


def write_model(
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    folder: Path,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Writes weights and config.json, without the tied decoder, like transformers.

    Args:
        state_dict: ours; it may lack heads.
        config: must have a published form; if BERT's has an MLM head, with equal activations:
            config.json has one name for both.
        folder: must exist.
        tokenizer: with the published ids, whose order the rows of pieces get; None = that of ours.
    """
    published = to_published(_published_rows(state_dict, config, tokenizer), config)
    kind = _architecture(published, family(config))
    facts = {"architectures": [kind], "tie_word_embeddings": True}
    _write(published, config, facts, folder, tokenizer)


def write_head(
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    facts: dict[str, Any],
    folder: Path,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Writes the same for an encoder with a head of fine-tuning.

    Args:
        state_dict: of one of `dist_bert.finetuning.heads`.
        config: its architecture.
        facts: of the head, for config.json: `architectures`, the names of its classes.
        folder: must exist.
        tokenizer: as in `write_model`.
    """
    published = to_published(_published_rows(state_dict, config, tokenizer), config)
    _write(published, config, facts, folder, tokenizer)


def _published_rows(
    state_dict: Mapping[str, Tensor], config: ModelConfig, tokenizer: Tokenizer | None
) -> Mapping[str, Tensor]:
    if tokenizer is None:
        return state_dict
    return in_order(state_dict, published_order(tokenizer, config.vocab_size).argsort())


def _write(
    published: Mapping[str, Tensor],
    config: ModelConfig,
    facts: dict[str, Any],
    folder: Path,
    tokenizer: Tokenizer | None,
) -> None:
    tied = family(config).tied
    tensors = {  # cloned: views of one tensor are not stored
        name: value.detach().cpu().clone() for name, value in published.items() if name not in tied
    }
    files.write_bytes(folder / WEIGHTS_NAME, save(tensors, {"format": "pt"}))
    own = None if tokenizer is None else tokenizer.published_ids
    pad, _, cls, sep, mask = range(len(SPECIAL_PIECES)) if own is None else own[:5].tolist()
    # ModernBertConfig's own would lie behind the end of a smaller vocabulary.
    ends = {"bos_token_id": cls, "eos_token_id": sep}
    values = {
        **to_published_config(config),
        **facts,
        **(ends if config.architecture == "modern" else {}),
        "pad_token_id": pad,
        "cls_token_id": cls,
        "sep_token_id": sep,
        "mask_token_id": mask,
        "dtype": "float32",
    }
    files.write_json(folder / CONFIG_NAME, values)


def write_tokenizer(
    tokenizer: Tokenizer, max_positions: int, folder: Path, has_segments: bool = True
) -> None:
    """Writes tokenizer.json, the two files that name its parts, and the file for this package.

    The file of an imported vocabulary already is a tokenizer.json: the two have the same bytes. A
    model without segments is not given any.
    """
    from dist_bert.huggingface.tokenizer import (
        fast_tokenizer,  # an optional package
        read_model,
    )

    content = tokenizer.content
    if tokenizer.kind == "SentencePiece":
        fast = fast_tokenizer(read_model(tokenizer.path)).to_str(pretty=True).encode()
    else:
        fast = content
    files.write_bytes(folder / "tokenizer.json", fast)
    settings = {
        # BertTokenizer would make its own rules of a SentencePiece model's
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "model_input_names": ["input_ids"] + ["token_type_ids"] * has_segments + ["attention_mask"],
        "clean_up_tokenization_spaces": False,
        **_SPECIAL_TOKENS,
    }
    files.write_json(folder / "tokenizer_config.json", settings)
    files.write_json(folder / "special_tokens_map.json", _SPECIAL_TOKENS)
    files.write_bytes(folder / TOKENIZER_NAME, content)


def pretrained_kind(config: ModelConfig) -> str:
    """The class in transformers of an architecture with its pretraining heads."""
    table = family(config)
    return f"{table.classes}For{'PreTraining' if table.heads['NSP head'] else 'MaskedLM'}"


def load_model(folder: Path, kind: str = "BertForPreTraining") -> Any:
    """The model as transformers loads it, of one of its classes, in float32."""
    transformers = _quiet_transformers()
    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32, **_NO_OTHERS)
    return model.eval()


def make_pipeline(task: str, model: Any, tokenizer: Any) -> Any:
    """A `transformers.pipeline` of them on the CPU."""
    return _quiet_transformers().pipeline(
        task, model=model, tokenizer=tokenizer, device="cpu", trust_remote_code=False
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer as transformers loads it.

    Raises:
        UserError: it does not exist, or cannot be loaded.
    """
    if not any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json")):
        raise UserError(  # transformers would create an empty one
            f"{folder}: has neither vocab.txt nor tokenizer.json; copy the model's there"
        )
    transformers = _quiet_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, **_NO_OTHERS)
    except Exception as error:  # its classes raise various errors for unreadable files
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: transformers cannot load its tokenizer ({reason}); fetch its files again"
        ) from None


def _architecture(published: Mapping[str, Tensor], table: Family) -> str:
    """The transformers class that has these weights."""
    has_pairs = "cls.seq_relationship.weight" in published
    if table.parameters["mlm_bias"][0] not in published:
        return f"{table.classes}{'ForNextSentencePrediction' if has_pairs else 'Model'}"
    return f"{table.classes}For{'PreTraining' if has_pairs else 'MaskedLM'}"


def _quiet_transformers() -> Any:
    import transformers

    # its progress bar and hints are for users of a model
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
