"""The folder that sentence-transformers reads: its files, and the vectors that come of them."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json
from dist_bert.huggingface.config import ExportConfig
from dist_bert.huggingface.export_pretrained import export
from dist_bert.huggingface.sentence_vectors import check_vectors
from dist_bert.inference.embed import embed_sentences
from dist_bert.inference.text_batches import Text
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.config import ModelConfig
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import train_tokenizer
from tests.integration.conftest import MODERN_PARTS
from tests.support.corpus import chinese_sentences, english_sentences
from tests.support.synthetic import TINY_MODEL, write_run

pytestmark = pytest.mark.trains

NUM_PIECES = 307
POOLINGS = {"mean": "all", "cls": "cls"}  # the flag's word -> that of launch/embed.py
TEXTS = [*english_sentences(9, 3), "昨天，老师看见了灯笼。", "lamp", *chinese_sentences(5, 7)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = english_sentences(500, seed=1) + chinese_sentences(200, seed=2)
    config = TokenizerConfig(vocab_size=NUM_PIECES)
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "t", config)


def exported(
    folder: Path, tokenizer: Path, architecture: str, pooling: str, is_normalized: bool
) -> TrainedRun:
    """Makes FOLDER/run and exports it to FOLDER/new."""
    model = dataclasses.replace(TINY_MODEL, vocab_size=NUM_PIECES, max_position_embeddings=131)
    if architecture == "modern":
        model = ModelConfig(**{**dataclasses.asdict(model), **MODERN_PARTS})
    write_run(folder / "run", tokenizer, model, {})
    (folder / "lines.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    run, lines = TrainedRun.load(folder / "run"), str(folder / "lines.txt")
    settings = (lines, False, False, pooling, is_normalized)
    export(run, folder / "run", folder / "new", *settings)
    return TrainedRun.load(folder / "run")


def vectors(run: TrainedRun, pooling: str, is_normalized: bool) -> Any:
    given = [Text.given(text) for text in TEXTS]
    rows = embed_sentences(run, given, run.config.num_hidden_layers, POOLINGS[pooling])
    made = np.stack([row.vector for row in rows])
    return made / np.linalg.norm(made, axis=1, keepdims=True) if is_normalized else made


@pytest.mark.parametrize("architecture", ["bert", "modern"])
@pytest.mark.parametrize(("pooling", "is_normalized"), [("mean", True), ("cls", False)])
def test_the_files_and_the_vectors_that_they_describe(
    tmp_path: Path,
    tokenizer: Path,
    architecture: str,
    pooling: str,
    is_normalized: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = exported(tmp_path, tokenizer, architecture, pooling, is_normalized)
    printed, folder = capsys.readouterr().out, tmp_path / "new"
    assert "vectors    " in printed and "Vectors: " in (folder / "README.md").read_text("utf-8")
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    assert json.loads((folder / "modules.json").read_text()) == [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds[: 2 + is_normalized])
    ]
    assert read_json(folder / "sentence_bert_config.json") == {
        "max_seq_length": 131, "do_lower_case": False,
    }  # fmt: skip
    assert read_json(folder / "1_Pooling/config.json") == {
        "word_embedding_dimension": 24,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    assert (folder / "2_Normalize").exists() == is_normalized
    fast = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    batch = fast(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    found = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    found = torch.nn.functional.normalize(found) if is_normalized else found
    np.testing.assert_allclose(found, vectors(run, pooling, is_normalized), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "modern"])
@pytest.mark.parametrize(("pooling", "is_normalized"), [("mean", True), ("cls", False)])
def test_sentence_transformers_loads_it(
    tmp_path: Path,
    tokenizer: Path,
    architecture: str,
    pooling: str,
    is_normalized: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    package = pytest.importorskip("sentence_transformers")
    run = exported(tmp_path, tokenizer, architecture, pooling, is_normalized)
    assert "lowest cosine of ours and sentence-transformers'" in capsys.readouterr().out
    model = package.SentenceTransformer(
        str(tmp_path / "new"), device="cpu", local_files_only=True, trust_remote_code=False
    )
    assert model.max_seq_length == 131
    ours = vectors(run, pooling, is_normalized)
    np.testing.assert_allclose(model.encode(TEXTS), ours, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"lowest cosine .* must be at least 0\.9999"):
        check_vectors(run, tmp_path / "new", "cls" if pooling == "mean" else "mean", TEXTS)


def test_without_the_package_the_export_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    run: Any = None
    assert "is not installed, so its vectors were not" in check_vectors(run, tmp_path, "cls", [])


def test_flags_that_do_not_go_together() -> None:
    ExportConfig().check(is_finetuned=True)
    ExportConfig(sentence_transformers="mean", normalize=True).check(is_finetuned=False)
    with pytest.raises(UserError, match="--normalize true: is for --sentence_transformers"):
        ExportConfig(normalize=True).check(is_finetuned=False)
    with pytest.raises(UserError, match="--sentence_transformers mean: is for pretrained runs"):
        ExportConfig(sentence_transformers="mean").check(is_finetuned=True)
