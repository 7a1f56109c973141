"""Each head of fine-tuning against that of `transformers`: scores, losses and all gradients."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from dist_bert.data.batches import NO_LABEL
from dist_bert.finetuning.batches import micro_batch
from dist_bert.finetuning.features import Features
from dist_bert.finetuning.heads import (
    BertForQuestionAnswering,
    BertForTextClassification,
    BertForTextRegression,
    BertForTokenClassification,
    Head,
    Pooler,
    start_from,
)
from dist_bert.finetuning.regression_task import RegressionTask
from dist_bert.huggingface.folder import load_model, write_model
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.micro_batches import to_device
from dist_bert.model.published_config import to_published_config
from dist_bert.model.published_names import to_published
from tests.support.deterministic_ops import Names, refused
from tests.support.synthetic import MODERN_PARTS

pytestmark = pytest.mark.trains

TINY = ModelConfig(
    vocab_size=101,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=19,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
MODERN = dataclasses.replace(
    TINY,
    **MODERN_PARTS,
    global_attn_every_n_layers=2,
    local_attention=4,
)
LENGTHS = (13, 7, 5)
SEGMENT_B_STARTS = (6, 7, 3)  # the second one has no segment B
NUM_CLASSES = 3
CPU = torch.device("cpu")


def make_features(labels: dict[str, Any], token_labels: Any = None) -> Features:
    rng = np.random.default_rng(1)
    return Features(
        rng.integers(5, TINY.vocab_size, sum(LENGTHS)).astype(np.int32),
        np.concatenate(([0], np.cumsum(LENGTHS))),
        np.array(SEGMENT_B_STARTS),
        labels,
        token_labels,
    )


def reference_config(num_labels: int, problem_type: str | None = None) -> Any:
    shared = {n: v for n, v in dataclasses.asdict(TINY).items() if n != "mlm_hidden_act"}
    return transformers.BertConfig(**shared, num_labels=num_labels, problem_type=problem_type)


def shaken(head: nn.Module) -> Any:
    """Weights far from the initial ones: no zero bias and no flat attention hides a fault."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return head


def copied(reference: Any, head: nn.Module, config: ModelConfig = TINY) -> Any:
    """The reference with the head's weights; no name may be left over."""
    reference.load_state_dict(to_published(head.state_dict(), config))
    return reference.train()


def modern_reference(kind: str, head: nn.Module, num_labels: int) -> Any:
    """One of transformers' ModernBERT classes, from what an export says, with a head's weights."""
    config = transformers.ModernBertConfig.from_dict(
        {**to_published_config(MODERN), "num_labels": num_labels, "pad_token_id": 0}
    )
    return copied(getattr(transformers, kind)(config), head, MODERN)


def padded(features: Features) -> dict[str, Tensor]:
    """All samples as (B, S) with a mask, as transformers takes them."""
    shape = (len(LENGTHS), max(LENGTHS))
    ids, mask, segments = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    for row, (length, begin) in enumerate(zip(LENGTHS, features.offsets, strict=False)):
        ids[row, :length] = torch.from_numpy(features.input_ids[begin : begin + length]).long()
        mask[row, :length] = 1
        segments[row, SEGMENT_B_STARTS[row] : length] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def assert_same_gradients(head: nn.Module, reference: Any, config: ModelConfig = TINY) -> None:
    expected = {name: p.grad for name, p in reference.named_parameters()}
    ours = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in head.named_parameters()
    }
    published = to_published(ours, config)
    assert published.keys() == expected.keys()
    for name, gradient in published.items():
        other = expected[name]
        assert other is not None, name
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=2e-6, msg=name)


def batch_of(features: Features, with_labels: bool = True) -> dict[str, Any]:
    return to_device(micro_batch(features, np.arange(len(LENGTHS)), with_labels), CPU)


def test_single_labels() -> None:
    features = make_features({"labels": np.array([2, 0, 1])})
    head = shaken(BertForTextClassification(TINY, NUM_CLASSES, has_several_labels=False))
    reference = copied(
        transformers.BertForSequenceClassification(reference_config(NUM_CLASSES)), head
    )
    expected = reference(**padded(features), labels=torch.tensor([2, 0, 1]))
    loss, metrics = head(**batch_of(features), num_samples=3)
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(
        head(**batch_of(features, False)), expected.logits, rtol=1e-4, atol=1e-5
    )
    right = (expected.logits.argmax(1) == torch.tensor([2, 0, 1])).float().mean()
    torch.testing.assert_close(metrics, torch.stack([loss.detach(), right]))
    loss.backward()
    expected.loss.backward()
    assert_same_gradients(head, reference)


