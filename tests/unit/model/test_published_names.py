"""Names: every parameter goes to its published name and comes back; faults are named."""

import pytest
import torch
import transformers
from torch import Tensor

from dist_bert.common.errors import UserError
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.published_names import from_published, to_published

TINY = ModelConfig(
    vocab_size=101,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=19,
)
DECODER = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")


def random_state_dict() -> dict[str, Tensor]:
    """No two parameters alike; padded rows zero, as `from_published` leaves them."""
    torch.manual_seed(1)
    state_dict = {k: torch.randn_like(v) for k, v in BertForPreTraining(TINY).state_dict().items()}
    state_dict["encoder.word_embeddings.weight"][101:] = 0.0
    return state_dict


@pytest.fixture
def published() -> dict[str, Tensor]:
    return to_published(random_state_dict(), TINY)


def test_names_and_shapes_are_those_of_transformers(published: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        reference = transformers.BertForPreTraining(
            transformers.BertConfig(
                vocab_size=101,
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=37,
                max_position_embeddings=19,
            )
        )
    expected = {name: value.shape for name, value in reference.state_dict().items()}
    assert {name: value.shape for name, value in published.items()} == expected


def test_query_key_and_value_are_the_thirds_of_qkv(published: dict[str, Tensor]) -> None:
    qkv = random_state_dict()["encoder.layers.1.qkv.bias"]
    for part, name in enumerate(("query", "key", "value")):
        bias = published[f"bert.encoder.layer.1.attention.self.{name}.bias"]
        assert torch.equal(bias, qkv[24 * part : 24 * (part + 1)])


def test_there_and_back_is_the_identity(published: dict[str, Tensor]) -> None:
    original = random_state_dict()
    back = from_published(published, TINY)
    BertForPreTraining(TINY).load_state_dict(back)
    assert back.keys() == original.keys()
    for name, value in original.items():
        assert torch.equal(back[name], value), name


def test_files_without_the_tied_decoder_are_understood(published: dict[str, Tensor]) -> None:
    whole = from_published(published, TINY)
    for name in DECODER:
        del published[name]
    for name, value in from_published(published, TINY).items():
        assert torch.equal(value, whole[name]), name


def test_a_file_may_keep_the_tied_bias_under_its_other_name(published: dict[str, Tensor]) -> None:
    whole = from_published(published, TINY)
    del published["cls.predictions.bias"]
    assert torch.equal(from_published(published, TINY)["mlm_bias"], whole["mlm_bias"])


def test_older_files_are_understood(published: dict[str, Tensor]) -> None:
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in published.items()
    }
    assert "bert.embeddings.LayerNorm.gamma" in older
    older["bert.embeddings.position_ids"] = torch.arange(19)[None]
    for name, value in from_published(older, TINY).items():
        assert torch.equal(value, random_state_dict()[name]), name


def test_faults_are_named(published: dict[str, Tensor]) -> None:
    del published["bert.pooler.dense.bias"]
    published["bert.pooler.extra"] = torch.zeros(1)
    published["cls.predictions.bias"] = torch.zeros(128)
    with pytest.raises(UserError) as raised:
        from_published(published, TINY)
    for problem in (
        "missing bert.pooler.dense.bias",
        "unknown bert.pooler.extra",
        "cls.predictions.bias is (128,), must be (101,)",
    ):
        assert problem in str(raised.value)


def test_many_faults_stay_one_short_line() -> None:
    with pytest.raises(UserError, match=r"missing bert\..*; and 41 more$") as raised:
        from_published({}, TINY)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", DECODER)
def test_a_decoder_that_is_not_tied_is_refused(name: str, published: dict[str, Tensor]) -> None:
    published[name] = published[name] + 1.0
    with pytest.raises(UserError, match=f"{name} differs from"):
        from_published(published, TINY)
