"""A new run's first weights: from runs of ours and from transformers' files, fitted or refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.checkpoint.weights import InitialWeights, fit_positions, load_initial_weights
from dist_bert.common.errors import UserError
from dist_bert.common.files import sha256_of_file
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.published_names import from_published
from dist_bert.pretraining.config import PretrainingConfig
from tests.support.synthetic import TINY_MODEL, VOCAB_SIZE, write_run

POSITIONS = "encoder.position_embeddings.weight"
TOKENIZER = {"fingerprint": "0" * 64, "vocab_size": VOCAB_SIZE}
SIZES = dict(
    vocab_size=VOCAB_SIZE,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=41,
)


def load(path: Path, config: ModelConfig = TINY_MODEL) -> tuple[dict[str, Tensor], InitialWeights]:
    """The weights of a new model after loading, and what was done."""
    torch.manual_seed(5)
    model = BertForPreTraining(config)
    done = load_initial_weights(model, config, WeightSource.find(path))
    return model.state_dict(), done


def unloaded(config: ModelConfig = TINY_MODEL) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return BertForPreTraining(config).state_dict()


def problems(path: Path, config: ModelConfig = TINY_MODEL, **changes: Any) -> list[str]:
    tokenizer = {**TOKENIZER, **changes}
    found = WeightSource.find(path).problems(config, tokenizer, extend_positions=False)
    assert not any("\n" in problem for problem in found)
    assert all(problem.startswith(f"--init_from {path}: ") for problem in found)
    return [problem.removeprefix(f"--init_from {path}: ") for problem in found]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "made.model"
    path.write_bytes(b"only its hash is looked at")
    return path


@pytest.fixture
def run(tmp_path: Path, tokenizer: Path) -> tuple[Path, dict[str, Tensor]]:
    """A run's folder and the weights in it."""
    return tmp_path / "run", write_run(tmp_path / "run", tokenizer, TINY_MODEL, {}).state_dict()


def published(folder: Path, kind: str = "BertForPreTraining", **others: Any) -> Any:
    """A model of transformers saved as transformers saves it."""
    torch.manual_seed(7)
    model = getattr(transformers, kind)(transformers.BertConfig(**SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, **others)
    return model


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], tensor), name


def test_a_run_gives_all_its_weights(run: tuple[Path, dict[str, Tensor]], tokenizer: Path) -> None:
    folder, expected = run
    assert problems(folder, fingerprint=sha256_of_file(tokenizer)) == []
    weights, done = load(folder)
    assert_equal(weights, expected)
    assert done == InitialWeights(True, f"weights from {folder} at step-000000017")


def test_another_tokenizer_is_refused(run: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = run
    path = folder / "tokenizer.model"
    (found,) = problems(folder)
    assert found.startswith(f"{path} is not the tokenizer that made the shards")
    assert found.endswith(f"prepare the shards with --tokenizer {path}")
    path.unlink()
    assert problems(folder) == [f"{path} is missing: copy there the tokenizer of the weights"]


def test_all_differences_come_at_once(run: tuple[Path, dict[str, Tensor]], tokenizer: Path) -> None:
    other = dataclasses.replace(
        TINY_MODEL,
        vocab_size=103,
        hidden_size=28,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=39,
        type_vocab_size=1,
        hidden_act="relu",
        mlm_hidden_act="relu",
        layer_norm_eps=1e-5,
        max_position_embeddings=97,
    )
    (differences, positions) = problems(run[0], other, fingerprint=sha256_of_file(tokenizer))
    assert differences == (
        "hidden_size is 28, the weights have 24; num_hidden_layers is 3, the weights have 2;"
        " num_attention_heads is 2, the weights have 4; intermediate_size is 39, the weights have"
        " 37; hidden_act is 'relu', the weights have 'gelu'; mlm_hidden_act is 'relu', the weights"
        " have 'gelu'; type_vocab_size is 1, the weights have 2; layer_norm_eps is 1e-05, the"
        " weights have 1e-12; vocab_size is 103, the weights have 101: give the model the weights'"
        " architecture"
    )
    assert positions == (
        "max_position_embeddings = 97 is above the weights' 41: set --extend_positions true to"
        " repeat them, or --max_position_embeddings 41"
    )


@pytest.mark.parametrize("size", ["5GB", "20KB"])  # of a file: one, or several
def test_a_head_that_is_not_there_may_have_another_activation(tmp_path: Path, size: str) -> None:
    """As exports of runs whose head has one of its own."""
    other = dataclasses.replace(TINY_MODEL, mlm_hidden_act="relu")
    published(tmp_path / "whole", max_shard_size=size)
    (found,) = problems(tmp_path / "whole", other)
    assert found.startswith("mlm_hidden_act is 'relu', the weights have 'gelu'")
    folder = tmp_path / "headless"
    published(folder, "BertForNextSentencePrediction", max_shard_size=size)
    assert problems(folder, other) == []
    weights, done = load(folder, other)
    assert not done.has_mlm_head and "not in it and new: MLM head" in done.description
    head = {name for name in weights if name.startswith("mlm_")}
    assert head and all(torch.equal(weights[name], unloaded(other)[name]) for name in head)
    (found,) = problems(folder, dataclasses.replace(other, hidden_act="relu"))
    assert found.startswith("hidden_act is 'relu', the weights have 'gelu': give")
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"safetensors: cannot be read .*: fetch it again"):
        problems(folder, other)