def test_numbers() -> None:
    """With mean 0 and deviation 1 as transformers does; else its loss in units of the variance."""
    targets = np.array([2.5, -0.5, 4.0], np.float32)
    features = make_features({"labels": targets})
    config = reference_config(1, "regression")
    head = shaken(BertForTextRegression(TINY, mean=0.0, deviation=1.0))
    reference = copied(transformers.BertForSequenceClassification(config), head)
    expected = reference(**padded(features), labels=torch.from_numpy(targets))
    loss, metrics = head(**batch_of(features), num_samples=3)
    torch.testing.assert_close(loss, expected.loss)
    loss.backward()
    expected.loss.backward()
    assert_same_gradients(head, reference)
    absolute = (expected.logits[:, 0] - torch.from_numpy(targets)).abs().mean()
    torch.testing.assert_close(metrics, torch.stack([loss.detach(), absolute.detach()]))

    scaled = BertForTextRegression(TINY, mean=2.0, deviation=3.0)
    scaled.load_state_dict(head.state_dict())
    numbers = scaled(**batch_of(features, False))
    torch.testing.assert_close(numbers, 3.0 * expected.logits + 2.0, rtol=1e-4, atol=1e-5)
    loss, metrics = scaled(**batch_of(features), num_samples=3)
    differences = numbers[:, 0] - torch.from_numpy(targets)
    expected_metrics = torch.stack([differences.square().mean() / 9, differences.abs().mean()])
    torch.testing.assert_close(metrics, expected_metrics)
    task: Any = RegressionTask(None, 13, 2.0, 3.0)  # type: ignore[arg-type]
    published = transformers.BertForSequenceClassification(config).eval()
    published.load_state_dict(to_published(task.published_weights(scaled.state_dict()), TINY))
    torch.testing.assert_close(published(**padded(features)).logits, numbers, rtol=1e-4, atol=1e-5)


def test_several_labels_at_once() -> None:
    labels = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32)
    features = make_features({"labels": labels})
    head = shaken(BertForTextClassification(TINY, NUM_CLASSES, has_several_labels=True))
    config = reference_config(NUM_CLASSES, "multi_label_classification")
    reference = copied(transformers.BertForSequenceClassification(config), head)
    expected = reference(**padded(features), labels=torch.from_numpy(labels))
    loss, metrics = head(**batch_of(features), num_samples=3)
    torch.testing.assert_close(loss, expected.loss)
    right = ((expected.logits > 0) == torch.from_numpy(labels).bool()).all(1).float().mean()
    torch.testing.assert_close(metrics[1], right)
    loss.backward()
    expected.loss.backward()
    assert_same_gradients(head, reference)


def test_classes_of_tokens() -> None:
    labels = np.random.default_rng(3).integers(0, NUM_CLASSES, sum(LENGTHS))
    labels[[0, 4, 12, 13, 20]] = NO_LABEL
    features = make_features({}, labels)
    head = shaken(BertForTokenClassification(TINY, NUM_CLASSES))
    reference = copied(transformers.BertForTokenClassification(reference_config(NUM_CLASSES)), head)
    by_sample = torch.from_numpy(labels).split(LENGTHS)
    rows = torch.nn.utils.rnn.pad_sequence(by_sample, batch_first=True, padding_value=NO_LABEL)
    expected = reference(**padded(features), labels=rows)
    loss, metrics = head(**batch_of(features), num_labels=sum(LENGTHS) - 5)
    torch.testing.assert_close(loss, expected.loss)
    kept = rows != NO_LABEL
    right = (expected.logits.argmax(2)[kept] == rows[kept]).float().mean()
    torch.testing.assert_close(metrics[1], right)
    scores = head(**batch_of(features, False))[: sum(LENGTHS)]
    is_token = padded(features)["attention_mask"].bool()
    torch.testing.assert_close(scores, expected.logits[is_token], rtol=1e-4, atol=1e-5)
    loss.backward()
    expected.loss.backward()
    assert_same_gradients(head, reference)


def test_starts_and_ends() -> None:
    starts, ends = np.array([7, 0, 3]), np.array([9, 0, 3])
    features = make_features({"start_positions": starts, "end_positions": ends})
    head = shaken(BertForQuestionAnswering(TINY))
    reference = copied(transformers.BertForQuestionAnswering(reference_config(2)), head)
    # transformers lets padding take part in the choice: here it must not, so its scores are cut.
    out = reference(**padded(features))
    is_padding = padded(features)["attention_mask"] == 0
    losses = [
        F.cross_entropy(logits.masked_fill(is_padding, -torch.inf), torch.from_numpy(places))
        for logits, places in ((out.start_logits, starts), (out.end_logits, ends))
    ]
    expected = (losses[0] + losses[1]) / 2
    loss, metrics = head(**batch_of(features), num_samples=3)
    torch.testing.assert_close(loss, expected)
    scores = head(**batch_of(features, False))[: sum(LENGTHS)]
    torch.testing.assert_close(scores[:, 0], out.start_logits[~is_padding], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores[:, 1], out.end_logits[~is_padding], rtol=1e-4, atol=1e-5)
    chosen = [
        logits.masked_fill(is_padding, -torch.inf).argmax(1).numpy() == places
        for logits, places in ((out.start_logits, starts), (out.end_logits, ends))
    ]
    assert metrics[1].item() == pytest.approx((chosen[0] & chosen[1]).mean())
    loss.backward()
    expected.backward()
    assert_same_gradients(head, reference)


