"""A folder in Hugging Face layout: written, and loaded as anyone loads it, by transformers.

Not for: what is compared before such a folder appears (`dist_bert.huggingface.compare`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dist_bert.checkpoint.run_dir import CONFIG_NAME, TOKENIZER_NAME, WEIGHTS_NAME
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.model.config import ModelConfig
from dist_bert.model.published_config import to_published_config
from dist_bert.model.published_names import family, to_published
from dist_bert.tokenizer.config import SPECIAL_PIECES
from dist_bert.tokenizer.tokenizer import CLS_ID, MASK_ID, PAD_ID, SEP_ID, Tokenizer

_SPECIAL_TOKENS = dict(
    zip(
        ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
        SPECIAL_PIECES,
        strict=True,
    )
)
# For what transformers loads: neither files nor code of others; unnamed, it asks on the terminal.
_NO_OTHERS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def check_new_folder(output_dir: Path) -> None:
    """Finds out before anything slow whether a folder can be written and checked.

    Raises:
        UserError: it is there already, or transformers is not installed.
    """
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


def write_model(state_dict: Mapping[str, Tensor], config: ModelConfig, folder: Path) -> None:
    """Weights and config.json; the decoder that is tied is left out, as transformers does.

    Args:
        state_dict: ours; it may lack heads.
        config: that has a published form; if BERT's has an MLM head, the activations are alike:
            there is one name for both.
        folder: is there.
    """
    published = to_published(state_dict, config)
    kind = _modern_architecture if config.architecture == "modern" else _architecture
    facts = {"architectures": [kind(published)], "tie_word_embeddings": True}
    _write(published, config, facts, folder)


def write_head(
    state_dict: Mapping[str, Tensor], config: ModelConfig, facts: dict[str, Any], folder: Path
) -> None:
    """The same of an encoder with a head of fine-tuning.

    Args:
        state_dict: of one of `dist_bert.finetuning.heads`.
        config: its architecture.
        facts: what config.json says of the head: `architectures`, the names of its classes.
        folder: is there.
    """
    _write(to_published(state_dict, config), config, facts, folder)


def _write(
    published: Mapping[str, Tensor], config: ModelConfig, facts: dict[str, Any], folder: Path
) -> None:
    tied = family(config).tied
    tensors = {  # cloned: views of one tensor are not stored
        name: value.detach().cpu().clone() for name, value in published.items() if name not in tied
    }
    files.write_bytes(folder / WEIGHTS_NAME, save(tensors, {"format": "pt"}))
    # ModernBertConfig's own would lie behind the end of a smaller vocabulary.
    ends = {"bos_token_id": CLS_ID, "eos_token_id": SEP_ID}
    values = {
        **to_published_config(config),
        **facts,
        **(ends if config.architecture == "modern" else {}),
        "pad_token_id": PAD_ID,
        "cls_token_id": CLS_ID,
        "sep_token_id": SEP_ID,
        "mask_token_id": MASK_ID,
        "dtype": "float32",
    }
    files.write_json(folder / CONFIG_NAME, values)


def write_tokenizer(
    tokenizer: Tokenizer, max_positions: int, folder: Path, has_segments: bool = True
) -> None:
    """tokenizer.json, the two files that name its parts, and the file that this package reads.

    A WordPiece vocabulary's file is a tokenizer.json already: the two are the same bytes. A model
    without segments is not given any.
    """
    from dist_bert.huggingface.tokenizer import (
        fast_tokenizer,  # an optional package
        read_model,
    )

    content = tokenizer.content
    if tokenizer.has_word_pieces:
        fast = content
    else:
        fast = fast_tokenizer(read_model(tokenizer.path)).to_str(pretty=True).encode()
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
    return "ModernBertForMaskedLM" if config.architecture == "modern" else "BertForPreTraining"


def load_model(folder: Path, kind: str = "BertForPreTraining") -> Any:
    """The model that anyone gets from transformers, of one of its classes, in float32."""
    transformers = _quiet_transformers()
    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32, **_NO_OTHERS)
    return model.eval()


def make_pipeline(task: str, model: Any, tokenizer: Any) -> Any:
    """What `transformers.pipeline` makes of them on the CPU."""
    return _quiet_transformers().pipeline(
        task, model=model, tokenizer=tokenizer, device="cpu", trust_remote_code=False
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that anyone gets from transformers.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    if not any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json")):
        raise UserError(  # transformers would make an empty one
            f"{folder}: has neither vocab.txt nor tokenizer.json; put those of the model there"
        )
    transformers = _quiet_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, **_NO_OTHERS)
    except Exception as error:  # whatever its many classes raise for files that they cannot read
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: transformers cannot load its tokenizer ({reason}); fetch its files again"
        ) from None


def _architecture(published: Mapping[str, Tensor]) -> str:
    """The class whose weights these are."""
    has_pairs = "cls.seq_relationship.weight" in published
    if "cls.predictions.bias" not in published:
        return "BertForNextSentencePrediction" if has_pairs else "BertModel"
    return "BertForPreTraining" if has_pairs else "BertForMaskedLM"


def _modern_architecture(published: Mapping[str, Tensor]) -> str:
    return "ModernBertForMaskedLM" if "decoder.bias" in published else "ModernBertModel"


def _quiet_transformers() -> Any:
    import transformers

    # its bar and hints are for those who load a model to use it
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