def test_dropout_may_change(run: tuple[Path, dict[str, Tensor]], tokenizer: Path) -> None:
    other = dataclasses.replace(
        TINY_MODEL, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.0, initializer_range=0.1
    )
    assert problems(run[0], other, fingerprint=sha256_of_file(tokenizer)) == []


@pytest.mark.parametrize(("num_positions", "done"), [(97, "repeated"), (31, "cut")])
def test_positions_are_repeated_or_cut(
    run: tuple[Path, dict[str, Tensor]], num_positions: int, done: str
) -> None:
    folder, expected = run
    config = dataclasses.replace(TINY_MODEL, max_position_embeddings=num_positions)
    source = WeightSource.find(folder)
    assert not [
        p for p in source.problems(config, TOKENIZER, extend_positions=True) if "max_pos" in p
    ]
    weights, initial = load(folder, config)
    table = expected.pop(POSITIONS)
    assert torch.equal(weights.pop(POSITIONS), table[torch.arange(num_positions) % 41])
    assert_equal(weights, expected)
    assert f"positions {done} from 41 to {num_positions}" in initial.description


def test_extending_nothing_is_refused() -> None:
    PretrainingConfig(init_from="somewhere", extend_positions=True)
    with pytest.raises(UserError, match="extend_positions = True: does nothing without init_from"):
        PretrainingConfig(extend_positions=True)


def test_positions_that_fit_stay() -> None:
    table = torch.randn(5, 3)
    assert torch.equal(fit_positions(table, 5), table)


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_published_weights_give_what_transformers_computes(
    tmp_path: Path, max_shard_size: str
) -> None:
    folder = tmp_path / "published"
    reference = published(folder, max_shard_size=max_shard_size)
    is_split = (folder / "model.safetensors.index.json").exists()
    assert is_split == (max_shard_size == "20KB")
    assert problems(folder) == []
    weights, done = load(folder)
    assert_equal(weights, from_published(reference.state_dict(), TINY_MODEL))
    assert done.has_mlm_head and "only the sizes agree" in done.description
    file = next(folder.glob("model.safetensors*"))  # the one file, or the index
    assert_equal(load(file)[0], weights)


@pytest.mark.parametrize(
    ("kind", "new", "left_out"),
    [
        ("BertForMaskedLM", "pooler, NSP head", ""),
        ("BertForNextSentencePrediction", "MLM head", ""),
        ("BertModel", "MLM head, NSP head", ""),
        ("BertForTokenClassification", "MLM head, pooler, NSP head", "classifier"),
    ],
)
def test_missing_heads_stay_as_initialised(
    tmp_path: Path, kind: str, new: str, left_out: str
) -> None:
    reference = published(tmp_path, kind)
    weights, done = load(tmp_path)
    assert f"not in it and new: {new}" in done.description
    assert ("left out" in done.description) == bool(left_out)
    assert f"left out: {left_out}" in done.description or not left_out
    assert done.has_mlm_head == ("MLM head" not in new)
    initial = unloaded()
    heads = {"MLM head": "mlm_", "pooler": "pooler.", "NSP head": "nsp."}
    for head, prefix in heads.items():
        for name in initial:
            if name.startswith(prefix) and "norm" not in name and name[-4:] != "bias":
                assert torch.equal(weights[name], initial[name]) == (head in new), name
    encoder = reference.bert if hasattr(reference, "bert") else reference
    query = encoder.encoder.layer[1].attention.self.query.weight
    assert torch.equal(weights["encoder.layers.1.qkv.weight"][:24], query)


def test_half_precision_files_are_read_as_float32(tmp_path: Path) -> None:
    published(tmp_path)
    path = tmp_path / "model.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(half, path)
    weights, _ = load(tmp_path)
    expected = half["bert.embeddings.LayerNorm.weight"].float()
    assert_equal({"": weights["encoder.embeddings_norm.weight"]}, {"": expected})


def test_published_positions_are_repeated(tmp_path: Path) -> None:
    reference = published(tmp_path)
    config = dataclasses.replace(TINY_MODEL, max_position_embeddings=53)
    weights, _ = load(tmp_path, config)
    table = reference.bert.embeddings.position_embeddings.weight
    assert torch.equal(weights[POSITIONS], torch.cat([table, table[:12]]))


def test_a_published_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    published(tmp_path)
    (found,) = problems(tmp_path, vocab_size=99)
    assert found.startswith("vocab_size: the weights have 101 rows and the shards' tokenizer 99")
    assert "import the model with `python launch/import_model.py`" in found


