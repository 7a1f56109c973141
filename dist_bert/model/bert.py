"""BERT, the whole model: encoder, pretraining heads, loss, and unpadding.

The input is unpadded: the tokens of all samples of a micro-batch are concatenated, and only
attention uses the borders between samples. Not for: optimizers, precision, devices.

Source: Devlin et al. 2019, "BERT" (https://arxiv.org/abs/1810.04805), and its code for the MLM head
and the exact GELU (google-research/bert, modeling.py and run_pretraining.py).

Shapes: T tokens of the micro-batch, B samples, P masked positions, H hidden, N heads, D head size,
S padded length (the longest sample), V padded vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dist_bert.model.config import ModelConfig
from dist_bert.model.kernels import (
    SampleGroup,
    dropout,
    group_samples,
    grouped_attention,
    linear_cross_entropy,
)
from dist_bert.model.products import Linear, linear

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"gelu": F.gelu, "relu": F.relu}  # gelu is the exact erf form
METRIC_NAMES = ("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy")


class SampleLayout(NamedTuple):
    """Positions of the samples among the T tokens: made once per forward, read by every attention.

    Attributes:
        cu_seqlens: (B+1,) int32, sample b is tokens cu_seqlens[b] to cu_seqlens[b+1] - 1.
        max_seqlen: S, tokens of the longest sample.
        is_varlen: attention reads `cu_seqlens` itself and needs no padded view.
        groups: on CPU, the samples that are padded together; None on GPU.
        token_of_slot: (B*S,) token in each slot of the padded view; None if that is a reshape.
        slot_of_token: (T,) its inverse.
        is_real_key: (B, 1, 1, S) False in slots after the end of a sample.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    is_varlen: bool = False
    groups: list[SampleGroup] | None = None
    token_of_slot: Tensor | None = None
    slot_of_token: Tensor | None = None
    is_real_key: Tensor | None = None


def can_use_varlen_kernel(hidden: Tensor, head_size: int, dropout_p: float) -> bool:
    """Whether FlashAttention's variable-length kernel supports the attention of this forward.

    Args:
        hidden: for device and dtype; torch.autocast overrides the dtype.
        head_size: D; the kernel supports multiples of 8 up to 256.
        dropout_p: dropout on attention weights, which the kernel does not support.
    """
    device = hidden.device
    if device.type != "cuda" or dropout_p > 0.0 or head_size % 8 or head_size > 256:
        return False
    is_autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if is_autocast else hidden.dtype
    is_half = dtype in (torch.bfloat16, torch.float16)
    return is_half and torch.cuda.get_device_properties(device).major >= 8  # Ampere or later


def locate_samples(
    cu_seqlens: Tensor, max_seqlen: int, num_tokens: int, is_varlen: bool
) -> SampleLayout:
    """Makes the layout on the device without waiting for it: no shape depends on tensor values."""
    layout = SampleLayout(cu_seqlens, max_seqlen, is_varlen)
    if is_varlen or num_tokens == (len(cu_seqlens) - 1) * max_seqlen:
        return layout
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]  # (B,)
    token_of_slot = starts[:, None] + torch.arange(max_seqlen, device=starts.device)  # (B, S)
    tokens = torch.arange(num_tokens, dtype=ends.dtype, device=ends.device)  # (T,)
    sample_of_token = torch.searchsorted(ends, tokens, right=True)  # (T,)
    return layout._replace(
        # A slot after the end of a sample may hold any valid row: it is masked.
        token_of_slot=token_of_slot.clamp(max=num_tokens - 1).flatten(),
        slot_of_token=sample_of_token * max_seqlen + tokens - starts[sample_of_token],
        is_real_key=(token_of_slot < ends[:, None])[:, None, None, :],
    )


def attention(qkv: Tensor, layout: SampleLayout, num_heads: int, dropout_p: float) -> Tensor:
    """Lets every token attend to the tokens of its own sample (Vaswani et al. 2017, section 3.2).

    Args:
        qkv: (T, 3H), queries, keys and values, each with its heads side by side.
        layout: which tokens belong together.
        num_heads: N.
        dropout_p: dropout on attention weights in this forward.

    Returns:
        (T, H), the heads side by side.
    """
    head_size = qkv.shape[1] // (3 * num_heads)
    cu_seqlens, max_seqlen = layout.cu_seqlens, layout.max_seqlen
    if layout.is_varlen:
        from torch.nn.attention.varlen import varlen_attn  # registers CUDA kernels: only where used

        q, k, v = qkv.view(-1, 3, num_heads, head_size).unbind(1)  # (T, N, D) each
        context = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        assert isinstance(context, Tensor)  # a tuple only if asked for
        return context.flatten(1)
    if layout.groups is not None:
        return grouped_attention(qkv, layout.groups, num_heads, dropout_p)
    if layout.token_of_slot is not None:
        qkv = qkv.index_select(0, layout.token_of_slot)  # (B*S, 3H)
    padded = qkv.view(-1, max_seqlen, 3, num_heads, head_size)
    q, k, v = padded.permute(2, 0, 3, 1, 4).unbind(0)  # (B, N, S, D) each
    context = F.scaled_dot_product_attention(q, k, v, layout.is_real_key, dropout_p)
    context = context.transpose(1, 2).reshape(-1, num_heads * head_size)  # (B*S, H)
    if layout.slot_of_token is not None:
        context = context.index_select(0, layout.slot_of_token)
    return context


