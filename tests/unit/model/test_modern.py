"""Parts other than BERT's: ModernBERT against transformers, all combinations against plain code."""

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from dist_bert.checkpoint.checkpoint import check_identity
from dist_bert.common.errors import UserError
from dist_bert.common.settings import from_dict, read_json
from dist_bert.model import bert as model_module
from dist_bert.model.attention import SampleLayout, locate_samples
from dist_bert.model.bert import BertEncoder, BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.published_names import from_published, to_published
from tests.support import naive_encoder
from tests.support.synthetic import MODERN_PARTS
from tests.unit.model.test_bert import (
    LENGTHS,
    TINY,
    Batch,
    backward,
    encode,
    make_batch,
    make_model,
    max_difference,
    pad,
    select,
)

pytestmark = pytest.mark.trains

MODERN = dataclasses.replace(
    TINY,
    **MODERN_PARTS,
    num_hidden_layers=5,
    global_attn_every_n_layers=3,  # layers 0 and 3
    local_attention=6,
    global_rope_theta=160_000.0,
    local_rope_theta=10_000.0,
    layer_norm_eps=1e-5,
    max_position_embeddings=2_048,
)


def transformers_model(model: BertForPreTraining, config: ModelConfig) -> Any:
    """`transformers.ModernBertForMaskedLM` with the same weights."""
    reference = transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            norm_eps=config.layer_norm_eps,
            norm_bias=config.norm_bias,
            attention_bias=config.bias,
            mlp_bias=config.bias,
            classifier_bias=config.bias,
            local_attention=config.local_attention,
            global_attn_every_n_layers=config.global_attn_every_n_layers,
            global_rope_theta=config.global_rope_theta,
            local_rope_theta=config.local_rope_theta,
            pad_token_id=0,
            attn_implementation="eager",
        )
    )
    reference.load_state_dict(to_published(model.state_dict(), config))
    return reference


@pytest.mark.parametrize(
    ("lengths", "change"),
    [
        ((1,), {}),
        (LENGTHS, {}),
        (LENGTHS, {"bias": True, "norm_bias": True}),
        ((301, 64, 2), {"local_attention": 32}),
        ((2_048,), {"local_attention": 128, "num_hidden_layers": 2}),
    ],
    ids=str,
)
def test_agrees_with_transformers(lengths: tuple[int, ...], change: dict[str, Any]) -> None:
    config = dataclasses.replace(MODERN, **change)
    model = make_model(config)
    batch = make_batch(lengths) if lengths != (1,) else make_batch_of_one()
    labels = torch.full((sum(lengths),), -100)
    labels[batch["masked_lm_positions"]] = batch["masked_lm_labels"]
    attention_mask = pad(torch.ones(sum(lengths)), lengths, 0)
    batch["next_sentence_label"].fill_(-100)  # the reference has no such head
    reference = transformers_model(model, config)
    expected = reference(
        input_ids=pad(batch["input_ids"], lengths, 0),
        attention_mask=attention_mask,
        labels=pad(labels, lengths, -100),
    )
    expected.loss.backward()
    logits = model.mlm_logits(encode(model, batch))[:, : config.vocab_size]
    assert max_difference(logits, expected.logits[attention_mask.bool()]) < 1e-5
    loss, _, gradients = backward(model, batch)
    assert loss == pytest.approx(expected.loss.item(), abs=1e-5)
    published = to_published(gradients, config)
    for name, parameter in reference.named_parameters():
        assert max_difference(published[name], parameter.grad) < 1e-5, name
        assert lengths == (1,) or parameter.grad.abs().max() > 0, name


def make_batch_of_one() -> Batch:
    """A text of one token, which is masked."""
    batch = make_batch((2,))
    for name in ("input_ids", "token_type_ids", "position_ids"):
        batch[name] = batch[name][:1]
    ends = torch.tensor([0, 1], dtype=torch.int32)
    return {**batch, "cu_seqlens": ends, "max_seqlen": 1, "masked_lm_positions": torch.tensor([0])}


PARTS = [
    dict(zip(("norm", "positions", "feed_forward"), values, strict=True))
    for values in itertools.product(("post", "pre"), ("learned", "rotary"), ("mlp", "geglu"))
]


@pytest.mark.parametrize("has_all", [True, False], ids=["segments and biases", "neither"])
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(parts.values()))
def test_every_combination_agrees_with_plain_code(parts: dict[str, Any], has_all: bool) -> None:
    config = dataclasses.replace(
        TINY,
        **parts,
        bias=has_all,
        norm_bias=has_all,
        type_vocab_size=2 if has_all else 0,
        num_hidden_layers=4,
        global_attn_every_n_layers=2,
        local_attention=4,
        global_rope_theta=700.0,
        max_position_embeddings=53,
    )
    lengths = (41, 13, 2)
    model, batch = make_model(config), make_batch(lengths)
    direction = torch.randn(sum(lengths), config.hidden_size)
    weights = dict(model.named_parameters())
    own = {name: value for name, value in weights.items() if name.startswith("encoder.")}
    hidden, expected = encode(model, batch), naive_encoder.encode(weights, config, batch)
    assert max_difference(hidden, expected) < 1e-5
    ours, theirs = (
        torch.autograd.grad((x * direction).mean(), list(own.values())) for x in (hidden, expected)
    )
    for name, gradient, expected_gradient in zip(own, ours, theirs, strict=True):
        assert max_difference(gradient, expected_gradient) < 1e-5, name
        assert gradient.any(), name


