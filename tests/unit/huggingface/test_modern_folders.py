"""Folders of ModernBERT: imported, exported again, and what no folder can hold."""

import dataclasses
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import transformers

from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.checkpoint.weights import read_stored
from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json
from dist_bert.finetuning.heads import BertForTextClassification, start_from
from dist_bert.huggingface.compare import check_outputs
from dist_bert.huggingface.export_pretrained import export
from dist_bert.huggingface.folder import load_model, load_tokenizer, write_head
from dist_bert.huggingface.import_model import import_model
from dist_bert.inference.fill_mask import fill_mask
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.micro_batches import from_sequences
from tests.support.published import (
    SURPLUS_ROWS,
    published_vocabulary,
    write_modern_weights,
    write_vocabulary,
)

pytestmark = pytest.mark.trains

VOCABULARY = published_vocabulary(lower_case=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`published`, and `new` that was imported from it."""
    folder = tmp_path_factory.mktemp("modern")
    # A vocab.txt is read as BERT's alone; saved again it is a tokenizer.json, as ModernBERT's.
    write_vocabulary(folder / "bert", VOCABULARY, do_lower_case=True)
    (folder / "bert/config.json").write_text('{"model_type": "bert"}')
    load_tokenizer(folder / "bert").save_pretrained(folder / "published")
    write_modern_weights(folder / "published", len(VOCABULARY) + SURPLUS_ROWS)
    source = WeightSource.find(folder / "published", "--input")
    import_model(source, folder / "new", sample_text=None, allow_differences=False)
    return folder


def answers_of_transformers(folder: Path, text: str) -> list[str]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=False)
    assert type(model).__name__ == "ModernBertForMaskedLM"
    encoded = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    place = encoded["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    with torch.no_grad():
        logits = model.eval()(**encoded).logits[0, place, : len(VOCABULARY)]
    pieces: list[str] = tokenizer.convert_ids_to_tokens(logits.topk(3).indices.tolist())
    return pieces


def test_imported_and_exported_it_answers_as_the_published_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TrainedRun.load(folder / "new")
    assert run.missing_heads == ("pooler", "NSP head")
    assert (run.config.architecture, run.config.window) == ("modern", 3)
    text = "The old lamp is in the [MASK], and the other one stands behind the door."
    ((*answers,),) = fill_mask(run, text, 3)
    expected = answers_of_transformers(folder / "published", text)
    assert [answer.piece for answer in answers] == expected

    export(run, folder / "new", tmp_path / "exported", None, allow_differences=False)
    printed = capsys.readouterr().out
    assert "left out   pooler, NSP head: ModernBertForMaskedLM has none" in printed
    assert "outputs    hidden states, MLM logits: largest difference" in printed
    assert answers_of_transformers(tmp_path / "exported", text) == expected
    config = read_json(tmp_path / "exported/config.json")
    kinds = ["full_attention", "sliding_attention"] * 2
    assert (config["layer_types"], config["global_attn_every_n_layers"]) == (kinds, 2)
    assert all(value < 5 for name, value in config.items() if name.endswith("_token_id"))
    again = TrainedRun.load(tmp_path / "exported")
    assert again.config == run.config
    for name, value in again.own_weights().items():
        assert torch.equal(value, run.own_weights()[name]), name


def test_onnxruntime_gives_the_logits_of_texts_longer_than_the_window(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TrainedRun.load(folder / "new")
    export(run, folder / "new", tmp_path / "new", None, False, with_onnx=True)
    printed = capsys.readouterr().out
    assert "onnx       logits of onnxruntime: largest difference" in printed
    assert "at 1 x 2, 3 x 13, 2 x 53 tokens" in printed, "the window has 7"
    session = onnxruntime.InferenceSession(tmp_path / "new/model.onnx")
    assert [given.name for given in session.get_inputs()] == ["input_ids", "attention_mask"]
    ids = torch.arange(5, 46)[None]
    (logits,) = session.run(
        ["logits"], {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
    )
    unpadded: Any = from_sequences([ids[0].tolist()], torch.device("cpu"))
    with torch.no_grad():
        expected = run.model.mlm_logits(run.model.encoder(**unpadded))[:, : run.config.vocab_size]
    torch.testing.assert_close(torch.from_numpy(logits[0]), expected, rtol=1e-5, atol=1e-4)


def test_a_text_longer_than_the_window_is_always_compared(folder: Path) -> None:
    """Its difference is found, too, where all texts that were given are short."""
    run = TrainedRun.load(folder / "new")
    theirs = load_model(folder / "new", "ModernBertForMaskedLM")
    theirs.config.local_attention = 4  # read in each forward
    tokenizer = load_tokenizer(folder / "new")
    with pytest.raises(UserError, match="hidden states, MLM logits of transformers differ"):
        check_outputs(run, theirs, tokenizer, ["a", "b", "c", "d"] * 9)


def test_the_head_of_another_modern_task_is_left_out(folder: Path, tmp_path: Path) -> None:
    """It has the names of the masked LM's, but no decoder."""
    run = TrainedRun.load(folder / "new")
    head = BertForTextClassification(run.config, 3, has_several_labels=False)
    start_from(head, run.model, initializer_range=0.02)
    facts = {"architectures": ["ModernBertForSequenceClassification"]}
    write_head(head.state_dict(), run.config, facts, tmp_path)
    stored = read_stored(WeightSource.find(tmp_path))
    assert stored.missing_heads == ("MLM head", "pooler", "NSP head")
    assert stored.left_out == ("classifier", "head")
    expected = run.model.encoder.state_dict()
    assert stored.tensors.keys() == {f"encoder.{name}" for name in expected}
    for name, value in expected.items():
        assert torch.equal(stored.tensors[f"encoder.{name}"], value), name
    relu = dataclasses.replace(run.config, mlm_hidden_act="relu")
    made_by = {"vocab_size": relu.vocab_size}
    assert WeightSource.find(tmp_path).problems(relu, made_by, extend_positions=False) == []


@pytest.mark.parametrize(
    "change", [{"positions": "rotary"}, {"norm": "pre"}, {"type_vocab_size": 0}], ids=str
)
def test_a_bert_of_other_parts_is_refused(
    change: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    run = TrainedRun.load(folder / "new")
    parts: dict[str, Any] = {
        "architecture": "bert",
        "norm": "post",
        "positions": "learned",
        "feed_forward": "mlp",
        "bias": True,
        "norm_bias": True,
        "type_vocab_size": 2,
        "global_attn_every_n_layers": 1,
        **change,
    }
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, **parts))
    ((name, value),) = change.items()
    with pytest.raises(UserError, match=f"^{name} = {value}: transformers has no BERT of such"):
        export(other, folder / "new", tmp_path / "new", None, False)
    assert not list(tmp_path.iterdir())