class BertLayer(nn.Module):
    """Self-attention, then feed-forward; each with dropout, residual sum, LayerNorm (post-LN)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.attention_output = Linear(config.hidden_size, config.hidden_size)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.intermediate = Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.output = Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout_prob = config.hidden_dropout_prob
        self.attention_dropout_prob = config.attention_probs_dropout_prob

    def forward(self, hidden: Tensor, layout: SampleLayout) -> Tensor:
        """(T, H) to (T, H)."""
        return self.transform(self.attend(hidden, layout))

    def attend(self, hidden: Tensor, layout: SampleLayout) -> Tensor:
        """The first half, self-attention: (T, H) to (T, H)."""
        dropout_p = self.attention_dropout_prob if self.training else 0.0
        context = attention(self.qkv(hidden), layout, self.num_heads, dropout_p)
        return self._add_and_norm(hidden, self.attention_output(context), self.attention_norm)

    def transform(self, hidden: Tensor) -> Tensor:
        """The second half, feed-forward: (T, H) to (T, H)."""
        inner = self.activation(self.intermediate(hidden))  # (T, intermediate_size)
        return self._add_and_norm(hidden, self.output(inner), self.output_norm)

    def _add_and_norm(self, hidden: Tensor, change: Tensor, norm: nn.LayerNorm) -> Tensor:
        added: Tensor = norm(hidden + dropout(change, self.dropout_prob if self.training else 0.0))
        return added


class BertEncoder(nn.Module):
    """Embeddings and the stack of layers: token ids in, one vector per token out."""

    # Whether a layer keeps only its input and recomputes the rest in the backward pass (Chen et al.
    # 2016, https://arxiv.org/abs/1604.06174). Same numbers, including dropout.
    activation_checkpointing = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_size = config.head_size
        self.dropout_prob = config.hidden_dropout_prob
        self.attention_dropout_prob = config.attention_probs_dropout_prob
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embeddings_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

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
            token_type_ids: (T,) int64, the segment of each token.
            position_ids: (T,) int64, the position of each token in its sample.
            cu_seqlens: (B+1,) int32, [CLS] of sample b is token cu_seqlens[b]; no sample is empty.
            max_seqlen: tokens of the longest sample.

        Returns:
            (T, H), in the order of `input_ids`.
        """
        hidden = self.embed(input_ids, token_type_ids, position_ids)
        layout = self._layout(hidden, cu_seqlens, max_seqlen)
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, layout, use_reentrant=False)
            else:
                hidden = layer(hidden, layout)
        return hidden

    def compile_layers(self) -> None:
        """Lets torch.compile fuse the operations between a layer's matrix products; keeps names.

        For any number of tokens; micro-batches round it up, so that few shapes occur.
        """
        for layer in self.layers:
            layer.compile(dynamic=True)

    def _layout(self, hidden: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> SampleLayout:
        """Chooses how attention is computed in this forward."""
        dropout_p = self.attention_dropout_prob if self.training else 0.0
        is_varlen = can_use_varlen_kernel(hidden, self.head_size, dropout_p)
        if hidden.device.type == "cpu" and not is_varlen:
            groups = group_samples(cu_seqlens, self.num_heads)
            return SampleLayout(cu_seqlens, max_seqlen, groups=groups)
        return locate_samples(cu_seqlens, max_seqlen, len(hidden), is_varlen)

    def embed(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Input of the first layer: three times (T,) to (T, H)."""
        hidden = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        hidden = self.embeddings_norm(hidden + self.position_embeddings(position_ids))
        return dropout(hidden, self.dropout_prob if self.training else 0.0)


class BertForPreTraining(nn.Module):
    """The encoder with the two heads of pretraining (section 3.1): masked LM, next sentence.

    The weights come from torch's global generator: use the same seed on all ranks.
    """

    metric_names = METRIC_NAMES

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = BertEncoder(config)
        self.mlm_dense = Linear(config.hidden_size, config.hidden_size)
        self.mlm_activation = ACTIVATIONS[config.mlm_hidden_act]
        self.mlm_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlm_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.pooler = Linear(config.hidden_size, config.hidden_size)
        self.nsp = Linear(config.hidden_size, 2)
        self.initializer_range = config.initializer_range
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        """Weights normal, biases zero, as in BERT's code; torch's LayerNorm starts with 1 and 0."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

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
