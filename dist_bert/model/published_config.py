"""The architecture as a published config.json states it, of BERT and of ModernBERT; no torch.

What a format has no word for is refused, in both directions: a model that is loaded elsewhere must
be the model that was trained. Dropout acts in training alone, at other places there than here, so
that its shares are only carried along.
"""

import reprlib
from collections.abc import Mapping
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.common.settings import from_dict
from dist_bert.model.config import ModelConfig

_BERT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "layer_norm_eps",
)
# What a config.json of BERT has no word for, and what the weights then are.
_BERT_PARTS = {
    "norm": "post",
    "positions": "learned",
    "feed_forward": "mlp",
    "bias": True,
    "norm_bias": True,
    "global_attn_every_n_layers": 1,
}
# ModelConfig's name -> that of a ModernBertConfig, and what it is where the file does not say.
_MODERN_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50_368),
    "hidden_size": ("hidden_size", 768),
    "num_hidden_layers": ("num_hidden_layers", 22),
    "num_attention_heads": ("num_attention_heads", 12),
    "intermediate_size": ("intermediate_size", 1_152),
    "max_position_embeddings": ("max_position_embeddings", 8_192),
    "hidden_act": ("hidden_activation", "gelu"),
    "mlm_hidden_act": ("classifier_activation", "gelu"),
    "hidden_dropout_prob": ("embedding_dropout", 0.0),
    "attention_probs_dropout_prob": ("attention_dropout", 0.0),
    "layer_norm_eps": ("norm_eps", 1e-5),
    "norm_bias": ("norm_bias", False),
    "local_attention": ("local_attention", 128),
}
_BIASES = ("attention_bias", "mlp_bias", "classifier_bias")  # one setting here
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_THETAS = {
    "global_rope_theta": (_GLOBAL, 160_000.0),
    "local_rope_theta": (_LOCAL, 10_000.0),
}


def unpublished_parts(config: ModelConfig) -> list[str]:
    """What the published form of the architecture has no word for."""
    if config.architecture == "modern":
        return []
    wrong = [
        f"{name} = {getattr(config, name)}"
        for name, value in _BERT_PARTS.items()
        if getattr(config, name) != value
    ]
    return wrong + ["type_vocab_size = 0"] * (config.type_vocab_size == 0)


def require_published_form(config: ModelConfig) -> None:
    """Refuses a model that no class of transformers computes.

    Raises:
        UserError: it has parts that its published form lacks.
    """
    if parts := unpublished_parts(config):
        raise UserError(
            f"{', '.join(parts)}: transformers has no BERT of such parts, so it cannot be exported"
        )


def to_published_config(config: ModelConfig) -> dict[str, Any]:
    """What config.json says of a model that has a published form."""
    if config.architecture == "bert":
        return {
            "model_type": "bert",
            **{name: getattr(config, name) for name in _BERT_FIELDS},
            "hidden_act": config.hidden_act,
            "initializer_range": config.initializer_range,
            "position_embedding_type": "absolute",
        }
    return {
        "model_type": "modernbert",
        **{theirs: getattr(config, ours) for ours, (theirs, _) in _MODERN_FIELDS.items()},
        **dict.fromkeys(_BIASES, config.bias),
        "decoder_bias": True,
        "mlp_dropout": config.hidden_dropout_prob,
        "classifier_dropout": config.hidden_dropout_prob,
        "classifier_pooling": "cls",
        "initializer_range": config.initializer_range,
        # As transformers 5 reads it, and as 4 does.
        "layer_types": _layer_types(config.num_hidden_layers, config.global_attn_every_n_layers),
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": getattr(config, name)}
            for name, (kind, _) in _THETAS.items()
        },
        "global_attn_every_n_layers": config.global_attn_every_n_layers,
        **{name: getattr(config, name) for name in _THETAS},
    }


