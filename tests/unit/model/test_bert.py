"""The model against `transformers`, numpy and itself, at sizes that differ pairwise."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from dist_bert.data.batches import NO_LABEL, StepBatch
from dist_bert.model import bert as model_module
from dist_bert.model.attention import SampleLayout, attention, locate_samples
from dist_bert.model.bert import BertEncoder, BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.micro_batches import from_padded, pinned, to_device
from dist_bert.model.published_names import to_published
from dist_bert.model.tiles import group_samples

pytestmark = pytest.mark.trains

LENGTHS = (13, 7, 5)
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
ENCODER_INPUTS = ("input_ids", "token_type_ids", "position_ids", "cu_seqlens", "max_seqlen")
Batch = dict[str, Any]


def make_batch(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> Batch:
    """A global batch of one micro-batch: random pieces, two or so masked positions per sample."""
    rng = torch.Generator().manual_seed(seed)
    ends = torch.tensor(lengths).cumsum(0)
    positions = [
        end - length + 1 + torch.randperm(length - 1, generator=rng)[: max(1, length // 4)]
        for length, end in zip(lengths, ends.tolist(), strict=True)
    ]
    masked = torch.cat(positions).sort().values
    return {
        "input_ids": torch.randint(1, TINY.vocab_size, (sum(lengths),), generator=rng),
        "token_type_ids": torch.cat([(torch.arange(n) >= n // 2).long() for n in lengths]),
        "position_ids": torch.cat([torch.arange(n) for n in lengths]),
        "cu_seqlens": F.pad(ends, (1, 0)).int(),
        "max_seqlen": max(lengths),
        "masked_lm_positions": masked,
        "masked_lm_labels": torch.randint(1, TINY.vocab_size, masked.shape, generator=rng),
        "next_sentence_label": torch.randint(0, 2, (len(lengths),), generator=rng),
        "num_masked": len(masked),
        "num_samples": len(lengths),
    }


def select(batch: Batch, samples: list[int]) -> Batch:
    """The micro-batch of some samples, in the given order, with the counts of the whole batch."""
    cu_seqlens = batch["cu_seqlens"].tolist()
    spans = [range(cu_seqlens[b], cu_seqlens[b + 1]) for b in samples]
    tokens = torch.tensor([token for span in spans for token in span])
    place = {int(token): new for new, token in enumerate(tokens)}
    masked = [
        (place[position], label)
        for position, label in zip(
            batch["masked_lm_positions"].tolist(), batch["masked_lm_labels"].tolist(), strict=True
        )
        if position in place
    ]
    lengths = [len(span) for span in spans]
    return batch | {
        "input_ids": batch["input_ids"][tokens],
        "token_type_ids": batch["token_type_ids"][tokens],
        "position_ids": batch["position_ids"][tokens],
        "cu_seqlens": F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int(),
        "max_seqlen": max(lengths),
        "masked_lm_positions": torch.tensor([position for position, _ in masked]).long(),
        "masked_lm_labels": torch.tensor([label for _, label in masked]).long(),
        "next_sentence_label": batch["next_sentence_label"][torch.tensor(samples)],
    }


def pad(values: Tensor, lengths: tuple[int, ...], fill: int) -> Tensor:
    """(T,) to (B, S)."""
    samples = list(values.split(list(lengths)))
    return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=fill)


def make_model(config: ModelConfig = TINY, seed: int = 0) -> BertForPreTraining:
    """Weights far from the initial ones: no zero bias and no flat attention hides a fault."""
    torch.manual_seed(seed)
    model = BertForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def encode(model: BertForPreTraining, batch: Batch) -> Tensor:
    hidden: Tensor = model.encoder(*(batch[name] for name in ENCODER_INPUTS))
    return hidden


def backward(
    model: BertForPreTraining, *micro_batches: Batch
) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Sum of the losses, of the metrics, and of the gradients by name."""
    model.zero_grad(set_to_none=True)
    losses, metrics = zip(*(model(**micro_batch) for micro_batch in micro_batches), strict=True)
    loss = torch.stack(losses).sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), torch.stack(metrics).sum(0), gradients


