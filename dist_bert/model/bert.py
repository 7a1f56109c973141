"""BERT, the whole model: encoder, pretraining heads, loss; and ModernBERT, of other parts.

The input is unpadded: the tokens of all samples of a micro-batch are concatenated, and only
attention uses the borders between samples. Not for: optimizers, precision, devices.

Sources: Devlin et al. 2019, "BERT" (https://arxiv.org/abs/1810.04805), and its code for the MLM
head and the exact GELU (google-research/bert, modeling.py and run_pretraining.py). Warner et al.
2024, "Smarter, Better, Faster, Longer" (https://arxiv.org/abs/2412.13663): pre-norm, rotary
positions, GeGLU, local attention, and few biases. Each of these is a setting of its own.

Shapes: T tokens of the micro-batch, B samples, P masked positions, H hidden, I inner size, V padded
vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dist_bert.model.attention import (
    SampleLayout,
    attention,
    can_use_varlen_kernel,
    locate_samples,
)
from dist_bert.model.config import ModelConfig
from dist_bert.model.kernels import FewRows, dropout, linear_cross_entropy
from dist_bert.model.products import Linear, linear
from dist_bert.model.rotary import Rotation, rotate, rotation
from dist_bert.model.tiles import band_tiles, group_samples

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"gelu": F.gelu, "relu": F.relu}  # gelu is the exact erf form
METRIC_NAMES = ("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy")


def layer_norm(config: ModelConfig) -> nn.LayerNorm:
    """A LayerNorm of the model."""
    return nn.LayerNorm(config.hidden_size, config.layer_norm_eps, bias=config.norm_bias)


class BertLayer(nn.Module):
    """Self-attention, then feed-forward; each with dropout and residual sum.

    LayerNorm stands after each sum (post-norm), or before each half, so that the sums go through
    all layers (pre-norm; Xiong et al. 2020, https://arxiv.org/abs/2002.04745).
    """

    def __init__(self, config: ModelConfig, index: int = 0) -> None:
        super().__init__()
        hidden_size, inner_size = config.hidden_size, config.intermediate_size
        self.num_heads = config.num_attention_heads
        is_global = config.is_global(index)
        self.window = None if is_global else config.window
        self.rope_theta: float | None = None  # positions are in what goes into the layer
        if config.positions == "rotary":
            theta = config.global_rope_theta if is_global else config.local_rope_theta
            self.rope_theta = theta
        self.is_pre_norm = config.norm == "pre"
        self.is_gated = config.feed_forward == "geglu"
        self.qkv = Linear(hidden_size, 3 * hidden_size, bias=config.bias)
        self.attention_output = Linear(hidden_size, hidden_size, bias=config.bias)
        # What goes into the first layer has been through the LayerNorm of the embeddings.
        has_norm = not self.is_pre_norm or index > 0
        self.attention_norm = layer_norm(config) if has_norm else nn.Identity()
        width = 2 * inner_size if self.is_gated else inner_size
        self.intermediate = Linear(hidden_size, width, bias=config.bias)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.output = Linear(inner_size, hidden_size, bias=config.bias)
        if self.is_pre_norm:
            self.feed_forward_norm = layer_norm(config)
        else:
            self.output_norm = layer_norm(config)
        self.dropout_prob = config.hidden_dropout_prob
        self.attention_dropout_prob = config.attention_probs_dropout_prob

    def forward(self, hidden: Tensor, layout: SampleLayout, turn: Rotation | None = None) -> Tensor:
        """(T, H) to (T, H); `turn` rotates queries and keys where positions are rotary."""
        return self.transform(self.attend(hidden, layout, turn))

    def attend(self, hidden: Tensor, layout: SampleLayout, turn: Rotation | None = None) -> Tensor:
        """The first half, self-attention: (T, H) to (T, H)."""
        if self.is_pre_norm:
            return hidden + self._attention(self.attention_norm(hidden), layout, turn)
        added: Tensor = self.attention_norm(hidden + self._attention(hidden, layout, turn))
        return added

    def transform(self, hidden: Tensor) -> Tensor:
        """The second half, feed-forward: (T, H) to (T, H)."""
        if self.is_pre_norm:
            return hidden + self._feed_forward(self.feed_forward_norm(hidden))
        added: Tensor = self.output_norm(hidden + self._feed_forward(hidden))
        return added

    def queries_keys_values(self, hidden: Tensor, turn: Rotation | None) -> Tensor:
        """What attention gets: (T, H), after the norm of pre-norm layers, to (T, 3H)."""
        qkv: Tensor = self.qkv(hidden)
        return qkv if turn is None else rotate(qkv, turn, self.num_heads)

    def _attention(self, hidden: Tensor, layout: SampleLayout, turn: Rotation | None) -> Tensor:
        dropout_p = self.attention_dropout_prob if self.training else 0.0
        qkv = self.queries_keys_values(hidden, turn)
        context = attention(qkv, layout, self.num_heads, dropout_p, self.window)
        return self._drop(self.attention_output(context))

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        inner = self.intermediate(hidden)  # (T, I), or (T, 2I)
        if self.is_gated:  # Shazeer 2020, "GLU Variants" (https://arxiv.org/abs/2002.05202)
            inner, gate = inner.chunk(2, -1)
            return self._drop(self.output(self.activation(inner) * gate))
        return self._drop(self.output(self.activation(inner)))

    def _drop(self, change: Tensor) -> Tensor:
        return dropout(change, self.dropout_prob if self.training else 0.0)


class BertEncoder(nn.Module):
    """Embeddings and the stack of layers: token ids in, one vector per token out."""

    # Whether a layer keeps only its input and recomputes the rest in the backward pass (Chen et al.
    # 2016, https://arxiv.org/abs/1604.06174). Same numbers, including dropout.
    activation_checkpointing = False
    are_layers_compiled = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_size = config.head_size
        self.dropout_prob = config.hidden_dropout_prob
        self.window = config.window
        self.has_segments = config.type_vocab_size > 0
        self.has_table_of_positions = config.positions == "learned"
        hidden_size, num_positions = config.hidden_size, config.max_position_embeddings
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, hidden_size)
        if self.has_table_of_positions:
            self.position_embeddings = FewRows(num_positions, hidden_size)
        if self.has_segments:
            self.token_type_embeddings = FewRows(config.type_vocab_size, hidden_size)
        self.embeddings_norm = layer_norm(config)
        self.layers = nn.ModuleList(BertLayer(config, i) for i in range(config.num_hidden_layers))
        self.is_pre_norm = config.norm == "pre"
        if self.is_pre_norm:
            self.final_norm = layer_norm(config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
    ) -> Tensor:
        """Encodes the tokens of B samples.

        Args:
            input_ids: (T,) int64, below `vocab_size`.
            token_type_ids: (T,) int64, the segment of each token; not read without segments.
            position_ids: (T,) int64, the position of each token in its sample.
            cu_seqlens: (B+1,) int32, [CLS] of sample b is token cu_seqlens[b]; no sample is empty.
            max_seqlen: tokens of the longest sample.

        Returns:
            (T, H), in the order of `input_ids`.
        """
        hidden = self.embed(input_ids, token_type_ids, position_ids)
        layout = self._layout(hidden, cu_seqlens, max_seqlen)
        for layer, turn in zip(self.layers, self.rotations(position_ids), strict=True):
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, layout, turn, use_reentrant=False)
            else:
                hidden = layer(hidden, layout, turn)
        return self.final_norm(hidden) if self.is_pre_norm else hidden

    def rotations(self, position_ids: Tensor) -> list[Rotation | None]:
        """How each layer rotates queries and keys; layers of one theta share a rotation."""
        thetas: list[Any] = [layer.rope_theta for layer in self.layers]
        turns = {
            theta: None if theta is None else rotation(position_ids, self.head_size, theta)
            for theta in set(thetas)
        }
        return [turns[theta] for theta in thetas]

    def compile_layers(self) -> None:
        """Lets torch.compile fuse the operations between a layer's matrix products; keeps names.

        For any number of tokens; micro-batches round it up, so that few shapes occur.
        """
        for layer in self.layers:
            layer.compile(dynamic=True)
        self.are_layers_compiled = True

    def uncompile_layers(self) -> None:
        """Takes `compile_layers` back."""
        for layer in self.layers:
            layer._compiled_call_impl = None  # torch has no public way back
        self.are_layers_compiled = False

    def _layout(self, hidden: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> SampleLayout:
        """Chooses how attention is computed in this forward."""
        is_varlen = can_use_varlen_kernel(hidden, self.head_size)
        if hidden.device.type == "cpu" and not is_varlen:
            tiles = local_tiles = group_samples(cu_seqlens, self.num_heads)
            if self.window is not None and max_seqlen > self.window + 1:
                local_tiles = band_tiles(cu_seqlens, self.num_heads, self.window)
            return SampleLayout(cu_seqlens, max_seqlen, tiles=tiles, local_tiles=local_tiles)
        return locate_samples(cu_seqlens, max_seqlen, len(hidden), is_varlen, self.window)

    def embed(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Input of the first layer: three times (T,) to (T, H)."""
        hidden = self.word_embeddings(input_ids)
        if self.has_segments:
            hidden = hidden + self.token_type_embeddings(token_type_ids)
        if self.has_table_of_positions:
            hidden = hidden + self.position_embeddings(position_ids)
        hidden = self.embeddings_norm(hidden)
        return dropout(hidden, self.dropout_prob if self.training else 0.0)


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Weights normal, biases zero, as in BERT's code; torch's LayerNorm starts as 1 and 0.

    Of a modern model as in ModernBERT's: cut off at two standard deviations, and what is added to
    the sums is smaller the more layers there are.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            std = config.initializer_range
            if config.architecture == "modern":
                if name.endswith(("output", "mlm_dense")):
                    std /= math.sqrt(2 * config.num_hidden_layers)
                nn.init.trunc_normal_(module.weight, 0.0, std, -2 * std, 2 * std)
            else:
                nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class BertForPreTraining(nn.Module):
    """The encoder with the two heads of pretraining (section 3.1): masked LM, next sentence.

    The weights come from torch's global generator: use the same seed on all ranks.
    """

    metric_names = METRIC_NAMES

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = BertEncoder(config)
        self.mlm_dense = Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.mlm_activation = ACTIVATIONS[config.mlm_hidden_act]
        self.mlm_norm = layer_norm(config)
        self.mlm_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.pooler = Linear(config.hidden_size, config.hidden_size)
        self.nsp = Linear(config.hidden_size, 2)
        initialize(self, config)

    @torch.no_grad()
    def start_from_frequencies(self, piece_counts: Tensor) -> None:
        """Starts the MLM bias at the log frequencies of the pieces instead of zero.

        So the first predictions are the unigram distribution. Otherwise the optimizer, which
        changes a bias by at most the lr per step, must learn it.

        Args:
            piece_counts: (number of pieces,) occurrences in training text, at most `vocab_size`.
        """
        counts = F.pad(piece_counts, (0, len(self.mlm_bias) - len(piece_counts))) + 1.0
        self.mlm_bias.copy_((counts / counts.sum()).log())

    def mlm_logits(self, hidden: Tensor) -> Tensor:
        """Scores of all pieces at masked positions: (P, H) to (P, V), -inf at padded rows of V."""
        return linear(*self.mlm_decoder_inputs(hidden))

    def mlm_decoder_inputs(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Transformed (P, H), the tied decoder's weight (V, H) and bias (V,)."""
        hidden = self.mlm_norm(self.mlm_activation(self.mlm_dense(hidden)))
        # Reads the tied decoder from the module that owns it: ZeRO-3 gathers it on this access.
        decoder = self.encoder.word_embeddings.weight
        bias = F.pad(self.mlm_bias, (0, len(decoder) - len(self.mlm_bias)), value=-torch.inf)
        return hidden, decoder, bias

    def pool(self, cls_hidden: Tensor) -> Tensor:
        """One vector per sample, from its [CLS]: (B, H) to (B, H)."""
        return torch.tanh(self.pooler(cls_hidden))

    def nsp_logits(self, cls_hidden: Tensor) -> Tensor:
        """Scores of next-sentence labels 0 and 1: (B, H) to (B, 2)."""
        logits: Tensor = self.nsp(self.pool(cls_hidden))
        return logits

    def forward(
        self,
        *,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        masked_lm_positions: Tensor,
        masked_lm_labels: Tensor | None,
        next_sentence_label: Tensor,
        num_masked: int,
        num_samples: int,
    ) -> tuple[Tensor, Tensor]:
        """This micro-batch's share of its global batch's loss; the shares sum to that loss.

        Args:
            input_ids: (T,) int64, this and the next four as in `BertEncoder.forward`.
            token_type_ids: (T,) int64.
            position_ids: (T,) int64.
            cu_seqlens: (B+1,) int32.
            max_seqlen: tokens of the longest sample.
            masked_lm_positions: (P,) int64, indices into the T tokens; P may be 0.
            masked_lm_labels: (P,) int64, the original pieces there; -100 leaves a position out.
                None = return scores instead of losses.
            next_sentence_label: (B,) int64, 0 = B follows A, 1 = random, or 1 = both swapped; -100
                = sample ignored. Samples after the first B are padding.
            num_masked: masked positions of the global batch: all ranks, all accumulation steps.
            num_samples: samples of the global batch.

        Returns:
            The loss, a float32 scalar, and the detached float32 shares of `metric_names`, (4,).
            Without `masked_lm_labels` the scores of `mlm_logits`, (P, V), and float32 scores of the
            next-sentence labels, (B, 2).
        """
        hidden = self.encoder(input_ids, token_type_ids, position_ids, cu_seqlens, max_seqlen)
        masked = hidden.index_select(0, masked_lm_positions)  # (P, H)
        decoder_inputs = self.mlm_decoder_inputs(masked)
        cls_positions = cu_seqlens[: len(next_sentence_label)]  # (B,)
        nsp_logits = self.nsp_logits(hidden.index_select(0, cls_positions)).float()  # (B, 2)
        if masked_lm_labels is None:
            return linear(*decoder_inputs), nsp_logits
        mlm_loss, num_correct = linear_cross_entropy(*decoder_inputs, masked_lm_labels)
        mlm_loss = mlm_loss / num_masked
        nsp_loss = F.cross_entropy(nsp_logits, next_sentence_label, reduction="sum") / num_samples
        mlm_accuracy = num_correct / num_masked
        nsp_accuracy = (nsp_logits.argmax(1) == next_sentence_label).sum() / num_samples
        metrics = torch.stack([mlm_loss.detach(), nsp_loss.detach(), mlm_accuracy, nsp_accuracy])
        return mlm_loss + nsp_loss, metrics