def test_published_weights_with_our_tokenizer_beside_them_are_sure(
    tmp_path: Path, tokenizer: Path
) -> None:
    published(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    assert problems(tmp_path, vocab_size=99, fingerprint=sha256_of_file(tokenizer)) == []
    assert "is not the tokenizer that made the shards" in problems(tmp_path)[0]
    assert "sizes agree" not in load(tmp_path)[1].description


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            WeightSource.find(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "holds neither checkpoints/ of a run nor model.safetensors" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        message = refusal(path)
        assert "is not read: convert it with transformers, " in message
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert f"{tmp_path / 'config.json'} is missing" in refusal(tmp_path)
    for name, value in (
        ("model_type", "roberta"),
        ("position_embedding_type", "relative_key"),
        ("hidden_act", "gelu_new"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({name: value}))
        assert f"{name} = {value!r}: only " in refusal(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert "has no checkpoint yet" in refusal(tmp_path)


def test_an_index_that_names_missing_files_is_refused(tmp_path: Path) -> None:
    published(tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UserError, match=rf"index\.json: names {lost.name}: fetch all again"):
        WeightSource.find(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": None}, "has no object metadata: fetch it again"),
        ({"weight_map": ["a"]}, "has no object weight_map: fetch it again"),
        ({"weight_map": {"a": 1}}, "weight_map must name files of its own folder"),
        ({"weight_map": {"a": "../other/model.safetensors"}}, "weight_map must name files of its"),
        ({"weight_map": {"a": "/etc/passwd"}}, "weight_map must name files of its own folder"),
        ({"weight_map": {"a": "b\nc"}}, r"names b\\nc: fetch all again"),
        ({"weight_map": {}}, "names no file: fetch all again"),
    ],
)
def test_an_index_of_another_form_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    published(tmp_path / "model", max_shard_size="20KB")
    published(tmp_path / "other")
    index = tmp_path / "model/model.safetensors.index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **change}))
    with pytest.raises(UserError, match=rf"index\.json: {message}") as caught:
        WeightSource.find(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_published_config_that_lies_is_refused_before_the_weights_are_read(
    tmp_path: Path,
) -> None:
    published(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not looked at")
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    for change, message in (
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: must be at least 1 and at"),
        ({"hidden_size": 10**12}, "hidden_size = 1000000000000: must be at least 1 and at most"),
        ({"hidden_size": [[24]]}, r"hidden_size = \[\[24\]\]: must be int"),
        ({"hidden_act": {"a": 1}}, "hidden_act = {'a': 1}: only"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(UserError, match=message):
            WeightSource.find(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not valid JSON"):
        WeightSource.find(tmp_path)
    path.write_text('{"model": 7}')
    with pytest.raises(UserError, match="holds 7, must hold a JSON object"):
        WeightSource.find(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    published(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"{path}: cannot be read .*: fetch it again") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_architecture_may_take_the_word_embeddings_alone(
    run: tuple[Path, dict[str, Tensor]], tokenizer: Path
) -> None:
    folder, expected = run
    modern = dataclasses.replace(
        TINY_MODEL,
        architecture="modern",
        norm="pre",
        positions="rotary",
        feed_forward="geglu",
        type_vocab_size=0,
        num_hidden_layers=3,
        max_position_embeddings=512,
    )
    made_by = {**TOKENIZER, "fingerprint": sha256_of_file(tokenizer)}
    source = WeightSource.find(folder)
    (refused,) = source.problems(modern, made_by, extend_positions=False)
    assert "norm is 'pre', the weights have 'post'" in refused
    assert refused.endswith("or set --init_parts embeddings to take the word embeddings alone")
    assert source.problems(modern, made_by, extend_positions=False, parts="embeddings") == []
    wider = dataclasses.replace(modern, hidden_size=48)
    (refused,) = source.problems(wider, made_by, extend_positions=False, parts="embeddings")
    assert "hidden_size is 48, the weights have 24: give the model" in refused

    torch.manual_seed(1)
    model = BertForPreTraining(modern)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = load_initial_weights(model, modern, source, "embeddings")
    assert not done.has_mlm_head
    assert done.description == (
        f"word embeddings from {folder} at step-000000017; not taken and new: mlm_bias,"
        " embeddings_norm, layers, final_norm, mlm_dense, mlm_norm, pooler, nsp"
    )
    words = "encoder.word_embeddings.weight"
    after = dict(model.state_dict())
    assert torch.equal(after.pop(words), expected[words])
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_the_parts_to_take_need_something_to_take_them_from() -> None:
    PretrainingConfig(init_from="somewhere", init_parts="embeddings")
    with pytest.raises(UserError, match="init_parts = embeddings: does nothing without init_from"):
        PretrainingConfig(init_parts="embeddings")
    with pytest.raises(UserError, match="extend_positions = True: does nothing with init_parts"):
        PretrainingConfig(init_from="x", init_parts="embeddings", extend_positions=True)
