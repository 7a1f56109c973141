"""The encoder with the heads of fine-tuning, their losses and metrics.

Like the pretraining model, a head takes an unpadded micro-batch and returns its shares of the
global batch's mean loss and metrics; without labels it returns its scores. Not for: what the
scores mean (`dist_bert.finetuning.task`).

Sources: Devlin et al. 2019, "BERT", section 4 (https://arxiv.org/abs/1810.04805). On an encoder of
architecture `modern`, the heads are those of transformers' classes (modeling_modernbert.py): a
prediction head, of the same parts as the masked LM's, before each classifier.

Letters: T tokens of the micro-batch, B samples, H hidden, C classes, S longest sample; N is T or B.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_bert.data.batches import NO_LABEL
from dist_bert.model.bert import ACTIVATIONS, BertEncoder, BertForPreTraining, layer_norm
from dist_bert.model.config import ModelConfig
from dist_bert.model.kernels import dropout
from dist_bert.model.products import Linear

NUM_SPAN_SCORES = 2  # a token as the first and as the last one of the answer


class Pooler(Linear):
    """BERT's, on [CLS]: a linear layer, then tanh."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, H) to (N, H)."""
        return torch.tanh(super().forward(hidden))


class PredictionHead(nn.Module):
    """ModernBERT's, before a classifier: a linear layer, the activation, LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.activation = ACTIVATIONS[config.mlm_hidden_act]
        self.norm = layer_norm(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, H) to (N, H)."""
        transformed: Tensor = self.norm(self.activation(self.dense(hidden)))
        return transformed


def cls_pooler(config: ModelConfig) -> Pooler | PredictionHead:
    """What [CLS] goes through before the classifier of texts."""
    if config.architecture == "modern":
        return PredictionHead(config)
    return Pooler(config.hidden_size, config.hidden_size)


def token_head(config: ModelConfig) -> nn.Module:
    """What every token goes through before its classifier: nothing in BERT."""
    return PredictionHead(config) if config.architecture == "modern" else nn.Identity()


