"""BERT, the whole model: encoder, pretraining heads, loss, and unpadding.

The input is unpadded: the tokens of all samples of a micro-batch lie one after the other, and only
attention knows where one sample ends and the next begins. Not for: optimizers, precision, devices.

Source: Devlin et al. 2019, "BERT" (https://arxiv.org/abs/1810.04805), and its code, from which the
MLM head and the exact GELU are (google-research/bert, modeling.py and run_pretraining.py).

Shapes: T tokens of the micro-batch, B samples, P masked positions, H hidden, N heads, D head size,
S padded length (the longest sample), V padded vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dist_bert.config import ModelConfig

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"gelu": F.gelu, "relu": F.relu}  # gelu is the exact erf form
METRIC_NAMES = ("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy")

_CACHED_SCORES = 1 << 21  # attention scores computed at once on CPU: 4 MiB in bf16, a core's cache


class SampleLayout(NamedTuple):
    """Where the samples lie among the T tokens: made once per forward, read by every attention.

    Attributes:
        cu_seqlens: (B+1,) int32, sample b is tokens cu_seqlens[b] to cu_seqlens[b+1] - 1.
        max_seqlen: S, tokens of the longest sample.
        is_varlen: attention reads `cu_seqlens` itself and needs no padded view.
        token_of_slot: (B*S,) token in each slot of the padded view; None where that is a reshape.
        slot_of_token: (T,) its inverse.
        is_real_key: (B, 1, 1, S) False in slots behind the end of a sample.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    is_varlen: bool
    token_of_slot: Tensor | None = None
    slot_of_token: Tensor | None = None
    is_real_key: Tensor | None = None


def can_use_varlen_kernel(hidden: Tensor, head_size: int, dropout_p: float) -> bool:
    """Whether FlashAttention's variable-length kernel can do the attention of this forward.

    Args:
        hidden: for device and dtype; torch.autocast overrules the dtype.
        head_size: D; the kernel takes multiples of 8 up to 256.
        dropout_p: dropout on attention weights; the kernel has none.
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
        # A slot behind the end of a sample may hold any valid row: it is masked.
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
    if layout.token_of_slot is not None:
        qkv = qkv.index_select(0, layout.token_of_slot)  # (B*S, 3H)
    padded = qkv.view(-1, max_seqlen, 3, num_heads, head_size)
    q, k, v = padded.permute(2, 0, 3, 1, 4).unbind(0)  # (B, N, S, D) each
    # torch's CPU kernel is slow backwards in bf16: 4 times at length 128, 1.5 times at 512
    use_products = qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16
    attend = attention_by_products if use_products else F.scaled_dot_product_attention
    context = attend(q, k, v, layout.is_real_key, dropout_p)
    context = context.transpose(1, 2).reshape(-1, num_heads * head_size)  # (B*S, H)
    if layout.slot_of_token is not None:
        context = context.index_select(0, layout.slot_of_token)
    return context


def attention_by_products(
    query: Tensor, key: Tensor, value: Tensor, is_real_key: Tensor | None, dropout_p: float
) -> Tensor:
    """Attention as two matrix products, over as many heads at a time as stay in the cache.

    Args:
        query: (B, N, S, D), as are `key` and `value`.
        key: see `query`.
        value: see `query`.
        is_real_key: (B, 1, 1, S), or None where every key is real.
        dropout_p: dropout on attention weights.

    Returns:
        (B, N, S, D).
    """
    num_samples, num_heads, length, head_size = query.shape
    bias = query.new_zeros(num_samples, num_heads, 1, length)
    if is_real_key is not None:
        bias = bias.masked_fill(~is_real_key, -torch.inf)
    size = max(1, _CACHED_SCORES // length**2)
    flat = (tensor.flatten(0, 1).split(size) for tensor in (query, key, value, bias))
    contexts = []
    for q, k, v, b in zip(*flat, strict=True):
        weights = torch.baddbmm(b, q, k.transpose(1, 2), alpha=head_size**-0.5).softmax(-1)
        contexts.append(torch.bmm(F.dropout(weights, dropout_p), v))
    return torch.cat(contexts).view_as(query)


class BertLayer(nn.Module):
    """Self-attention, then feed-forward; each with dropout, residual sum, LayerNorm (post-LN)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.attention_output = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, layout: SampleLayout, attention_dropout_p: float) -> Tensor:
        """(T, H) to (T, H)."""
        context = attention(self.qkv(hidden), layout, self.num_heads, attention_dropout_p)
        hidden = self.attention_norm(hidden + self.dropout(self.attention_output(context)))
        inner = self.activation(self.intermediate(hidden))  # (T, intermediate_size)
        output: Tensor = self.output_norm(hidden + self.dropout(self.output(inner)))
        return output


