"""Converts state dicts to and from the published parameter names.

The published names are those of `transformers.BertForPreTraining` and `ModernBertForMaskedLM`. A
table for each family maps each of our names to the published tensors that form it, stacked along
dimension 0. Not for: reading or writing files.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_bert.common.errors import UserError
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig

Names = dict[str, tuple[str, ...]]  # our name -> published names
# Of the heads that a source of weights may lack: how our names begin.
OUR_HEADS = {"MLM head": "mlm_", "pooler": "pooler.", "NSP head": "nsp."}


class Family(NamedTuple):
    """The published names of an architecture."""

    encoder: str  # how the names of the encoder begin
    word_embeddings: str
    # Published files repeat the tied decoder: name -> the parameter that it must equal.
    tied: dict[str, str]
    # What published files may lack, as models saved for another task do: head -> how its names
    # begin. Empty where the family has no such head.
    heads: dict[str, tuple[str, ...]]
    parameters: Names
    modules: Names  # each with a weight and, where the model has them, a bias
    layer: str  # how the names of the n-th layer begin
    layer_modules: Names
    classes: str  # how the names of transformers' classes begin
    task_modules: Names  # of the heads of fine-tuning, each of which has some of them


BERT = Family(
    encoder="bert.",
    word_embeddings="bert.embeddings.word_embeddings.weight",
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    heads={
        "MLM head": ("cls.predictions.",),
        "pooler": ("bert.pooler.",),
        "NSP head": ("cls.seq_relationship.",),
    },
    parameters={
        "encoder.word_embeddings.weight": ("bert.embeddings.word_embeddings.weight",),
        "encoder.position_embeddings.weight": ("bert.embeddings.position_embeddings.weight",),
        "encoder.token_type_embeddings.weight": ("bert.embeddings.token_type_embeddings.weight",),
        "mlm_bias": ("cls.predictions.bias",),
    },
    modules={
        "encoder.embeddings_norm": ("bert.embeddings.LayerNorm",),
        "mlm_dense": ("cls.predictions.transform.dense",),
        "mlm_norm": ("cls.predictions.transform.LayerNorm",),
        "pooler": ("bert.pooler.dense",),
        "nsp": ("cls.seq_relationship",),
    },
    layer="bert.encoder.layer.{}.",
    layer_modules={
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention_output": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "intermediate": ("intermediate.dense",),
        "output": ("output.dense",),
        "output_norm": ("output.LayerNorm",),
    },
    classes="Bert",
    task_modules={"classifier": ("classifier",), "span": ("qa_outputs",)},
)
MODERN = Family(
    encoder="model.",
    word_embeddings="model.embeddings.tok_embeddings.weight",
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    heads={"MLM head": ("head.", "decoder."), "pooler": (), "NSP head": ()},
    parameters={
        "encoder.word_embeddings.weight": ("model.embeddings.tok_embeddings.weight",),
        "mlm_bias": ("decoder.bias",),
    },
    modules={
        "encoder.embeddings_norm": ("model.embeddings.norm",),
        "encoder.final_norm": ("model.final_norm",),
        "mlm_dense": ("head.dense",),
        "mlm_norm": ("head.norm",),
    },
    layer="model.layers.{}.",
    layer_modules={
        "qkv": ("attn.Wqkv",),
        "attention_output": ("attn.Wo",),
        "attention_norm": ("attn_norm",),
        "intermediate": ("mlp.Wi",),
        "output": ("mlp.Wo",),
        "feed_forward_norm": ("mlp_norm",),
    },
    classes="ModernBert",
    task_modules={
        **{f"{place}.dense": ("head.dense",) for place in ("pooler", "head")},
        **{f"{place}.norm": ("head.norm",) for place in ("pooler", "head")},
        "classifier": ("classifier",),
        "span": ("classifier",),
    },
)


def family(config: ModelConfig) -> Family:
    """The table of an architecture."""
    return MODERN if config.architecture == "modern" else BERT


def published_names(config: ModelConfig) -> Names:
    """Our parameter name -> the published ones, whose tensors are stacked along dimension 0.

    Of all that the family has a name for; a model may lack some, such as biases.
    """
    table = family(config)
    modules = table.modules | {
        f"encoder.layers.{i}.{ours}": tuple(table.layer.format(i) + part for part in parts)
        for i in range(config.num_hidden_layers)
        for ours, parts in table.layer_modules.items()
    }
    return table.parameters | _parameters_of(modules)


def _parameters_of(modules: Names) -> Names:
    """The weight and the bias of each module."""
    return {
        f"{ours}.{kind}": tuple(f"{part}.{kind}" for part in parts)
        for ours, parts in modules.items()
        for kind in ("weight", "bias")
    }


def to_published(state_dict: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under published names: qkv split, vocabulary unpadded, tied decoder repeated.

    A head of fine-tuning is named as in transformers' model of its task. The tensors are views of
    those in `state_dict`, which may lack heads. What the family has no name for is left out.
    """
    table = family(config)
    names = published_names(config) | _parameters_of(table.task_modules)
    published = {
        name: part
        for ours, parts in names.items()
        if ours in state_dict
        for name, part in zip(parts, state_dict[ours].chunk(len(parts)), strict=True)
    }
    published[table.word_embeddings] = published[table.word_embeddings][: config.vocab_size]
    if "mlm_bias" in state_dict:  # the decoder is the MLM head's
        published |= {copy: published[original] for copy, original in table.tied.items()}
    return published


def from_published(
    state_dict: Mapping[str, Tensor], config: ModelConfig, without: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Published parameters as our state dict; the padded rows of the vocabulary are zero.

    Args:
        state_dict: with or without the tied decoder. Older files, such as bert-base-uncased, use
            gamma and beta for LayerNorm's weight and bias and add `position_ids`, a constant.
        config: the architecture that the parameters must fit.
        without: prefixes of the names of heads that are in neither of the two state dicts.

    Raises:
        UserError: parameters are missing, unknown or of another shape, or the decoder is not tied.
    """
    given = {
        name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): value
        for name, value in state_dict.items()
        if name != "bert.embeddings.position_ids"
    }
    table = family(config)
    tied = table.tied
    with torch.device("meta"):  # shapes without memory
        whole = to_published(BertForPreTraining(config).state_dict(), config)
    expected = {name: value for name, value in whole.items() if not name.startswith(without)}
    for copy, original in tied.items():  # a file may have either of the two
        if original not in given and copy in given:
            given[original] = given[copy]
    problems = [f"missing {name}" for name in expected if name not in given and name not in tied]
    problems += [f"unknown {name}" for name in given if name not in expected]
    problems += [
        f"{name} is {tuple(value.shape)}, must be {tuple(expected[name].shape)}"
        for name, value in given.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if not problems:
        problems = [
            f"{copy} differs from {original}, but this model ties them"
            for copy, original in tied.items()
            if copy in given and not torch.equal(given[copy], given[original])
        ]
    if problems:
        shown = problems[:5] + ([f"and {len(problems) - 5} more"] if len(problems) > 5 else [])
        raise UserError("published parameters do not fit the model: " + "; ".join(shown))
    num_padded_rows = config.padded_vocab_size - config.vocab_size
    given[table.word_embeddings] = F.pad(given[table.word_embeddings], (0, 0, 0, num_padded_rows))
    return {
        ours: torch.cat([given[name] for name in names])
        for ours, names in published_names(config).items()
        if names[0] in expected
    }