def from_published_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """The model that a published config.json describes.

    Args:
        values: of the file.
        origin: names it in errors.

    Raises:
        UserError: this package has no such model.
    """
    if values.get("model_type") == "modernbert":
        return _modern(values, origin)
    _require(
        values, origin, {"model_type": "bert", "position_embedding_type": "absolute"}, "is_decoder"
    )
    given = {name: values[name] for name in _BERT_FIELDS if name in values}
    activation = values.get("hidden_act", "gelu")
    if activation not in ("gelu", "relu"):
        shown = reprlib.repr(activation)
        raise UserError(f"{origin}: hidden_act = {shown}: only 'gelu' (exact) and 'relu' fit")
    both = {"hidden_act": activation, "mlm_hidden_act": activation}  # published models have one
    return from_dict(ModelConfig, {**given, **both}, origin)


def _require(
    values: Mapping[str, Any], origin: str, only: Mapping[str, Any], *must_be_false: str
) -> None:
    """Refuses values that are given and are not the ones that fit."""
    for name, value in {**only, **dict.fromkeys(must_be_false, False)}.items():
        if values.get(name, value) != value:
            shown = reprlib.repr(values[name])
            raise UserError(f"{origin}: {name} = {shown}: only {value!r} fits this model")


def _modern(values: Mapping[str, Any], origin: str) -> ModelConfig:
    _require(values, origin, {"decoder_bias": True, "tie_word_embeddings": True}, "is_decoder")
    biases = {name: values.get(name, False) for name in _BIASES}
    if len({repr(value) for value in biases.values()}) > 1:
        told = ", ".join(f"{name} = {reprlib.repr(value)}" for name, value in biases.items())
        raise UserError(f"{origin}: {told}: only all alike fit this model")
    given = {
        ours: values.get(theirs, default) for ours, (theirs, default) in _MODERN_FIELDS.items()
    }
    parts = {"norm": "pre", "positions": "rotary", "feed_forward": "geglu", "type_vocab_size": 0}
    thetas = {name: _theta(values, origin, name) for name in _THETAS}
    every = _global_every(values, origin, given["num_hidden_layers"])
    return from_dict(
        ModelConfig,
        {
            "architecture": "modern",
            **parts,
            **given,
            **thetas,
            "bias": biases["attention_bias"],
            "global_attn_every_n_layers": every,
        },
        origin,
    )


def _theta(values: Mapping[str, Any], origin: str, name: str) -> Any:
    """Of global or local layers, from whichever words the file has for it."""
    kind, default = _THETAS[name]
    parameters = values.get("rope_parameters")
    found = []
    if isinstance(parameters, Mapping) and isinstance(own := parameters.get(kind), Mapping):
        if own.get("rope_type", "default") != "default":
            shown = reprlib.repr(own["rope_type"])
            raise UserError(f"{origin}: rope_type = {shown}: only 'default' fits this model")
        found.append(own.get("rope_theta", default))
    if values.get("rope_scaling") is not None:
        raise UserError(f"{origin}: rope_scaling: this model has none")
    if values.get(name) is not None:
        found.append(values[name])
    if len(found) == 2 and found[0] != found[1]:
        raise UserError(
            f"{origin}: rope_parameters say {reprlib.repr(found[0])} and {name}"
            f" {reprlib.repr(found[1])}: make them one"
        )
    return found[0] if found else default


def _global_every(values: Mapping[str, Any], origin: str, num_layers: Any) -> Any:
    """The n of layers 0, n, 2n, ... that attend to all tokens."""
    kinds = values.get("layer_types")
    if kinds is None or type(num_layers) is not int:
        return values.get("global_attn_every_n_layers", 3)
    kinds = kinds if isinstance(kinds, list) else []
    every = next((i for i, kind in enumerate(kinds) if i and kind == _GLOBAL), len(kinds))
    every = values.get("global_attn_every_n_layers", every)
    if type(every) is not int or every < 1 or kinds != _layer_types(num_layers, every):
        raise UserError(
            f"{origin}: layer_types: must be {_GLOBAL} at layers 0, n, 2n, ..., n ="
            f" global_attn_every_n_layers, and {_LOCAL} at the others"
        )
    return every


def _layer_types(num_layers: int, every: int) -> list[str]:
    return [_LOCAL if index % every else _GLOBAL for index in range(num_layers)]