class BertEncoder(nn.Module):
    """Embeddings and the stack of layers: token ids in, one vector per token out."""

    # Whether a layer keeps its input alone and computes the rest again in the backward pass (Chen
    # et al. 2016, https://arxiv.org/abs/1604.06174). Same numbers, dropout included.
    activation_checkpointing = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.attention_dropout_prob = config.attention_probs_dropout_prob
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embeddings_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
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
            position_ids: (T,) int64, the place of each token in its sample.
            cu_seqlens: (B+1,) int32, [CLS] of sample b is token cu_seqlens[b]; no sample is empty.
            max_seqlen: tokens of the longest sample.

        Returns:
            (T, H), in the order of `input_ids`.
        """
        dropout_p = self.attention_dropout_prob if self.training else 0.0
        hidden: Tensor = self.word_embeddings(input_ids)  # (T, H)
        is_varlen = can_use_varlen_kernel(hidden, self.head_size, dropout_p)
        layout = locate_samples(cu_seqlens, max_seqlen, len(input_ids), is_varlen)
        hidden = hidden + self.token_type_embeddings(token_type_ids)
        hidden = hidden + self.position_embeddings(position_ids)
        hidden = self.dropout(self.embeddings_norm(hidden))
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, layout, dropout_p, use_reentrant=False)
            else:
                hidden = layer(hidden, layout, dropout_p)
        return hidden


class BertForPreTraining(nn.Module):
    """The encoder with the two heads of pretraining (section 3.1): masked LM, next sentence.

    The weights come from torch's global generator: seed it alike on all ranks.
    """

    metric_names = METRIC_NAMES

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = BertEncoder(config)
        self.mlm_dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.mlm_activation = ACTIVATIONS[config.mlm_hidden_act]
        self.mlm_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlm_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.nsp = nn.Linear(config.hidden_size, 2)
        self.initializer_range = config.initializer_range
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        """Weights normal, biases zero, as in BERT's code; torch's LayerNorm starts as 1 and 0."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    @torch.no_grad()
    def start_from_frequencies(self, piece_counts: Tensor) -> None:
        """Starts the MLM bias at the log frequencies of the pieces instead of zero.

        So the first predictions are the unigram distribution, and the optimizer, which moves a bias
        by no more than the lr in a step, need not find it.

        Args:
            piece_counts: (number of pieces,) occurrences in training text, at most `vocab_size`.
        """
        counts = F.pad(piece_counts, (0, len(self.mlm_bias) - len(piece_counts))) + 1.0
        self.mlm_bias.copy_((counts / counts.sum()).log())

    def mlm_logits(self, hidden: Tensor) -> Tensor:
        """Scores of all pieces at masked positions: (P, H) to (P, V), -inf at padded rows of V."""
        hidden = self.mlm_norm(self.mlm_activation(self.mlm_dense(hidden)))
        # The tied decoder is read from the module that owns it: ZeRO-3 gathers it on this access.
        decoder = self.encoder.word_embeddings.weight  # (V, H)
        bias = F.pad(self.mlm_bias, (0, len(decoder) - len(self.mlm_bias)), value=-torch.inf)
        return F.linear(hidden, decoder, bias)

    def pool(self, cls_hidden: Tensor) -> Tensor:
        """One vector for a whole sample, from its [CLS]: (B, H) to (B, H)."""
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
        masked_lm_labels: Tensor,
        next_sentence_label: Tensor,
        num_masked: int,
        num_samples: int,
    ) -> tuple[Tensor, Tensor]:
        """This micro-batch's share of its global batch's loss: the shares of a global batch add up.

        Args:
            input_ids: (T,) int64, this and the next four as in `BertEncoder.forward`.
            token_type_ids: (T,) int64.
            position_ids: (T,) int64.
            cu_seqlens: (B+1,) int32.
            max_seqlen: tokens of the longest sample.
            masked_lm_positions: (P,) int64, indices into the T tokens; P may be 0.
            masked_lm_labels: (P,) int64, the original pieces there; -100 leaves a position out.
            next_sentence_label: (B,) int64, 0 = B follows A, 1 = random, or 1 = both swapped; -100
                leaves a sample out. Samples behind the first B are padding.
            num_masked: masked positions of the global batch: all ranks, all accumulation steps.
            num_samples: samples of the global batch.

        Returns:
            The loss, a float32 scalar, and the detached float32 shares of `metric_names`, (4,).
        """
        hidden = self.encoder(input_ids, token_type_ids, position_ids, cu_seqlens, max_seqlen)
        # float32 whatever the weights' dtype: bf16 would keep 8 bits of a sum over V
        mlm_logits = self.mlm_logits(hidden.index_select(0, masked_lm_positions)).float()  # (P, V)
        cls_positions = cu_seqlens[: len(next_sentence_label)]  # (B,)
        nsp_logits = self.nsp_logits(hidden.index_select(0, cls_positions)).float()  # (B, 2)
        mlm_loss = F.cross_entropy(mlm_logits, masked_lm_labels, reduction="sum") / num_masked
        nsp_loss = F.cross_entropy(nsp_logits, next_sentence_label, reduction="sum") / num_samples
        mlm_accuracy = (mlm_logits.argmax(1) == masked_lm_labels).sum() / num_masked
        nsp_accuracy = (nsp_logits.argmax(1) == next_sentence_label).sum() / num_samples
        metrics = torch.stack([mlm_loss.detach(), nsp_loss.detach(), mlm_accuracy, nsp_accuracy])
        return mlm_loss + nsp_loss, metrics


def unpad(
    input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
) -> dict[str, Tensor | int]:
    """Turns right-padded input into the arguments of `BertEncoder.forward`. Waits for the device.

    Args:
        input_ids: (B, S) int64.
        attention_mask: (B, S), nonzero at tokens, 0 at padding; no row is all 0.
        token_type_ids: (B, S) int64.
    """
    is_token = attention_mask.bool()
    num_tokens = is_token.sum(1)  # (B,)
    position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return {
        "input_ids": input_ids[is_token],
        "token_type_ids": token_type_ids[is_token],
        "position_ids": position_ids[is_token],
        "cu_seqlens": F.pad(num_tokens.cumsum(0), (1, 0)).int(),
        "max_seqlen": int(num_tokens.max()),
    }