class BertForTextClassification(nn.Module):
    """One or two texts to classes: [CLS] through BERT's pooler, then a linear layer.

    The pooler comes from pretraining (next sentence), so pooler and classifier are a perceptron
    of one hidden layer, half of it pretrained.
    """

    metric_names = ("loss", "accuracy")

    def __init__(self, config: ModelConfig, num_classes: int, has_several_labels: bool) -> None:
        """Makes the head anew; `has_several_labels`: classes do not exclude each other."""
        super().__init__()
        self.encoder = BertEncoder(config)
        self.pooler = cls_pooler(config)
        self.classifier = Linear(config.hidden_size, num_classes)
        self.dropout_prob = config.hidden_dropout_prob
        self.has_several_labels = has_several_labels

    def forward(
        self,
        *,
        num_real_samples: int,
        labels: Tensor | None = None,
        num_samples: int = 0,
        **encoder_input: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scores, or shares of loss and metrics.

        Args:
            num_real_samples: B; samples behind it are padding.
            labels: (B,) int64 classes; (B, C) float32 zeros and ones where several may apply.
            num_samples: of the global batch.
            **encoder_input: the arguments of `BertEncoder.forward`.

        Returns:
            Without labels, float32 scores (B, C). With labels, the loss, a float32 scalar, and the
            detached shares of `metric_names`, (2,).
        """
        logits = _cls_scores(self, num_real_samples, encoder_input)
        if labels is None:
            return logits
        if self.has_several_labels:
            loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
            loss = loss / (num_samples * logits.shape[1])
            is_right = ((logits > 0) == labels.bool()).all(1)
        else:
            loss = F.cross_entropy(logits, labels, reduction="sum") / num_samples
            is_right = logits.argmax(1) == labels
        return loss, torch.stack([loss.detach(), is_right.sum() / num_samples])


class BertForTextRegression(nn.Module):
    """One or two texts to a number: [CLS] through BERT's pooler, then a linear layer.

    That tells how many standard deviations the number lies from the mean of the training set, and
    the loss is the mean squared error of this: 1 is what the mean itself gets.
    """

    metric_names = ("loss", "mean_absolute_error")

    def __init__(self, config: ModelConfig, mean: float, deviation: float) -> None:
        """Makes the head anew; `mean` and standard `deviation` of the training set's numbers."""
        super().__init__()
        self.encoder = BertEncoder(config)
        self.pooler = cls_pooler(config)
        self.classifier = Linear(config.hidden_size, 1)
        self.dropout_prob = config.hidden_dropout_prob
        self.mean, self.deviation = mean, deviation

    def forward(
        self,
        *,
        num_real_samples: int,
        labels: Tensor | None = None,
        num_samples: int = 0,
        **encoder_input: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Numbers, or shares of loss and metrics.

        Args:
            num_real_samples: B; samples behind it are padding.
            labels: (B,) float32 numbers.
            num_samples: of the global batch.
            **encoder_input: the arguments of `BertEncoder.forward`.

        Returns:
            Without labels, float32 numbers (B, 1) in the units of the labels. With labels, the
            loss, a float32 scalar, and the detached shares of `metric_names`, (2,).
        """
        deviations = _cls_scores(self, num_real_samples, encoder_input)  # (B, 1)
        if labels is None:
            return deviations * self.deviation + self.mean
        differences = deviations[:, 0] - (labels.float() - self.mean) / self.deviation  # (B,)
        loss = differences.square().sum() / num_samples
        absolute = differences.detach().abs().sum() * self.deviation / num_samples
        return loss, torch.stack([loss.detach(), absolute])


class BertForTokenClassification(nn.Module):
    """Every token to a class: a linear layer on its last hidden state."""

    metric_names = ("loss", "accuracy")

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        """Makes the head anew."""
        super().__init__()
        self.encoder = BertEncoder(config)
        self.head = token_head(config)
        self.classifier = Linear(config.hidden_size, num_classes)
        self.dropout_prob = config.hidden_dropout_prob

    def forward(
        self,
        *,
        num_real_samples: int,
        labels: Tensor | None = None,
        num_labels: int = 0,
        **encoder_input: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scores, or shares of loss and metrics.

        Args:
            num_real_samples: B; not needed here, every head takes it.
            labels: (T,) int64; -100 leaves a token out.
            num_labels: tokens with a label in the global batch.
            **encoder_input: the arguments of `BertEncoder.forward`.

        Returns:
            Without labels, float32 scores (T, C). With labels, the loss, a float32 scalar, and the
            detached shares of `metric_names`, (2,).
        """
        hidden = self.head(self.encoder(**encoder_input))
        hidden = dropout(hidden, self.dropout_prob if self.training else 0.0)
        logits: Tensor = self.classifier(hidden).float()  # (T, C)
        if labels is None:
            return logits
        loss = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum") / num_labels
        num_right = (logits.argmax(1) == labels).sum()
        return loss, torch.stack([loss.detach(), num_right / num_labels])


class BertForQuestionAnswering(nn.Module):
    """The tokens at which an answer starts and ends, each chosen among all tokens of its sample."""

    metric_names = ("loss", "accuracy")

    def __init__(self, config: ModelConfig) -> None:
        """Makes the head anew."""
        super().__init__()
        self.encoder = BertEncoder(config)
        self.head = token_head(config)
        self.span = Linear(config.hidden_size, NUM_SPAN_SCORES)
        # BERT's has none.
        self.dropout_prob = config.hidden_dropout_prob if config.architecture == "modern" else 0.0

    def forward(
        self,
        *,
        num_real_samples: int,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        num_samples: int = 0,
        **encoder_input: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scores, or shares of loss and metrics.

        Args:
            num_real_samples: B; samples behind it are padding.
            start_positions: (B,) int64, place of the answer's first token in its sample; 0, which
                is [CLS], where the sample holds no answer.
            end_positions: (B,) int64, place of its last token.
            num_samples: of the global batch.
            **encoder_input: the arguments of `BertEncoder.forward`.

        Returns:
            Without positions, float32 scores (T, 2) of start and end. With them, the loss, a
            float32 scalar, and the detached shares of `metric_names`, (2,): accuracy is the share
            of samples of which both ends are right.
        """
        hidden = self.head(self.encoder(**encoder_input))
        hidden = dropout(hidden, self.dropout_prob if self.training else 0.0)
        scores: Tensor = self.span(hidden).float()  # (T, 2)
        if start_positions is None or end_positions is None:
            return scores
        padded = _by_sample(scores, **encoder_input)[:num_real_samples]
        start_logits, end_logits = padded.unbind(2)  # (B, S) each
        loss = F.cross_entropy(start_logits, start_positions, reduction="sum")
        loss = loss + F.cross_entropy(end_logits, end_positions, reduction="sum")
        loss = loss / (2 * num_samples)
        is_right = (start_logits.argmax(1) == start_positions) & (
            end_logits.argmax(1) == end_positions
        )
        return loss, torch.stack([loss.detach(), is_right.sum() / num_samples])


Head = (
    BertForTextClassification
    | BertForTextRegression
    | BertForTokenClassification
    | BertForQuestionAnswering
)


def start_from(
    head: Head, pretrained: BertForPreTraining, initializer_range: float, new_pooler: bool = False
) -> None:
    """Fills a head: encoder and pooler from pretraining, what is new as pretraining began.

    A prediction head starts as the transform of the MLM head, as transformers fills it, too.
    New weights come from torch's global generator: seed it alike on all ranks.

    Args:
        head: is filled.
        pretrained: the weights to start from.
        initializer_range: standard deviation of new matrices.
        new_pooler: the pooler is new, too: next-sentence prediction leaves a few directions of
            [CLS] in it (Zhang et al. 2021, https://arxiv.org/abs/2006.05987, section 5).
    """
    own = pretrained.state_dict()
    for place, module in head.named_children():
        if isinstance(module, PredictionHead):
            own |= {f"{place}.{name}": own[f"mlm_{name}"] for name in module.state_dict()}
    kept = ("encoder.", "head.") if new_pooler else ("encoder.", "head.", "pooler.")
    missing, _ = head.load_state_dict(
        {name: value for name, value in own.items() if name.startswith(kept)},
        strict=False,
    )
    with torch.no_grad():
        for name in missing:
            parameter: Any = head.get_parameter(name)
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=initializer_range)
            elif name.endswith("bias"):  # the weight of a LayerNorm is 1 from the start
                nn.init.zeros_(parameter)


def _cls_scores(
    head: BertForTextClassification | BertForTextRegression,
    num_real_samples: int,
    encoder_input: dict[str, Any],
) -> Tensor:
    """Float32 scores (B, C) of the samples' [CLS]."""
    hidden = head.encoder(**encoder_input)
    cls_positions = encoder_input["cu_seqlens"][:num_real_samples]  # (B,)
    pooled = head.pooler(hidden.index_select(0, cls_positions))  # (B, H)
    pooled = dropout(pooled, head.dropout_prob if head.training else 0.0)
    scores: Tensor = head.classifier(pooled).float()
    return scores


def _by_sample(
    values: Tensor, *, cu_seqlens: Tensor, position_ids: Tensor, max_seqlen: int, **_: Tensor
) -> Tensor:
    """Values of tokens (T, C) as (samples, S, C), -inf behind the end of a sample."""
    tokens = torch.arange(len(values), dtype=cu_seqlens.dtype, device=values.device)
    sample_of_token = torch.searchsorted(cu_seqlens[1:], tokens, right=True)
    shape = (len(cu_seqlens) - 1, max_seqlen, values.shape[1])
    padded = values.new_full(shape, -torch.inf)
    return padded.index_put((sample_of_token, position_ids), values)