def test_starts_and_ends_of_equal_lengths_have_the_loss_of_transformers() -> None:
    features = make_features({"start_positions": np.array([7]), "end_positions": np.array([9])})
    head = shaken(BertForQuestionAnswering(TINY))
    reference = copied(transformers.BertForQuestionAnswering(reference_config(2)), head)
    first = {name: value[:1] for name, value in padded(features).items()}
    places = {"start_positions": torch.tensor([7]), "end_positions": torch.tensor([9])}
    batch = to_device(micro_batch(features, np.array([0])), CPU)
    loss, _ = head(**batch, num_samples=1)
    torch.testing.assert_close(loss, reference(**first, **places).loss)


@pytest.mark.parametrize("has_several_labels", [False, True])
def test_modern_texts(has_several_labels: bool) -> None:
    labels = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32)
    labels = labels if has_several_labels else np.array([2, 0, 1])
    features = make_features({"labels": labels})
    head = shaken(BertForTextClassification(MODERN, NUM_CLASSES, has_several_labels))
    reference = modern_reference("ModernBertForSequenceClassification", head, NUM_CLASSES)
    batch = {n: v for n, v in padded(features).items() if n != "token_type_ids"}
    expected = reference(**batch, labels=torch.from_numpy(labels))
    loss, _ = head(**batch_of(features), num_samples=3)
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(
        head(**batch_of(features, False)), expected.logits, rtol=1e-5, atol=1e-5
    )
    loss.backward()
    expected.loss.backward()
    assert_same_gradients(head, reference, MODERN)


