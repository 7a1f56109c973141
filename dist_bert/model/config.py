"""The architecture of a model: the contents of a model JSON."""

import dataclasses
from typing import Any

from dist_bert.common.settings import raise_all, setting

# Far beyond any BERT: larger values are errors, and would fill the memory or never finish.
_MOST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 17,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 17,
    "intermediate_size": 1 << 19,
    "max_position_embeddings": 1 << 20,
    "global_attn_every_n_layers": 1 << 10,
}
_MOST_SEGMENTS = 1 << 10
_MOST_WINDOW = 1 << 21
_FLOAT8_MULTIPLE = 16  # of widths, for products in 8 bits; the number of tokens is one of 64
# What a family of files has no other form of.
_MODERN = {"norm": "pre", "positions": "rotary", "feed_forward": "geglu", "type_vocab_size": 0}
# Settings that came after the first checkpoints, which do not state them.
_LATER = (
    "architecture",
    "norm",
    "positions",
    "feed_forward",
    "bias",
    "norm_bias",
    "global_attn_every_n_layers",
    "local_attention",
    "global_rope_theta",
    "local_rope_theta",
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of encoder and pretraining heads. Defaults: BERT-base (Devlin et al. 2019).

    Every part is stated; `architecture` says whose published names, files and initial weights the
    model has, and with that which parts are possible. `bert` takes any combination of parts.
    `modern` is ModernBERT (Warner et al. 2024, https://arxiv.org/abs/2412.13663).
    """

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
    type_vocab_size: int = setting(2, "number of segments; 0 leaves them out")
    hidden_dropout_prob: float = setting(
        0.1, "dropout on embeddings and sub-layer outputs, 0 to below 1"
    )
    attention_probs_dropout_prob: float = setting(0.1, "dropout on attention weights, 0 to below 1")
    layer_norm_eps: float = setting(1e-12, "epsilon of every LayerNorm")
    initializer_range: float = setting(0.02, "standard deviation of the initial weights")
    architecture: str = setting(
        "bert",
        "family of names and initial weights; modern needs pre, rotary, geglu, 0 segments",
        ("bert", "modern"),
    )
    norm: str = setting("post", "LayerNorm after each sum, or before each half", ("post", "pre"))
    positions: str = setting(
        "learned", "a table added to the embeddings, or rotated queries", ("learned", "rotary")
    )
    feed_forward: str = setting(
        "mlp", "geglu multiplies the activation by a second, linear half", ("mlp", "geglu")
    )
    bias: bool = setting(True, "whether linear layers of encoder and MLM head have biases")
    norm_bias: bool = setting(True, "whether LayerNorms have biases")
    global_attn_every_n_layers: int = setting(
        1, "layers 0, n, 2n, ... attend to all tokens, the others to their window; 1 = all"
    )
    local_attention: int = setting(
        128, "window of local layers in tokens: half of it on each side; even"
    )
    global_rope_theta: float = setting(10_000.0, "base of rotary angles, global layers; above 1")
    local_rope_theta: float = setting(10_000.0, "base of rotary angles, local layers; above 1")

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
        raise_all("model", problems + self._problems_of_parts())

    def _problems_of_parts(self) -> list[str]:
        problems = []
        if not 0 <= self.type_vocab_size <= _MOST_SEGMENTS:
            problems.append(
                f"type_vocab_size = {self.type_vocab_size}: must be at least 0 and at most"
                f" {_MOST_SEGMENTS:,}"
            )
        if not 2 <= self.local_attention <= _MOST_WINDOW or self.local_attention % 2:
            problems.append(
                f"local_attention = {self.local_attention}: must be even, at least 2 and at most"
                f" {_MOST_WINDOW:,}"
            )
        for name in ("global_rope_theta", "local_rope_theta"):
            if not getattr(self, name) > 1.0:
                problems.append(f"{name} = {getattr(self, name)}: must be above 1")
        heads = self.num_attention_heads
        if self.positions == "rotary" and heads > 0 and self.hidden_size % (2 * heads):
            problems.append(
                f"positions = rotary: pairs up the elements of a head, so hidden_size ="
                f" {self.hidden_size} must be divisible by 2 * num_attention_heads = {2 * heads}"
            )
        wrong = [
            f"{name} is {getattr(self, name)}, must be {value}"
            for name, value in _MODERN.items()
            if self.architecture == "modern" and getattr(self, name) != value
        ]
        if wrong:
            problems.append(
                f"architecture = modern: {', '.join(wrong)}; architecture bert takes any parts"
            )
        return problems

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: `vocab_size` rounded up to a multiple of 64, for speed."""
        return -(-self.vocab_size // 64) * 64

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def window(self) -> int | None:
        """Tokens on each side to which local layers attend; None where all layers are global."""
        num_layers, every = self.num_hidden_layers, self.global_attn_every_n_layers
        return None if min(num_layers, every) == 1 else self.local_attention // 2

    def is_global(self, layer: int) -> bool:
        """Whether a layer attends to all tokens; layers count from 0."""
        return layer % self.global_attn_every_n_layers == 0

    @property
    def num_local_layers(self) -> int:
        """Layers that attend to their window alone."""
        return self.num_hidden_layers - -(
            -self.num_hidden_layers // self.global_attn_every_n_layers
        )

    def flash_attention_3_problems(self, precision: str) -> list[str]:
        """What keeps its attention from FlashAttention 3's kernels, on any GPU.

        Args:
            precision: of the DeepSpeed JSON: fp32, bf16 or fp16.
        """
        problems = []
        if self.attention_probs_dropout_prob:
            problems.append(
                f"attention_probs_dropout_prob = {self.attention_probs_dropout_prob}:"
                " FlashAttention 3 has no dropout; set it to 0"
            )
        if precision == "fp32":
            problems.append("FlashAttention 3 computes in bf16 and fp16, not in fp32")
        return problems

    def float8_problems(self, precision: str, zero_stage: int) -> list[str]:
        """What keeps its layers from products in 8 bits, on any GPU.

        Args:
            precision: of the DeepSpeed JSON: fp32, bf16 or fp16.
            zero_stage: 0 to 3.
        """
        problems = [
            f"{name} = {getattr(self, name)}: must be a multiple of {_FLOAT8_MULTIPLE}"
            for name in ("hidden_size", "intermediate_size")
            if getattr(self, name) % _FLOAT8_MULTIPLE
        ]
        if precision != "bf16":
            problems.append(f"needs bf16, and the DeepSpeed JSON has {precision}")
        if zero_stage == 3:
            problems.append("works at ZeRO 0 to 2")
        return problems

    @classmethod
    def later_settings(cls) -> dict[str, Any]:
        """What the settings are that a config.json or checkpoint may be too old to state."""
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        return {name: defaults[name] for name in _LATER}
