"""A BERT with rotary positions as transformers' NomicBert, and what that has no form for."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json
from dist_bert.huggingface.export_pretrained import export
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.micro_batches import from_padded
from dist_bert.model.published_config import from_published_config, require_published_form
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import train_tokenizer
from tests.support.corpus import english_sentences
from tests.support.synthetic import TINY_MODEL, write_run

pytestmark = pytest.mark.trains

NUM_PIECES = 151
NOMIC = dataclasses.replace(
    TINY_MODEL,
    vocab_size=NUM_PIECES + 7,
    positions="rotary",
    feed_forward="geglu",
    bias=False,
    global_rope_theta=700.0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, with weights far from the initial ones, and its tokenizer."""
    folder = tmp_path_factory.mktemp("nomic")
    config = TokenizerConfig(vocab_size=NUM_PIECES)
    tokenizer = train_tokenizer(english_sentences(500, seed=1), folder / "t", config)
    write_run(folder / "run", tokenizer, NOMIC, {})
    return folder


def test_it_is_exported_and_loaded_back(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, new = TrainedRun.load(folder / "run"), tmp_path / "new"
    export(run, folder / "run", new, None, False)
    printed = capsys.readouterr().out
    assert "left out   pooler, NSP head: NomicBertForMaskedLM has none" in printed
    assert "outputs    hidden states, MLM logits: largest difference" in printed
    model, told = transformers.AutoModelForMaskedLM.from_pretrained(
        new, output_loading_info=True, trust_remote_code=False
    )
    assert type(model).__name__ == "NomicBertForMaskedLM"
    assert not told["missing_keys"] and not told["unexpected_keys"]
    fast = transformers.AutoTokenizer.from_pretrained(new, trust_remote_code=False)
    batch = fast(["The old lamp.", "A"], ["Alice sold it", "b"], padding=True, return_tensors="pt")
    is_token = batch["attention_mask"].bool()
    names = ("input_ids", "attention_mask", "token_type_ids")
    unpadded: Any = from_padded(*(batch[name] for name in names))
    with torch.no_grad():
        ours = run.model.mlm_logits(run.model.encoder(**unpadded))[:, : NOMIC.vocab_size]
        theirs = model.eval()(**batch).logits[is_token]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    config = read_json(new / "config.json")
    assert (config["model_type"], config["cls_token_id"]) == ("nomic_bert", 2)
    again = TrainedRun.load(new)
    assert (again.config, again.missing_heads) == (NOMIC, ("pooler", "NSP head"))
    for name, value in again.own_weights().items():
        assert torch.equal(value[: NOMIC.vocab_size], run.own_weights()[name][: NOMIC.vocab_size])


def test_a_bias_of_the_mlm_head_that_is_not_zero_is_refused(folder: Path, tmp_path: Path) -> None:
    export(TrainedRun.load(folder / "run"), folder / "run", tmp_path / "new", None, False)
    file = tmp_path / "new/model.safetensors"
    tensors = load_file(file)
    name = "cls.predictions.transform.dense.bias"
    assert not tensors[name].any()
    save_file({**tensors, name: tensors[name] + 1.0}, file)
    with pytest.raises(UserError, match=f"{name} is not zero, but this model has none"):
        TrainedRun.load(tmp_path / "new")


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "pre"},
        {"feed_forward": "mlp"},
        {"bias": True},
        {"norm_bias": False},
        {"global_attn_every_n_layers": 2},
        {"type_vocab_size": 0},
    ],
    ids=str,
)
def test_other_parts_are_refused(change: dict[str, Any]) -> None:
    ((name, value),) = change.items()
    require_published_form(NOMIC)
    with pytest.raises(UserError, match=f"^{name} = {value}: transformers has no .*NomicBert"):
        require_published_form(dataclasses.replace(NOMIC, **change))


def test_published_settings_without_a_form_here_are_refused() -> None:
    """Those of nomic-embed-text: another activation; and scaled angles."""
    with pytest.raises(UserError, match="file: hidden_act = 'silu': only 'gelu'"):
        from_published_config({"model_type": "nomic_bert"}, "file")
    scaled = {"rope_type": "dynamic", "rope_theta": 1_000.0}
    with pytest.raises(UserError, match="file: rope_parameters: rope_type = 'dynamic': only"):
        from_published_config({"model_type": "nomic_bert", "rope_parameters": scaled}, "file")