def test_bert_with_the_parts_of_bert_has_no_other_parameters() -> None:
    assert BertForPreTraining(TINY).state_dict().keys() == {
        "mlm_bias",
        *(
            f"{module}.{kind}"
            for module in ("mlm_dense", "mlm_norm", "pooler", "nsp", "encoder.embeddings_norm")
            for kind in ("weight", "bias")
        ),
        *(f"encoder.{t}_embeddings.weight" for t in ("word", "position", "token_type")),
        *(
            f"encoder.layers.{index}.{module}.{kind}"
            for index in range(2)
            for module in (
                *("qkv", "attention_output", "attention_norm"),
                *("intermediate", "output", "output_norm"),
            )
            for kind in ("weight", "bias")
        ),
    }


@pytest.mark.parametrize("split", [([0], [1], [2]), ([1, 2], [0])], ids=str)
def test_shares_of_micro_batches_add_up(split: tuple[list[int], ...]) -> None:
    model, batch = make_model(MODERN), make_batch((41, 13, 5))
    loss, metrics, gradients = backward(model, batch)
    sum_of_losses, sum_of_metrics, sum_of_gradients = backward(
        model, *(select(batch, samples) for samples in split)
    )
    assert sum_of_losses == pytest.approx(loss, abs=1e-5)
    assert max_difference(sum_of_metrics, metrics) < 1e-5
    for name, gradient in gradients.items():
        assert max_difference(gradient, sum_of_gradients[name]) < 1e-5, name


