"""Folders as published BERTs lie in them: vocabularies in their order, weights by transformers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support.corpus import chinese_sentences, english_sentences

SENTENCES = english_sentences(1_500, seed=1) + chinese_sentences(500, seed=2)
SURPLUS_ROWS = 6  # of the word embeddings, which no piece has
SIZES = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=53,
)


def published_vocabulary(lower_case: bool, vocab_size: int = 640) -> list[str]:
    """Pieces as in bert-base-uncased: [PAD], unused ones, the special ones at 100 to 103, text."""
    trained = fast_tokenizer(["[UNK]"], lower_case)
    trained.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=vocab_size, show_progress=False)
    )
    ids = trained.get_vocab()
    return [
        "[PAD]",
        *(f"[unused{number}]" for number in range(99)),
        *("[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *(f"[unused{number}]" for number in range(99, 120)),
        *sorted(ids, key=ids.__getitem__),
    ]


def fast_tokenizer(
    vocabulary: Sequence[str], lower_case: bool, **rules: Any
) -> tokenizers.Tokenizer:
    """BERT's rules on a vocabulary."""
    pieces = {piece: index for index, piece in enumerate(vocabulary)}
    fast = tokenizers.Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=lower_case, **rules)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return fast


def write_vocabulary(folder: Path, vocabulary: Sequence[str], **settings: Any) -> None:
    """vocab.txt and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_level_tokenizer(vocab_size: int = 640) -> dict[str, Any]:
    """A tokenizer.json of ModernBERT's layout: [UNK] to [MASK] follow the runs of spaces."""
    fast = tokenizers.Tokenizer(models.BPE())
    fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["|||IP_ADDRESS|||", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(SENTENCES, trainer)
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    added = [
        tokenizers.AddedToken("|||IP_ADDRESS|||", special=False),
        *(tokenizers.AddedToken(" " * count, special=False) for count in range(24, 1, -1)),
        tokenizers.AddedToken("|||EMAIL_ADDRESS|||", special=False),
        tokenizers.AddedToken("<|endoftext|>", special=True, normalized=False),
        *(
            tokenizers.AddedToken(name, special=True, normalized=False, lstrip=name == "[MASK]")
            for name in names
        ),
        *(tokenizers.AddedToken(f"[unused{number}]", special=False) for number in range(7)),
    ]
    fast.add_tokens(added)
    cls, sep = (fast.token_to_id(name) for name in names[1:3])
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    made: dict[str, Any] = json.loads(fast.to_str())
    for token in made["added_tokens"]:  # the trainer's are special, published ones are not
        token["special"] = token["content"] in (*names, "<|padding|>", "<|endoftext|>")
    return made


def write_byte_level(folder: Path, tokenizer: dict[str, Any]) -> None:
    """tokenizer.json and tokenizer_config.json, as ModernBERT's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 8_192,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": True,
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in token if key != "id"}
            for token in tokenizer["added_tokens"]
        },
        **names,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_weights(
    folder: Path, num_rows: int, kind: str = "BertForPreTraining", **changes: Any
) -> Any:
    """A random model of one of transformers' classes, saved as it saves them; returns it."""
    import torch
    import transformers

    shards = {k: changes.pop(k) for k in ("max_shard_size",) if k in changes}
    torch.manual_seed(7)
    config = transformers.BertConfig(vocab_size=num_rows, **SIZES, **changes)
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms too
            parameter.add_(0.2 * torch.randn_like(parameter))
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **shards)
    return model.eval()


def write_modern_weights(folder: Path, num_rows: int, **changes: Any) -> Any:
    """The same of a ModernBertForMaskedLM: layers 0 and 2 of 4 are global, the window is small."""
    import torch
    import transformers

    torch.manual_seed(7)
    sizes = {**SIZES, "num_hidden_layers": 4, "global_attn_every_n_layers": 2}
    config = transformers.ModernBertConfig(
        **{**sizes, "vocab_size": num_rows, "local_attention": 6, "pad_token_id": 0, **changes}
    )
    model = transformers.ModernBertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return model.eval()