def max_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def transformers_model(model: BertForPreTraining, config: ModelConfig) -> Any:
    """`transformers.BertForPreTraining` with the same weights."""
    shared = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name != "mlm_hidden_act"
    }
    reference = transformers.BertForPreTraining(
        transformers.BertConfig(**shared, attn_implementation="eager")
    )
    reference.load_state_dict(to_published(model.state_dict(), config))
    return reference


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_agrees_with_transformers(act: str) -> None:
    config = dataclasses.replace(TINY, hidden_act=act, mlm_hidden_act=act)
    model = make_model(config)
    batch = make_batch()
    attention_mask = pad(torch.ones(sum(LENGTHS)), LENGTHS, 0)
    labels = torch.full((sum(LENGTHS),), -100)
    labels[batch["masked_lm_positions"]] = batch["masked_lm_labels"]
    reference = transformers_model(model, config)
    expected = reference(
        input_ids=pad(batch["input_ids"], LENGTHS, 0),
        token_type_ids=pad(batch["token_type_ids"], LENGTHS, 0),
        attention_mask=attention_mask,
        labels=pad(labels, LENGTHS, -100),
        next_sentence_label=batch["next_sentence_label"],
    )
    expected.loss.backward()

    hidden = encode(model, batch)
    mlm_logits = model.mlm_logits(hidden[batch["masked_lm_positions"]])[:, : TINY.vocab_size]
    expected_mlm = expected.prediction_logits[attention_mask.bool()][batch["masked_lm_positions"]]
    assert max_difference(mlm_logits, expected_mlm) < 1e-5
    nsp_logits = model.nsp_logits(hidden[batch["cu_seqlens"][:-1]])
    assert max_difference(nsp_logits, expected.seq_relationship_logits) < 1e-5

    loss, _, gradients = backward(model, batch)
    assert loss == pytest.approx(expected.loss.item(), abs=1e-5)
    published = to_published(gradients, config)
    for name, parameter in reference.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        assert max_difference(published[name], parameter.grad) < 1e-5, name


def test_unpad_gives_the_unpadded_input() -> None:
    batch = make_batch()
    inputs: Mapping[str, Any] = from_padded(
        pad(batch["input_ids"], LENGTHS, 0),
        pad(torch.ones(sum(LENGTHS), dtype=torch.long), LENGTHS, 0),
        pad(batch["token_type_ids"], LENGTHS, 1),
    )
    assert set(inputs) == set(ENCODER_INPUTS)
    for name in ENCODER_INPUTS[:-1]:
        assert torch.equal(inputs[name], batch[name]), name
        assert inputs[name].dtype == batch[name].dtype
    assert inputs["max_seqlen"] == 13


def attention_in_numpy(qkv: np.ndarray, lengths: tuple[int, ...], num_heads: int) -> np.ndarray:
    """softmax(q k^T / sqrt(D)) v, one sample and one head after the other."""
    hidden_size = qkv.shape[1] // 3
    head_size = hidden_size // num_heads
    result = np.zeros((len(qkv), hidden_size))
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        for head in range(num_heads):
            q, k, v = (
                qkv[rows, part * hidden_size + head * head_size :][:, :head_size]
                for part in range(3)
            )
            scores = q @ k.T / np.sqrt(head_size)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            result[rows, head * head_size : (head + 1) * head_size] = weights @ v
        start += length
    return result