def use_padded_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as on GPUs where the varlen kernel cannot be used."""

    def layout(encoder: Any, hidden: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> SampleLayout:
        return locate_samples(cu_seqlens, max_seqlen, len(hidden), False, encoder.window)

    monkeypatch.setattr(BertEncoder, "_layout", layout)


@pytest.mark.parametrize("lengths", [(41, 13, 5), (19, 19)], ids=str)
def test_the_padded_view_trains_as_the_band_does(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = make_model(MODERN), make_batch(lengths)
    loss, _, gradients = backward(model, batch)
    use_padded_view(monkeypatch)
    padded_loss, _, padded_gradients = backward(model, batch)
    assert padded_loss == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        assert max_difference(gradient, padded_gradients[name]) < 1e-5, name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_no_bit(dropout: float) -> None:
    config = dataclasses.replace(
        MODERN, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    model, batch = make_model(config), make_batch((41, 13, 5))
    results = []
    for on in (False, True):
        model.encoder.activation_checkpointing = on
        torch.manual_seed(4)
        results.append(backward(model, batch))
    (loss, metrics, gradients), (again, again_metrics, again_gradients) = results
    assert loss == again and torch.equal(metrics, again_metrics)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, again_gradients[name]), name


@pytest.mark.parametrize("index", [0, 1])
def test_a_layer_compiles_into_one_graph(index: int) -> None:
    encoder = make_model(MODERN).encoder
    num_graphs = 0

    def count(graph: Any, example_inputs: Any) -> Any:
        nonlocal num_graphs
        num_graphs += 1
        return graph.forward

    layer = encoder.layers[index]
    compiled = torch.compile(layer, backend=count, fullgraph=True, dynamic=True)
    # Never as many samples as a head has pairs, 3: torch would take the two for one size.
    for lengths in ((13, 7, 5, 6, 2), (3, 11, 8, 2), (9, 4, 17, 6, 2, 5)):
        batch = make_batch(lengths)
        layout = locate_samples(batch["cu_seqlens"], max(lengths), sum(lengths), False, 3)
        hidden = torch.randn(sum(lengths), MODERN.hidden_size)
        turn = encoder.rotations(batch["position_ids"])[index]
        assert max_difference(compiled(hidden, layout, turn), layer(hidden, layout, turn)) < 1e-5
    assert num_graphs == 1


@pytest.mark.parametrize("is_varlen", [False, True])
def test_forward_never_waits_for_the_device(
    is_varlen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "can_use_varlen_kernel", lambda *_: is_varlen)
    with torch.device("meta"):
        model = BertForPreTraining(MODERN)
    batch = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in make_batch().items()}
    loss, _ = model(**batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_bf16_stays_close_to_float32() -> None:
    torch.manual_seed(0)
    model, batch = BertForPreTraining(MODERN), make_batch((41, 13, 5))
    loss, _ = model(**batch)
    half_loss, _ = model.bfloat16()(**batch)
    assert half_loss.dtype == torch.float32
    assert 0 < abs(half_loss.item() - loss.item()) < 0.02


def test_initial_weights_are_those_of_modernbert() -> None:
    torch.manual_seed(5)
    config = dataclasses.replace(MODERN, hidden_size=96, intermediate_size=131)
    cut_off_share = 0.8796  # standard deviation of a normal one within two deviations
    for name, parameter in BertForPreTraining(config).named_parameters():
        if parameter.ndim == 1:
            assert parameter.eq(0.0 if name.endswith("bias") else 1.0).all(), name
            continue
        is_added = name.split(".")[-2] in ("attention_output", "output", "mlm_dense")
        std = 0.02 / (10**0.5 if is_added else 1.0)
        assert parameter.abs().max() <= 2 * std, name
        error = 5 * std / (2 * parameter.numel()) ** 0.5
        assert abs(parameter.std().item() - cut_off_share * std) < error, name


def test_learns_random_samples_by_heart() -> None:
    batch = make_batch(tuple(8 + b % 12 for b in range(64)))
    batch["next_sentence_label"] = torch.arange(64) % 2
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model = BertForPreTraining(dataclasses.replace(MODERN, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    metrics = torch.zeros(4)
    for _ in range(120):
        optimizer.zero_grad()
        loss, metrics = model(**batch)
        loss.backward()
        optimizer.step()
    assert metrics[2] > 0.95
    assert metrics[3] == 1.0


def test_the_published_sizes() -> None:
    """Parameters of `answerdotai/ModernBERT-base` and `-large`: 149 and 395 millions."""
    for name, num_millions in (("base", 149), ("large", 395)):
        config = from_dict(ModelConfig, read_model(name), name)
        with torch.device("meta"):
            published = to_published(BertForPreTraining(config).state_dict(), config)
            reference = transformers.ModernBertForMaskedLM(
                transformers.ModernBertConfig(
                    hidden_size=config.hidden_size,
                    intermediate_size=config.intermediate_size,
                    num_hidden_layers=config.num_hidden_layers,
                    num_attention_heads=config.num_attention_heads,
                )
            )
        shapes = {key: value.shape for key, value in reference.state_dict().items()}
        assert {key: value.shape for key, value in published.items()} == shapes
        del published["decoder.weight"]
        assert sum(value.numel() for value in published.values()) // 10**6 == num_millions


def read_model(name: str) -> dict[str, Any]:
    return read_json(f"configs/model/modern_{name}.json")


def test_names_there_and_back() -> None:
    state_dict = make_model(MODERN).state_dict()
    state_dict["encoder.word_embeddings.weight"][101:] = 0.0
    back = from_published(to_published(state_dict, MODERN), MODERN)
    unnamed = {"pooler.weight", "pooler.bias", "nsp.weight", "nsp.bias"}
    assert back.keys() == state_dict.keys() - unnamed
    for name, value in back.items():
        assert torch.equal(value, state_dict[name]), name


def test_modern_is_never_bert_in_silence() -> None:
    with pytest.raises(UserError) as raised:
        from_dict(ModelConfig, {"architecture": "modern", "local_attention": 7}, "file")
    for part in (
        "norm is post, must be pre",
        "positions is learned, must be rotary",
        "feed_forward is mlp, must be geglu",
        "type_vocab_size is 2, must be 0",
        "local_attention = 7: must be even",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"positions": "rotary", "hidden_size": 12}, "divisible by 2 * num_attention_heads = 8"),
        ({"global_rope_theta": 1.0}, "global_rope_theta = 1.0: must be above 1"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers = 0"),
        ({"type_vocab_size": -1}, "type_vocab_size = -1"),
    ],
)
def test_impossible_parts_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=r"^model configuration") as raised:
        dataclasses.replace(TINY, **change)
    assert problem in str(raised.value)


def test_older_configurations_and_checkpoints_are_those_of_bert() -> None:
    """From before there were parts to choose: 13 settings, resumed as what they were."""
    later = ModelConfig.later_settings()
    whole = dataclasses.asdict(TINY)
    older = {name: value for name, value in whole.items() if name not in later}
    assert len(older) == 13 and {**older, **later} == whole
    assert from_dict(ModelConfig, older, "an older config.json") == TINY
    saved = {f"model {name}": value for name, value in older.items()}
    contents = {"identity": {**saved, "seed": 1}, "state": {"step": 4}}
    reader: Any = SimpleNamespace(contents=contents, folder="step-4")

    def check(config: ModelConfig) -> None:
        current = {f"model {name}": value for name, value in dataclasses.asdict(config).items()}
        check_identity(reader, {**current, "seed": 1})

    check(TINY)
    with pytest.raises(
        UserError, match="model norm is 'pre', the checkpoint has 'post'; model pos"
    ):
        check(dataclasses.replace(TINY, norm="pre", positions="rotary"))
