"""The architecture of a model: the contents of a model JSON."""

import dataclasses

from dist_bert.common.settings import raise_all, setting

# Far beyond any BERT: larger values are errors, and would fill the memory or never finish.
_MOST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 17,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 17,
    "intermediate_size": 1 << 19,
    "max_position_embeddings": 1 << 20,
    "type_vocab_size": 1 << 10,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of encoder and pretraining heads. Defaults: BERT-base (Devlin et al. 2019)."""

    vocab_size: int = setting(30_522, "number of pieces; at least those of the tokenizer")
    hidden_size: int = setting(768, "width of the residual stream")
    num_hidden_layers: int = setting(12, "number of encoder layers")
    num_attention_heads: int = setting(12, "attention heads; divides hidden_size")
    intermediate_size: int = setting(3_072, "width of the feed-forward layer")
    hidden_act: str = setting("gelu", "activation of the feed-forward layer", ("gelu", "relu"))
    mlm_hidden_act: str = setting(
        "gelu",
        "activation of the MLM head: gelu as published, relu as in textbooks",
        ("gelu", "relu"),
    )
    max_position_embeddings: int = setting(
        512, "longest sequence in tokens, including special tokens"
    )
    type_vocab_size: int = setting(2, "number of segments")
    hidden_dropout_prob: float = setting(
        0.1, "dropout on embeddings and sub-layer outputs, 0 to below 1"
    )
    attention_probs_dropout_prob: float = setting(
        0.1, "dropout on attention weights, 0 to below 1; above 0 disables the fast GPU kernel"
    )
    layer_norm_eps: float = setting(1e-12, "epsilon of every LayerNorm")
    initializer_range: float = setting(0.02, "standard deviation of the initial weights")

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: must be at least 1 and at most {most:,}"
            for name, most in _MOST.items()
            if not 1 <= getattr(self, name) <= most
        ]
        if self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            problems.append(
                f"hidden_size = {self.hidden_size} is not divisible by"
                f" num_attention_heads = {self.num_attention_heads}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                problems.append(f"{name} = {getattr(self, name)}: must be at least 0 and below 1")
        for name in ("layer_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0.0:
                problems.append(f"{name} = {getattr(self, name)}: must be above 0")
        raise_all("model", problems)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: `vocab_size` rounded up to a multiple of 64, for speed."""
        return -(-self.vocab_size // 64) * 64

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads
