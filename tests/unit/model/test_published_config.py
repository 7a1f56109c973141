"""config.json of BERT and of ModernBERT, in the words of transformers 4 and 5; what is refused."""

import dataclasses
from typing import Any

import pytest
import transformers

from dist_bert.common.errors import UserError
from dist_bert.common.settings import resolve
from dist_bert.model.config import ModelConfig
from dist_bert.model.published_config import (
    from_published_config,
    require_published_form,
    to_published_config,
)

BASE = resolve(ModelConfig, "configs/model/modern_base.json")
# The first lines of answerdotai/ModernBERT-base's own, written by transformers 4.
PUBLISHED_BASE: dict[str, Any] = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "position_embedding_type": "absolute",
    "vocab_size": 50368,
}


def test_published_modernbert_is_the_shipped_configuration() -> None:
    assert from_published_config(PUBLISHED_BASE, "file") == BASE
    assert from_published_config({"model_type": "modernbert"}, "file") == BASE


@pytest.mark.parametrize(
    "config",
    [
        BASE,
        dataclasses.replace(
            BASE, num_hidden_layers=7, global_attn_every_n_layers=2, local_attention=64,
            local_rope_theta=500.0, bias=True, norm_bias=True, hidden_act="relu",
        ),
        dataclasses.replace(BASE, global_attn_every_n_layers=1),
        dataclasses.replace(BASE, global_attn_every_n_layers=50),
        ModelConfig(hidden_act="relu", mlm_hidden_act="relu", hidden_size=96),
        ModelConfig(positions="rotary", feed_forward="geglu", bias=False, global_rope_theta=500.0),
    ],
    ids=["base", "other", "all global", "one global", "bert", "nomic"],
)  # fmt: skip
def test_there_and_back_by_transformers_too(config: ModelConfig) -> None:
    """As written here, and as transformers reads and writes it."""
    written = to_published_config(config)
    assert from_published_config(written, "file") == config
    kinds = {"bert": "Bert", "nomic_bert": "NomicBert", "modernbert": "ModernBert"}
    kind = f"{kinds[written['model_type']]}Config"
    theirs = getattr(transformers, kind).from_dict(written)
    assert from_published_config(theirs.to_dict(), "file") == config


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"attention_bias": True}, "only all alike fit"),
        ({"decoder_bias": False}, "decoder_bias = False: only True fits"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False: only True fits"),
        ({"hidden_activation": "silu"}, "hidden_act = 'silu': must be one of gelu, relu"),
        ({"local_attention": 127}, "local_attention = 127: must be even"),
        ({"layer_types": ["sliding_attention"] * 22}, "layer_types: must be full_attention at"),
        ({"layer_types": "full"}, "layer_types: must be full_attention at"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling: this model has none"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_type = 'yarn': only 'default' fits",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 7.0}}},
            "rope_parameters say 7.0 and global_rope_theta 160000.0",
        ),
    ],
)
def test_what_this_package_has_not_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as raised:
        from_published_config({**PUBLISHED_BASE, **change}, "file")
    assert problem in str(raised.value)


def test_layer_types_alone_say_which_layers_are_global() -> None:
    kinds = ["sliding_attention" if index % 4 else "full_attention" for index in range(22)]
    values = {"model_type": "modernbert", "layer_types": kinds}
    assert from_published_config(values, "file").global_attn_every_n_layers == 4


def test_bert_with_other_parts_has_no_published_form() -> None:
    require_published_form(ModelConfig())
    require_published_form(BASE)
    other = dataclasses.replace(ModelConfig(), positions="rotary", norm="pre", bias=False)
    with pytest.raises(UserError, match=r"^norm = pre, feed_forward = mlp: .* its NomicBert"):
        require_published_form(other)