def test_modern_numbers() -> None:
    features = make_features({"labels": np.zeros(3, np.float32)})
    head = shaken(BertForTextRegression(MODERN, mean=2.0, deviation=3.0))
    task: Any = RegressionTask(None, 13, 2.0, 3.0)  # type: ignore[arg-type]
    reference = modern_reference("ModernBertForSequenceClassification", head, 1)
    reference.load_state_dict(to_published(task.published_weights(head.state_dict()), MODERN))
    batch = {n: v for n, v in padded(features).items() if n != "token_type_ids"}
    numbers = head(**batch_of(features, False))
    torch.testing.assert_close(reference(**batch).logits, numbers, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_span", [False, True])
def test_modern_tokens(is_span: bool) -> None:
    """Classes of tokens, and starts and ends of answers; the longest sample is not in a window."""
    head: Head = BertForTokenClassification(MODERN, NUM_CLASSES)
    if is_span:
        head = BertForQuestionAnswering(MODERN)
    shaken(head)
    kind = "QuestionAnswering" if is_span else "TokenClassification"
    reference = modern_reference(f"ModernBertFor{kind}", head, 2 if is_span else NUM_CLASSES)
    batch = {n: v for n, v in padded(make_features({})).items() if n != "token_type_ids"}
    is_token = batch["attention_mask"].bool()
    out = reference(**batch)
    expected = torch.stack([out.start_logits, out.end_logits], 2) if is_span else out.logits
    scores = head(**batch_of(make_features({}), False))[: sum(LENGTHS)]
    torch.testing.assert_close(scores, expected[is_token], rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(scores)
    (scores * weights).sum().backward()
    (expected[is_token] * weights).sum().backward()
    assert_same_gradients(head, reference, MODERN)


@pytest.mark.parametrize("kind", ["texts", "tokens", "spans"])
def test_dropout_comes_before_the_classifier_alone_where_transformers_has_it(kind: str) -> None:
    """With all of it on and an encoder without any: zeros in what the classifier reads."""
    for config in (TINY, MODERN):
        config = dataclasses.replace(config, hidden_dropout_prob=0.5)
        head: Any = BertForTextClassification(config, NUM_CLASSES, has_several_labels=False)
        if kind != "texts":
            make = BertForQuestionAnswering if kind == "spans" else BertForTokenClassification
            head = make(config, *([NUM_CLASSES] if kind == "tokens" else []))
        shaken(head)
        head.encoder.eval()
        read: list[Tensor] = []
        classifier = head.span if kind == "spans" else head.classifier
        classifier.register_forward_pre_hook(lambda _, given, read=read: read.append(given[0]))
        head(**batch_of(make_features({}), False))
        has_dropout = kind != "spans" or config.architecture == "modern"
        assert bool((read[0] == 0).any()) == has_dropout


@pytest.mark.parametrize("config", [TINY, MODERN], ids=["bert", "modern"])
@pytest.mark.parametrize("kind", ["texts", "several", "tokens", "spans"])
def test_shares_of_micro_batches_add_up(kind: str, config: ModelConfig) -> None:
    rng = np.random.default_rng(5)
    labels: dict[str, Any] = {}
    token_labels = None
    totals = {"num_samples": 3}
    head: Head = BertForTextClassification(config, NUM_CLASSES, kind == "several")
    if kind == "texts":
        labels = {"labels": rng.integers(0, NUM_CLASSES, 3)}
    elif kind == "several":
        labels = {"labels": rng.integers(0, 2, (3, NUM_CLASSES)).astype(np.float32)}
    elif kind == "tokens":
        token_labels = rng.integers(0, NUM_CLASSES, sum(LENGTHS))
        totals = {"num_labels": sum(LENGTHS)}
        head = BertForTokenClassification(config, NUM_CLASSES)
    else:
        labels = {n: np.array([2, 0, 4]) for n in ("start_positions", "end_positions")}
        head = BertForQuestionAnswering(config)
    features = make_features(labels, token_labels)
    shaken(head)
    whole, whole_metrics = head(**batch_of(features), **totals)
    parts = [
        head(**to_device(micro_batch(features, np.array(samples)), CPU), **totals)
        for samples in ([2], [1, 0])
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    torch.testing.assert_close(parts[0][1] + parts[1][1], whole_metrics)
    with Names() as names:
        whole.backward()
        head(**batch_of(features), **totals)
    assert all(p.grad is not None for name, p in head.named_parameters() if "pooler" not in name)
    assert not refused(names.found), "of a run with `deterministic` on a GPU"


def test_a_head_starts_from_the_pretrained_encoder_and_pooler() -> None:
    torch.manual_seed(7)
    pretrained = shaken(BertForPreTraining(TINY))
    head = BertForTextClassification(TINY, NUM_CLASSES, has_several_labels=False)
    start_from(head, pretrained, initializer_range=0.02)
    for name, value in head.state_dict().items():
        if not name.startswith("classifier"):
            assert torch.equal(value, pretrained.state_dict()[name]), name
    assert not head.classifier.bias.any()
    assert 0.005 < head.classifier.weight.std().item() < 0.04


@pytest.mark.parametrize("kind", ["texts", "tokens", "spans"])
def test_a_modern_head_starts_as_transformers_fills_it(kind: str, tmp_path: Path) -> None:
    """From a folder of the masked LM: its transform is the prediction head."""
    torch.manual_seed(7)
    pretrained = shaken(BertForPreTraining(MODERN))
    head: Head = BertForTextClassification(MODERN, NUM_CLASSES, has_several_labels=False)
    name = "ModernBertForSequenceClassification"
    if kind == "tokens":
        head, name = (
            BertForTokenClassification(MODERN, NUM_CLASSES),
            name.replace("Sequence", "Token"),
        )
    if kind == "spans":
        head, name = BertForQuestionAnswering(MODERN), "ModernBertForQuestionAnswering"
    start_from(head, pretrained, initializer_range=0.02)
    write_model(pretrained.state_dict(), MODERN, tmp_path)
    reference = load_model(tmp_path, name)
    published = to_published(head.state_dict(), MODERN)
    for name, value in reference.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(published[name], value), name
    assert not published["classifier.bias"].any()
    assert 0.005 < published["classifier.weight"].std().item() < 0.04


def test_a_modern_head_may_start_anew() -> None:
    torch.manual_seed(7)
    pretrained = shaken(BertForPreTraining(MODERN))
    head: Any = BertForTextClassification(MODERN, NUM_CLASSES, has_several_labels=False)
    start_from(head, pretrained, initializer_range=0.02, new_pooler=True)
    assert head.pooler.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(head.pooler.norm.weight, torch.ones(MODERN.hidden_size))


def test_a_head_may_start_with_a_new_pooler() -> None:
    torch.manual_seed(7)
    pretrained = shaken(BertForPreTraining(TINY))
    head = BertForTextClassification(TINY, NUM_CLASSES, has_several_labels=False)
    start_from(head, pretrained, initializer_range=0.02, new_pooler=True)
    for name, value in head.encoder.state_dict().items():
        assert torch.equal(value, pretrained.encoder.state_dict()[name]), name
    assert isinstance(head.pooler, Pooler)
    assert not head.pooler.bias.any() and pretrained.pooler.bias.any()
    assert head.pooler.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert pretrained.pooler.weight.std().item() > 0.04
