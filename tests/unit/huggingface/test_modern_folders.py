"""Folders of ModernBERT: imported, exported again, and what no folder can hold."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json
from dist_bert.huggingface.export_pretrained import export
from dist_bert.huggingface.folder import load_tokenizer
from dist_bert.huggingface.import_model import import_model
from dist_bert.inference.fill_mask import fill_mask
from dist_bert.inference.trained_run import TrainedRun
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


def test_onnx_is_refused(folder: Path, tmp_path: Path) -> None:
    run = TrainedRun.load(folder / "new")
    with pytest.raises(UserError, match="--onnx true: is written of BERT alone"):
        export(run, folder / "new", tmp_path / "new", None, False, with_onnx=True)
    assert not list(tmp_path.iterdir())


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