def use_padded_view(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Attention as on GPUs where the varlen kernel cannot be used; returns where calls are told."""
    calls = []

    def layout(encoder: Any, hidden: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> SampleLayout:
        calls.append(max_seqlen)
        return locate_samples(cu_seqlens, max_seqlen, len(hidden), is_varlen=False)

    monkeypatch.setattr(BertEncoder, "_layout", layout)
    return calls


@pytest.mark.parametrize("lengths", [LENGTHS, (5, 13, 7), (1, 6, 1), (7, 7), (9,)], ids=str)
def test_attention_agrees_with_numpy(lengths: tuple[int, ...]) -> None:
    qkv = torch.randn(sum(lengths), 72, generator=torch.Generator().manual_seed(3))
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    expected = torch.from_numpy(attention_in_numpy(qkv.numpy(), lengths, 4)).float()
    padded = locate_samples(cu_seqlens, max(lengths), sum(lengths), is_varlen=False)
    grouped = SampleLayout(cu_seqlens, max(lengths), tiles=group_samples(cu_seqlens, 4))
    for layout in (padded, grouped):
        context = attention(qkv, layout, num_heads=4, dropout_p=0.0)
        assert max_difference(context, expected) < 1e-5


def test_the_padded_view_trains_as_the_groups_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model(), make_batch()
    loss, _, gradients = backward(model, batch)
    is_taken = use_padded_view(monkeypatch)
    padded_loss, _, padded_gradients = backward(model, batch)
    assert is_taken and padded_loss == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        assert max_difference(gradient, padded_gradients[name]) < 1e-5, name


def test_samples_and_positions_of_padding_change_nothing() -> None:
    batch = make_batch()
    longest = max(LENGTHS)
    padded = {
        **batch,
        **{
            name: torch.cat([batch[name], torch.zeros(longest + 3, dtype=torch.int64)])
            for name in ("input_ids", "token_type_ids", "position_ids")
        },
        "cu_seqlens": torch.cat(
            [batch["cu_seqlens"], batch["cu_seqlens"][-1] + torch.tensor([longest, longest + 3])]
        ).int(),
        "max_seqlen": longest + 2,
        "masked_lm_positions": torch.cat([batch["masked_lm_positions"], torch.zeros(4).long()]),
        "masked_lm_labels": torch.cat([batch["masked_lm_labels"], torch.full((4,), -100)]),
    }
    results = []
    for inputs in (batch, padded):
        torch.manual_seed(0)
        model = BertForPreTraining(TINY).eval()
        loss, metrics = model(**inputs)
        loss.backward()
        results.append([loss.detach(), metrics, *(p.grad for p in model.parameters())])
    for plain, with_padding in zip(*results, strict=True):
        torch.testing.assert_close(plain, with_padding, rtol=0, atol=1e-6)


def test_samples_of_equal_length_need_no_mask_and_agree_with_the_masked_path() -> None:
    model, batch = make_model(), make_batch((7, 7, 7))
    assert locate_samples(batch["cu_seqlens"], 7, 21, is_varlen=False).is_real_key is None
    assert locate_samples(batch["cu_seqlens"], 8, 21, is_varlen=False).is_real_key is not None
    loss, metrics, gradients = backward(model, batch)
    masked_loss, masked_metrics, masked_gradients = backward(model, batch | {"max_seqlen": 8})
    assert loss == pytest.approx(masked_loss, abs=1e-5)
    assert max_difference(metrics, masked_metrics) < 1e-5
    for name, gradient in gradients.items():
        assert max_difference(gradient, masked_gradients[name]) < 1e-5, name


def test_a_sample_does_not_depend_on_its_neighbours_or_its_place() -> None:
    model, batch = make_model(), make_batch()
    together = encode(model, batch).split(list(LENGTHS))
    for order in ([2, 0, 1], [1, 2], [0], [2]):
        apart = encode(model, select(batch, order)).split([LENGTHS[b] for b in order])
        for b, hidden in zip(order, apart, strict=True):
            assert max_difference(hidden, together[b]) < 1e-5
    changed = batch | {"input_ids": batch["input_ids"].clone()}
    changed["input_ids"][:13] += 1  # the first sample alone
    first, *others = encode(model, changed).split(list(LENGTHS))
    assert max_difference(first, together[0]) > 0.1
    assert all(max_difference(a, b) < 1e-5 for a, b in zip(others, together[1:], strict=True))


@pytest.mark.parametrize("split", [([0], [1], [2]), ([1, 2], [0]), ([2, 0], [1])], ids=str)
def test_shares_of_micro_batches_add_up(split: tuple[list[int], ...]) -> None:
    model, batch = make_model(), make_batch()
    loss, metrics, gradients = backward(model, batch)
    sum_of_losses, sum_of_metrics, sum_of_gradients = backward(
        model, *(select(batch, samples) for samples in split)
    )
    assert sum_of_losses == pytest.approx(loss, abs=1e-5)
    assert max_difference(sum_of_metrics, metrics) < 1e-5
    for name, gradient in gradients.items():
        assert max_difference(gradient, sum_of_gradients[name]) < 1e-5, name


def test_scores_are_returned_without_labels() -> None:
    model, batch = make_model(), make_batch()
    hidden = encode(model, batch)
    mlm_scores, nsp_scores = model(**{**batch, "masked_lm_labels": None})
    assert torch.equal(mlm_scores, model.mlm_logits(hidden[batch["masked_lm_positions"]]))
    assert torch.equal(nsp_scores, model.nsp_logits(hidden[batch["cu_seqlens"][:-1]]))


def test_metrics_are_the_means_of_the_batch() -> None:
    model, batch = make_model(), make_batch()
    hidden = encode(model, batch)
    mlm_logits = model.mlm_logits(hidden[batch["masked_lm_positions"]])
    nsp_logits = model.nsp_logits(hidden[batch["cu_seqlens"][:-1]])
    # one right, all others wrong: the accuracies are known
    best = mlm_logits.argmax(1)
    batch["masked_lm_labels"] = torch.cat([best[:1], (best[1:] + 1) % TINY.vocab_size])
    batch["next_sentence_label"] = nsp_logits.argmax(1) ^ torch.tensor([0, 1, 1])
    loss, metrics = model(**batch)
    named = dict(zip(model.metric_names, metrics.tolist(), strict=True))
    assert named["mlm_accuracy"] == pytest.approx(1 / batch["num_masked"])
    assert named["nsp_accuracy"] == pytest.approx(1 / 3)
    mlm_loss = F.cross_entropy(mlm_logits, batch["masked_lm_labels"]).item()
    assert named["mlm_loss"] == pytest.approx(mlm_loss, abs=1e-5)
    nsp_loss = F.cross_entropy(nsp_logits, batch["next_sentence_label"]).item()
    assert named["nsp_loss"] == pytest.approx(nsp_loss, abs=1e-5)
    assert loss.item() == pytest.approx(named["mlm_loss"] + named["nsp_loss"], abs=1e-5)
    assert not metrics.requires_grad


def test_a_micro_batch_may_have_no_masked_position() -> None:
    model, batch = make_model(), make_batch()
    nothing = torch.zeros(0, dtype=torch.long)
    empty = batch | {"masked_lm_positions": nothing, "masked_lm_labels": nothing}
    _, metrics, gradients = backward(model, empty)
    assert metrics[[0, 2]].tolist() == [0.0, 0.0]
    assert metrics[1] > 0
    assert set(gradients) == dict(model.named_parameters()).keys()  # what ZeRO waits for
    assert not gradients["mlm_bias"].any()
    assert gradients["encoder.layers.0.qkv.weight"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_labels_the_next_sentence_head_neither_scores_nor_learns(
    dtype: torch.dtype,
) -> None:
    model, batch = make_model().to(dtype), make_batch()
    unlabelled = batch | {"next_sentence_label": torch.full((len(LENGTHS),), NO_LABEL)}
    loss, metrics, gradients = backward(model, unlabelled)
    named = dict(zip(model.metric_names, metrics.tolist(), strict=True))
    assert named["nsp_loss"] == named["nsp_accuracy"] == 0.0
    assert loss == named["mlm_loss"] > 0
    assert set(gradients) == dict(model.named_parameters()).keys()  # what ZeRO waits for
    for name, gradient in gradients.items():
        assert gradient.isfinite().all()
        assert gradient.any() == (not name.startswith(("pooler.", "nsp."))), name
    # One label among others without counts as if it were alone.
    first_alone = torch.tensor([int(batch["next_sentence_label"][0]), NO_LABEL, NO_LABEL])
    _, labelled, _ = backward(model, batch | {"next_sentence_label": first_alone})
    nothing = torch.zeros(0, dtype=torch.long)
    only_first = select(batch, [0]) | {"masked_lm_positions": nothing, "masked_lm_labels": nothing}
    _, alone, _ = backward(model, only_first)
    assert labelled[[1, 3]].tolist() == pytest.approx(alone[[1, 3]].tolist(), rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padded_vocabulary_rows_are_never_predicted_and_never_trained(dtype: torch.dtype) -> None:
    model, batch = make_model().to(dtype), make_batch()
    rows = model.encoder.word_embeddings.weight
    assert rows.shape == (128, 24)
    with torch.no_grad():
        rows[101:] = 100.0 * rows[:27]  # the largest scores, were they not masked
    logits = model.mlm_logits(encode(model, batch))
    assert logits[:, 101:].eq(-torch.inf).all()
    assert logits[:, :101].isfinite().all()
    loss, _, gradients = backward(model, batch)
    assert np.isfinite(loss)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    table_gradient = gradients["encoder.word_embeddings.weight"]
    assert not table_gradient[101:].any()
    assert table_gradient[:101].any(1).all()  # the tied decoder trains every real row


def test_initial_weights() -> None:
    torch.manual_seed(5)
    config = dataclasses.replace(TINY, hidden_size=96, intermediate_size=131)
    model = BertForPreTraining(config)
    norms = {"attention_norm", "output_norm", "embeddings_norm", "mlm_norm"}
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-2] if "." in name else ""
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif kind in norms:
            assert parameter.eq(1).all(), name
        else:  # 5 standard errors of mean and standard deviation
            count = parameter.numel()
            assert abs(parameter.mean().item()) < 5 * 0.02 / count**0.5, name
            assert abs(parameter.std().item() - 0.02) < 5 * 0.02 / (2 * count) ** 0.5, name


def test_the_mlm_bias_can_start_at_the_unigram_distribution() -> None:
    model = BertForPreTraining(TINY)
    counts = torch.tensor([0, 0, 0, 7, 29])  # of a tokenizer with fewer pieces than the model
    model.start_from_frequencies(counts)
    torch.nn.init.zeros_(model.encoder.word_embeddings.weight)  # no context reaches the logits
    probabilities = model.mlm_logits(torch.ones(2, TINY.hidden_size)).softmax(1)
    expected = torch.ones(TINY.vocab_size) / (36 + TINY.vocab_size)  # each piece counted once more
    expected[3:5] *= torch.tensor([8, 30])
    torch.testing.assert_close(probabilities[0, : TINY.vocab_size], expected)


def test_the_seed_alone_decides_the_weights() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(BertForPreTraining(TINY).parameters())

    assert torch.equal(weights(7), weights(7))
    assert not torch.equal(weights(7), weights(8))


def test_bert_base_has_the_published_number_of_parameters() -> None:
    config = ModelConfig()
    with torch.device("meta"):
        model = BertForPreTraining(config)
        reference = transformers.BertForPreTraining(transformers.BertConfig())
    count = sum(p.numel() for p in model.parameters())
    padding = (30_528 - 30_522) * 768
    assert count == sum(p.numel() for p in reference.parameters()) + padding
    h, inner = 768, 3_072
    layer = 4 * (h * h + h) + (h * inner + inner) + (inner * h + h) + 4 * h
    encoder = (30_522 + 512 + 2) * h + 2 * h + 12 * layer + (h * h + h)  # with the pooler
    assert encoder == 109_482_240  # "110M" of the paper
    assert count == encoder + (h * h + h + 2 * h + 30_522) + (2 * h + 2) + padding


def test_the_decoder_is_the_embedding_table() -> None:
    model = make_model()
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert shapes.count((128, 24)) == 1
    before = model.mlm_logits(torch.ones(1, 24))
    with torch.no_grad():
        model.encoder.word_embeddings.weight[17] += 1.0
    changed = (model.mlm_logits(torch.ones(1, 24)) != before).flatten().nonzero().flatten()
    assert changed.tolist() == [17]


def test_bf16_stays_close_to_float32() -> None:
    torch.manual_seed(0)
    model, batch = BertForPreTraining(TINY), make_batch()
    loss, metrics = model(**batch)
    half_loss, half_metrics = model.bfloat16()(**batch)
    assert half_loss.dtype == half_metrics.dtype == torch.float32
    assert 0 < abs(half_loss.item() - loss.item()) < 0.02
    assert max_difference(half_metrics[:2], metrics[:2]) < 0.02


def test_cross_entropy_is_in_float32_whatever_the_weights() -> None:
    model, batch = make_model().bfloat16(), make_batch()
    logits = model.mlm_logits(encode(model, batch)[batch["masked_lm_positions"]])
    assert logits.dtype == torch.bfloat16
    expected = F.cross_entropy(logits.float(), batch["masked_lm_labels"]).item()
    assert model(**batch)[1][0].item() == pytest.approx(expected, rel=1e-6)
    rounded = F.cross_entropy(logits, batch["masked_lm_labels"]).item()
    assert rounded != pytest.approx(expected, rel=1e-4)


with_dropout = pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(TINY, hidden_dropout_prob=0.3),
        dataclasses.replace(TINY, attention_probs_dropout_prob=0.3),
    ],
    ids=["hidden", "attention"],
)


@with_dropout
def test_dropout_acts_in_training_alone(config: ModelConfig) -> None:
    model, batch = make_model(config), make_batch()
    plain = encode(make_model(TINY), batch)
    assert torch.equal(encode(model.eval(), batch), plain)
    model.train()
    torch.manual_seed(11)
    first, second = encode(model, batch), encode(model, batch)
    torch.manual_seed(11)
    assert torch.equal(encode(model, batch), first)
    assert max_difference(first, second) > 0.01
    assert max_difference(first, plain) > 0.01


@with_dropout
def test_dropout_sits_where_transformers_has_it(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of equal length: both draw the same numbers of random values in the same order."""
    monkeypatch.setattr(model_module, "dropout", F.dropout)  # the one that transformers has
    use_padded_view(monkeypatch)
    model, batch = make_model(config), make_batch((7, 7, 7))
    reference = transformers_model(model, config).train()
    torch.manual_seed(11)
    hidden = encode(model, batch)
    torch.manual_seed(11)
    expected = reference.bert(
        input_ids=batch["input_ids"].view(3, 7), token_type_ids=batch["token_type_ids"].view(3, 7)
    )
    assert max_difference(hidden, expected.last_hidden_state.flatten(0, 1)) < 1e-5


@pytest.mark.parametrize("is_varlen", [False, True])
def test_forward_never_waits_for_the_device(
    is_varlen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meta tensors have shapes but no values: whatever would read a value on the host raises."""
    monkeypatch.setattr(model_module, "can_use_varlen_kernel", lambda *_: is_varlen)
    with torch.device("meta"):
        model = BertForPreTraining(TINY)
    batch = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in make_batch().items()}
    loss, metrics = model(**batch)
    loss.backward()
    assert (loss.shape, metrics.shape) == ((), (4,))
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


def test_a_layer_compiles_into_one_graph() -> None:
    """For any number of tokens and samples: nothing in it is read by the host."""
    layer = make_model().encoder.layers[0]
    num_graphs = 0

    def count(graph: Any, example_inputs: Any) -> Any:
        nonlocal num_graphs
        num_graphs += 1
        return graph.forward

    compiled = torch.compile(layer, backend=count, fullgraph=True, dynamic=True)
    for lengths in (LENGTHS, (3, 11, 8, 2), (9, 4, 17, 6, 2)):
        cu_seqlens = make_batch(lengths)["cu_seqlens"]
        layout = locate_samples(cu_seqlens, max(lengths), sum(lengths), is_varlen=False)
        hidden = torch.randn(sum(lengths), TINY.hidden_size)
        assert max_difference(compiled(hidden, layout), layer(hidden, layout)) < 1e-5
    assert num_graphs == 1


def test_learns_random_samples_by_heart() -> None:
    lengths = tuple(8 + b % 12 for b in range(64))
    batch = make_batch(lengths)
    batch["next_sentence_label"] = torch.arange(64) % 2
    torch.manual_seed(0)
    model = BertForPreTraining(dataclasses.replace(TINY, hidden_size=64, intermediate_size=128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    metrics = torch.zeros(4)
    for _ in range(120):
        optimizer.zero_grad()
        loss, metrics = model(**batch)
        loss.backward()
        optimizer.step()
    assert metrics[2] > 0.95
    assert metrics[3] == 1.0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_no_bit(dropout: float) -> None:
    config = dataclasses.replace(
        TINY, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    model, batch = make_model(config), make_batch()
    passes: list[int] = []
    for layer in model.encoder.layers:
        layer.register_forward_pre_hook(lambda *_: passes.append(1))
    results = []
    for on in (False, True):
        model.encoder.activation_checkpointing = on
        passes.clear()
        torch.manual_seed(4)
        results.append(backward(model, batch))
        assert len(passes) == (4 if on else 2)
    (loss, metrics, gradients), (again, again_metrics, again_gradients) = results
    assert loss == again and torch.equal(metrics, again_metrics)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, again_gradients[name]), name
    if dropout:
        torch.manual_seed(5)
        assert backward(model, batch)[0] != loss


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_layers_agree_and_are_compiled_once_for_all_lengths() -> None:
    config = dataclasses.replace(TINY, hidden_size=32)
    plain, compiled = (make_model(config).cuda().bfloat16() for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compiled.encoder.compile_layers()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    torch._dynamo.utils.counters.clear()
    for lengths in (LENGTHS, (3, 11, 8, 2), (9, 4, 17, 6, 2)):
        batch = {
            k: v.cuda() if isinstance(v, Tensor) else v for k, v in make_batch(lengths).items()
        }
        loss, _, _ = backward(plain, batch)
        compiled_loss, _, _ = backward(compiled, batch)
        assert compiled_loss == pytest.approx(loss, abs=0.02)
    num_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert num_graphs <= 2 * config.num_hidden_layers  # static first, then for any size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_the_gpu_never_waits_for_it() -> None:
    """Forward and backward, from pinned batches on: torch raises at what synchronises."""
    config = dataclasses.replace(
        TINY, hidden_size=32, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
    )
    model = make_model(config).cuda().bfloat16()
    arrays = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in make_batch().items()}
    step = StepBatch([arrays], num_samples=3, num_tokens=25, lengths=np.array(LENGTHS))
    (step,) = pinned(iter([step]))
    model(**to_device(step.micro_batches[0], torch.device("cuda")))[0].backward()  # set-up
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(2):
            loss, _ = model(**to_device(step.micro_batches[0], torch.device("cuda")))
            loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
