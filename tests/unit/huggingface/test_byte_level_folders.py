"""ModernBERT's own folders: imported with their byte-level BPE, used, and exported with its ids."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json
from dist_bert.finetuning.predict import FineTunedModel
from dist_bert.huggingface.export_finetuned import export_finetuned
from dist_bert.huggingface.export_pretrained import export
from dist_bert.huggingface.import_model import import_model
from dist_bert.huggingface.tokenizer import ODD_TEXTS
from dist_bert.inference.embed import embed_sentences
from dist_bert.inference.evaluate import evaluate
from dist_bert.inference.fill_mask import fill_mask
from dist_bert.inference.text_batches import Text
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.micro_batches import from_sequences
from dist_bert.tokenizer.tokenizer import CLS_ID, SEP_ID
from tests.support import labelled
from tests.support.published import (
    byte_level_tokenizer,
    write_byte_level,
    write_modern_weights,
)
from tests.support.synthetic import write_data_set, write_finetuned_run

pytestmark = pytest.mark.trains

PUBLISHED = byte_level_tokenizer()
NUM_PIECES = 677
NUM_ROWS = NUM_PIECES + 11
MASK = 669
SPECIAL = {"pad": 668, "cls": 666, "sep": 667, "bos": 666, "eos": 667, "mask": MASK}
TEXTS = (
    "The old lamp is in the [MASK], and two  more stand behind the door.",
    "昨天，老师看见了[MASK]灯笼。👍🏽",
    "  leading spaces,\ttabs,\r\nnai\u0308ve e\u0301 \x1c",
)


def write_published(folder: Path, **changes: Any) -> Any:
    write_byte_level(folder, {**PUBLISHED, **changes})
    ids = {f"{name}_token_id": index for name, index in SPECIAL.items()}
    return write_modern_weights(folder, NUM_ROWS, **ids)


def imported(source: Path, folder: Path) -> TrainedRun:
    import_model(WeightSource.find(source, "--input"), folder, None, allow_differences=False)
    return TrainedRun.load(folder)


def loaded(folder: Path) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = transformers.ModernBertForMaskedLM.from_pretrained(folder, trust_remote_code=False)
    return tokenizer, model.eval()


@pytest.fixture(scope="module")
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, said: io.StringIO) -> Path:
    """`published`, `new` that was imported from it, and `back`, exported again."""
    folder = tmp_path_factory.mktemp("bpe")
    write_published(folder / "published")
    with contextlib.redirect_stdout(said):
        run = imported(folder / "published", folder / "new")
        export(run, folder / "new", folder / "back", None, allow_differences=False)
    return folder


def test_logits_are_the_published_ones(folder: Path, said: io.StringIO) -> None:
    told = said.getvalue()
    assert "byte-level BPE, 677 pieces, 11 rows of no piece, special ones at 0-4 here" in told
    assert told.count(" 0 differ") == 2 and "left out   pooler, NSP head" in told
    run = TrainedRun.load(folder / "new")
    tokenizer, model = loaded(folder / "published")
    order = run.tokenizer.published_ids
    assert order is not None
    for text in TEXTS:
        encoded = tokenizer(text, return_tensors="pt")
        ids = [CLS_ID, *run.tokenizer.encode_with_mask(text), SEP_ID]
        assert order[ids].tolist() == encoded["input_ids"][0].tolist()
        with torch.no_grad():
            batch: Any = from_sequences([ids], torch.device("cpu"))
            ours = run.model.mlm_logits(run.model.encoder(**batch))[:, :NUM_ROWS]
            theirs = model(**encoded).logits[0]
        torch.testing.assert_close(ours[:, :NUM_PIECES], theirs[:, order], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours[:, NUM_PIECES:], theirs[:, NUM_PIECES:], rtol=0, atol=1e-5)


def test_folders_for_transformers_have_the_published_ids(folder: Path) -> None:
    published = load_file(folder / "published/model.safetensors")
    content = (folder / "published/tokenizer.json").read_bytes()
    tokenizer, _ = loaded(folder / "published")
    for name in ("new", "back"):
        weights = load_file(folder / name / "model.safetensors")
        assert weights.keys() == published.keys()
        for key, value in weights.items():
            assert torch.equal(value, published[key]), key
        assert (folder / name / "tokenizer.json").read_bytes() == content
        assert (folder / name / "tokenizer.model").read_bytes() == content
        config = read_json(folder / name / "config.json")
        assert {key: config[f"{key}_token_id"] for key in SPECIAL} == SPECIAL
        other, _ = loaded(folder / name)
        for text in (*TEXTS, *ODD_TEXTS):
            assert other(text)["input_ids"] == tokenizer(text)["input_ids"], text
    card = (folder / "back/README.md").read_text("utf-8")
    assert "the imported byte-level BPE, unchanged: ids and rows of the word embeddings" in card
    assert read_json(folder / "new/import.json")["token_ids"].endswith("0 differ")


def test_all_folders_can_be_used_and_imported_as_they_are(folder: Path, tmp_path: Path) -> None:
    run = TrainedRun.load(folder / "new")
    for other in (
        TrainedRun.load(folder / "published"),
        TrainedRun.load(folder / "back"),
        imported(folder / "back", tmp_path / "again"),
    ):
        assert other.tokenizer.fingerprint == run.tokenizer.fingerprint
        for name, value in other.own_weights().items():
            assert torch.equal(value, run.own_weights()[name]), name


def test_masks_are_filled_and_texts_embedded(folder: Path, tmp_path: Path) -> None:
    run = TrainedRun.load(folder / "new")
    tokenizer, model = loaded(folder / "published")
    encoded = tokenizer(TEXTS[0], return_tensors="pt")
    place = encoded["input_ids"][0].tolist().index(MASK)
    with torch.no_grad():
        best = model(**encoded).logits[0, place].softmax(-1)
    top = best[:NUM_PIECES].topk(3)
    ((*answers,),) = fill_mask(run, TEXTS[0], 3)
    order = run.tokenizer.published_ids
    assert order is not None
    ours = {int(index): place for place, index in enumerate(order)}
    assert [a.piece for a in answers] == [
        run.tokenizer.piece(ours[index]) for index in top.indices.tolist()
    ]
    np.testing.assert_allclose([a.probability for a in answers], top.values, rtol=1e-4)
    (embedded,) = embed_sentences(run, [Text.given("The lamp")], layer=4)
    assert embedded.tokens == ["The", "▁l", "a", "mp"]
    content = run.tokenizer.path.read_bytes()
    write_data_set(tmp_path / "shards", vocab_size=NUM_PIECES, tokenizer=content)
    assert evaluate(run, tmp_path / "shards").scores.num_samples == 19


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_fine_tuned_models_are_exported_with_the_published_ids(
    folder: Path, tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TrainedRun.load(folder / "new")
    facts: dict[str, Any] = {"max_seq_length": 47}
    examples = tmp_path / ("examples.txt" if task == "token_classification" else "examples.json")
    if task == "token_classification":
        facts["classes"] = ["O", "B-COUNT", "I-COUNT", "B-PER", "I-PER"]
        labelled.write_tagged(examples, labelled.tagged(16))
    else:
        facts |= {"doc_stride": 11, "max_question_tokens": 13, "max_answer_tokens": 7}
        facts |= {"may_lack_answers": True, "as_token_classes": False}
        facts["null_score_threshold"] = 0.0
        labelled.write_questions(examples, labelled.questions(16))
    write_finetuned_run(tmp_path / "run", run.tokenizer.path, run.config, task, facts, examples)
    export_finetuned(FineTunedModel.load(tmp_path / "run"), tmp_path / "out", None, False, False)
    told = capsys.readouterr().out
    name = "tag_words" if task == "token_classification" else "find_answer"
    assert f"{name} agrees on 16 of 16 examples" in told and " 0 differ" in told
    own = load_file(tmp_path / "run/model.safetensors")["encoder.word_embeddings.weight"]
    theirs = load_file(tmp_path / "out/model.safetensors")["model.embeddings.tok_embeddings.weight"]
    order = run.tokenizer.published_ids
    assert order is not None
    assert torch.equal(theirs[order], own[:NUM_PIECES])


def test_what_is_not_modernbert_s_is_refused(tmp_path: Path) -> None:
    source, new = tmp_path / "published", tmp_path / "new"

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            imported(source, new)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("*new*")), "nothing is left"
        return str(caught.value)

    write_published(source, normalizer={"type": "NFKC"})
    assert f"{source}/tokenizer.json: its normalizer has type = 'NFKC'" in refusal()
    added = PUBLISHED["added_tokens"]
    more = [{**added[-1], "id": NUM_PIECES + i, "content": f"<{i}>"} for i in range(12)]
    write_byte_level(source, {**PUBLISHED, "added_tokens": [*added, *more]})
    assert "its tokenizer has 689 pieces, the word embeddings 688 rows" in refusal()


def test_rows_in_another_order_end_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_published(tmp_path / "published")
    monkeypatch.setattr("dist_bert.checkpoint.weights._BY_PIECE", ("mlm_bias",))
    with pytest.raises(UserError, match="hidden states, MLM logits of transformers differ"):
        imported(tmp_path / "published", tmp_path / "new")
