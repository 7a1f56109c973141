"""Published BERTs imported in a process: what they compute and how they cut texts stay the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.common.settings import from_dict, read_json
from dist_bert.huggingface.export_pretrained import export
from dist_bert.huggingface.folder import load_tokenizer
from dist_bert.huggingface.import_model import import_model, vocabulary_texts
from dist_bert.inference.embed import embed_sentences
from dist_bert.inference.evaluate import evaluate
from dist_bert.inference.fill_mask import fill_mask
from dist_bert.inference.text_batches import Text
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.config import ModelConfig
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import Tokenizer, train_tokenizer
from tests.support.published import (
    SENTENCES,
    SIZES,
    SURPLUS_ROWS,
    fast_tokenizer,
    published_vocabulary,
    write_vocabulary,
    write_weights,
)
from tests.support.synthetic import write_data_set, write_run

UNCASED = published_vocabulary(lower_case=True)
NUM_ROWS = len(UNCASED) + SURPLUS_ROWS
# As bert-base-chinese: every ideograph alone, and once more as the rest of a word.
IDEOGRAPHS = sorted({c for c in "".join(SENTENCES) if "\u4e00" <= c <= "\u9fff"})
CHINESE = [
    *UNCASED[:104],
    *"，。！？,.",
    *IDEOGRAPHS,
    *(f"##{c}" for c in IDEOGRAPHS),
    "the",
    "##s",
]


def imported(folder: Path, name: str = "new", **arguments: Any) -> TrainedRun:
    """Imports `folder/published`."""
    values = {"sample_text": None, "allow_differences": False, **arguments}
    import_model(WeightSource.find(folder / "published", "--input"), folder / name, **values)
    return TrainedRun.load(folder / name)


def published_logits(folder: Path, text: str) -> tuple[Any, Any]:
    """Tokenizer of a published folder, and its MLM logits at the tokens of a text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = transformers.BertForMaskedLM.from_pretrained(folder, trust_remote_code=False).eval()
    with torch.no_grad():
        return tokenizer, model(**tokenizer(text, return_tensors="pt")).logits[0]


def refusal(folder: Path, **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        imported(folder, **arguments)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("new*")) and not list(folder.glob(".new*")), "nothing is left"
    return str(caught.value)


@pytest.mark.parametrize(
    ("vocabulary", "lower_case", "text"),
    [
        (UNCASED, True, "The old Lamp is in the [MASK], 昨天"),
        (published_vocabulary(lower_case=False), False, "The old lamp is in the [MASK]."),
        (CHINESE, False, "昨天，老师看见了[MASK]笼"),
    ],
    ids=["uncased", "cased", "chinese"],
)
def test_an_imported_model_answers_as_the_published_one(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    vocabulary: list[str],
    lower_case: bool,
    text: str,
) -> None:
    folder = tmp_path / "published"
    write_vocabulary(folder, vocabulary, do_lower_case=lower_case)
    write_weights(folder, len(vocabulary) + SURPLUS_ROWS)
    run = imported(tmp_path)
    printed = capsys.readouterr().out
    assert f"{len(vocabulary):,} pieces, 6 rows of no piece, special ones moved to 0-4" in printed
    assert "0 differ" in printed and "hidden states, MLM logits, pooled, NSP logits" in printed
    assert int(printed.split(" texts compared")[0].split()[-1].replace(",", "")) > 3_000
    assert run.tokenizer.num_reserved_pieces == (125 if "[unused119]" in vocabulary else 104)
    tokenizer, logits = published_logits(folder, text)
    place = tokenizer(text)["input_ids"].index(tokenizer.mask_token_id)
    best = logits[place].softmax(-1)[: len(vocabulary)].topk(3)
    ((*answers,),) = fill_mask(run, text, 3)
    assert [a.piece for a in answers] == [vocabulary[i] for i in best.indices.tolist()]
    np.testing.assert_allclose([a.probability for a in answers], best.values, rtol=1e-4)
    assert from_dict(ModelConfig, read_json(tmp_path / "new/model.json"), "") == run.config


def test_all_parts_take_the_folder(tmp_path: Path) -> None:
    """Evaluated on shards of its tokenizer, embedded, exported back, and imported again."""
    folder = tmp_path / "published"
    write_vocabulary(folder, UNCASED, do_lower_case=True)
    write_weights(folder, NUM_ROWS)
    run = imported(tmp_path)
    tokenizer = run.tokenizer.path.read_bytes()
    write_data_set(tmp_path / "shards", vocab_size=len(UNCASED), tokenizer=tokenizer)
    result = evaluate(run, tmp_path / "shards")
    assert (result.step, result.scores.num_samples) == (0, 19)
    assert result.scores.nsp_accuracy is not None
    source = WeightSource.find(tmp_path / "new")
    manifest = read_json(tmp_path / "shards/manifest.json")
    assert source.problems(run.config, manifest["tokenizer"], extend_positions=False) == []
    (embedded,) = embed_sentences(run, [Text.given("The old lamps")], layer=2)
    assert embedded.tokens == [UNCASED[i] for i in map(UNCASED.index, embedded.tokens)]

    export(run, tmp_path / "new", tmp_path / "back", None, allow_differences=False)
    card = (tmp_path / "back/README.md").read_text("utf-8")
    assert "an imported WordPiece vocabulary" in card
    text = "The old [MASK] is in the well, 昨天"
    (ours, back), (theirs, logits) = (
        published_logits(path, text) for path in (tmp_path / "back", folder)
    )
    assert ours.tokenize(text) == theirs.tokenize(text)
    new_ids = ours.convert_tokens_to_ids(UNCASED)
    torch.testing.assert_close(back[:, new_ids], logits[:, : len(UNCASED)], rtol=1e-4, atol=1e-4)
    (tmp_path / "back").rename(tmp_path / "elsewhere")
    (tmp_path / "published").rename(tmp_path / "original")
    (tmp_path / "elsewhere").rename(tmp_path / "published")
    assert imported(tmp_path, "again").tokenizer.fingerprint == run.tokenizer.fingerprint


@pytest.mark.parametrize(
    ("kind", "missing", "left_out"),
    [
        ("BertModel", ["MLM head", "NSP head"], []),
        ("BertForMaskedLM", ["pooler", "NSP head"], []),
        ("BertForNextSentencePrediction", ["MLM head"], []),
        ("BertForSequenceClassification", ["MLM head", "NSP head"], ["classifier"]),
        ("BertForQuestionAnswering", ["MLM head", "pooler", "NSP head"], ["qa_outputs"]),
    ],
)
def test_missing_heads_are_said_and_stay_missing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    missing: list[str],
    left_out: list[str],
) -> None:
    folder = tmp_path / "published"
    write_vocabulary(folder, UNCASED, do_lower_case=True)
    model = write_weights(folder, NUM_ROWS, kind)
    run = imported(tmp_path)
    printed = capsys.readouterr().out
    assert f"not in it  {', '.join(missing)}\n" in printed
    assert not left_out or f"left out   {left_out[0]}\n" in printed
    assert list(run.missing_heads) == missing
    record = json.loads((tmp_path / "new/import.json").read_text())
    assert (record["missing_heads"], record["left_out"]) == (missing, left_out)
    encoder = getattr(model, "bert", model)
    query = encoder.encoder.layer[1].attention.self.query.weight
    assert torch.equal(run.model.encoder.layers[1].qkv.weight[:24], query)  # type: ignore[union-attr,index]
    (embedded,) = embed_sentences(run, [Text.given("A lamp")], layer=2)
    assert np.isfinite(embedded.vector).all()
    tokenizer = run.tokenizer.path.read_bytes()
    write_data_set(tmp_path / "shards", vocab_size=len(UNCASED), tokenizer=tokenizer)
    if "MLM head" not in missing:
        assert evaluate(run, tmp_path / "shards").scores.nsp_loss is None, "its head is random"
        return
    for use in (
        lambda: evaluate(run, tmp_path / "shards"),
        lambda: list(fill_mask(run, "A [MASK]", 1)),
    ):
        with pytest.raises(UserError, match="has no MLM head, which tells masked tokens"):
            use()
    export(run, tmp_path / "new", tmp_path / "back", None, allow_differences=False)
    assert TrainedRun.load(tmp_path / "back").missing_heads == run.missing_heads
    (architecture,) = json.loads((tmp_path / "back/config.json").read_text())["architectures"]
    has_pairs = "NSP head" not in missing
    assert architecture == ("BertForNextSentencePrediction" if has_pairs else "BertModel")
    card = (tmp_path / "back/README.md").read_text(encoding="utf-8")
    assert "It lacks the masked LM head: the model has none" in card and "fill-mask" not in card


def test_other_files_of_the_same_model_are_the_same(tmp_path: Path) -> None:
    """tokenizer.json with padding and cutting, several files in bfloat16, old names."""
    folder = tmp_path / "published"
    write_vocabulary(folder, UNCASED, do_lower_case=True)
    write_weights(folder, NUM_ROWS)
    plain = imported(tmp_path, "plain")
    tensors = load_file(folder / "model.safetensors")
    old = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(53)[None]
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    fast = fast_tokenizer(UNCASED, lower_case=True)
    fast.add_special_tokens(
        [AddedToken(UNCASED[i], normalized=False) for i in (0, *range(100, 104))]
    )
    fast.enable_truncation(9)
    fast.enable_padding(length=9)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    again = imported(tmp_path, "again")
    assert again.tokenizer.fingerprint == plain.tokenizer.fingerprint
    for name, value in plain.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    assert len(again.tokenizer.encode("the old lamp " * 20)) >= 60, "never cut"
    (folder / "model.safetensors").unlink()
    write_weights(folder, NUM_ROWS, max_shard_size="40KB", dtype="bfloat16")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert imported(tmp_path, "sharded").model.mlm_bias.dtype == torch.float32


def test_an_export_of_ours_keeps_its_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train_tokenizer(SENTENCES, tmp_path / "tokenizer", TokenizerConfig(vocab_size=601))
    config = ModelConfig(vocab_size=607, **SIZES)  # type: ignore[arg-type]
    model = write_run(tmp_path / "run", path, config, {})
    run = TrainedRun.load(tmp_path / "run")
    export(run, tmp_path / "run", tmp_path / "published", None, allow_differences=False)
    again = imported(tmp_path)
    assert "SentencePiece, 601 pieces, 6 rows of no piece\n" in capsys.readouterr().out
    assert again.tokenizer.fingerprint == Tokenizer(path).fingerprint
    for name, value in model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name][:607], value[:607]), name
    used = TrainedRun.load(tmp_path / "published")
    assert used.missing_heads == (), "it can be used as it is, too"


def test_shards_of_another_tokenizer_give_an_export_no_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An imported model has no shards; what lies in data/shards may be of any vocabulary."""
    monkeypatch.chdir(tmp_path)
    write_data_set(Path("data/shards"), vocab_size=30_000)
    write_vocabulary(tmp_path / "published", UNCASED, do_lower_case=True)
    write_weights(tmp_path / "published", NUM_ROWS)
    run = imported(tmp_path)
    export(run, tmp_path / "new", tmp_path / "back", None, allow_differences=False)
    assert "no shards of this tokenizer in data/shards: only" in capsys.readouterr().out


def test_a_run_that_has_ended_needs_no_checkpoint(tmp_path: Path) -> None:
    path = train_tokenizer(SENTENCES, tmp_path / "tokenizer", TokenizerConfig(vocab_size=601))
    config = ModelConfig(vocab_size=607, **SIZES)  # type: ignore[arg-type]
    model = write_run(tmp_path / "run", path, config, {"bf16": {"enabled": True}})
    save_file(model.state_dict(), tmp_path / "run/model.safetensors")
    values = read_json(tmp_path / "run/config.json")
    files.write_json(tmp_path / "run/config.json", {**values, "run": {"num_train_steps": 29}})
    assert TrainedRun.load(tmp_path / "run").step == 17, "of the checkpoint"
    (tmp_path / "run/checkpoints").rename(tmp_path / "moved")
    run = TrainedRun.load(tmp_path / "run")
    assert (run.step, run.precision, run.missing_heads) == (29, "bf16", ())
    assert all(torch.equal(run.model.state_dict()[n], v) for n, v in model.state_dict().items())
    assert not WeightSource.find(tmp_path / "run").is_published
    with pytest.raises(UserError, match="has no best checkpoint"):
        TrainedRun.load(tmp_path / "run", "best")


def test_every_piece_is_compared(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "published", UNCASED, do_lower_case=True)
    write_weights(tmp_path / "published", NUM_ROWS)
    with pytest.raises(UserError, match=r"--checkpoint .*: has no tokenizer\.model; import"):
        TrainedRun.load(tmp_path / "published")
    tokenizer = imported(tmp_path).tokenizer
    seen = {i for text in vocabulary_texts(tokenizer) for i in tokenizer.encode(text)}
    missing = set(range(125, tokenizer.vocab_size)) - seen
    assert len(missing) < 0.03 * tokenizer.vocab_size  # pieces that longer ones always take


def test_what_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    write_weights(folder, NUM_ROWS)
    assert "has neither vocab.txt nor tokenizer.json" in refusal(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    assert "transformers cannot load its tokenizer" in refusal(tmp_path)
    (folder / "tokenizer.json").unlink()
    write_vocabulary(folder, [p for p in UNCASED if p != "[MASK]"], do_lower_case=True)
    assert "its vocabulary lacks [MASK], which this system requires" in refusal(tmp_path)
    write_vocabulary(folder, [*UNCASED, *"abcdefg"], do_lower_case=True)
    assert f"ids up to {NUM_ROWS}, the word embeddings {NUM_ROWS} rows" in refusal(tmp_path)
    write_vocabulary(folder, UNCASED, do_lower_case=True)
    lines = {"sample_text": str(tmp_path / "none")}
    assert "--sample_text" in refusal(tmp_path, **lines)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.add_tokens(["covid"])
    tokenizer.save_pretrained(folder)
    assert "has added tokens (covid), without which" in refusal(tmp_path)


def test_code_in_a_folder_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if somebody says yes where transformers would ask."""
    (tmp_path / "vocab.txt").write_text("\n".join(UNCASED))
    own = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": own}
    files.write_json(tmp_path / "tokenizer_config.json", settings)
    (tmp_path / "own.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import BertTokenizer\nclass OwnTokenizer(BertTokenizer): pass\n"
    )
    monkeypatch.setattr("builtins.input", lambda question: "y")
    with pytest.raises(UserError, match=r"cannot load its tokenizer .* contains custom code"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_an_untied_decoder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    write_vocabulary(folder, UNCASED, do_lower_case=True)
    write_weights(folder, NUM_ROWS)
    tensors = load_file(folder / "model.safetensors")
    tensors["cls.predictions.decoder.weight"] = torch.zeros(NUM_ROWS, 24)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    text = "differs from bert.embeddings.word_embeddings.weight, but this model ties them"
    assert text in refusal(tmp_path)


def test_what_transformers_does_otherwise_ends_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "published"
    write_vocabulary(folder, UNCASED, do_lower_case=True)
    write_weights(folder, NUM_ROWS)
    monkeypatch.setattr("dist_bert.checkpoint.weights._BY_PIECE", ("mlm_bias",))
    assert "hidden states, MLM logits, pooled, NSP logits of transformers" in refusal(tmp_path)
    monkeypatch.undo()
    other = fast_tokenizer(UNCASED, lower_case=False)
    from dist_bert.huggingface import tokenizer

    renumber = tokenizer.renumbered
    monkeypatch.setattr(
        "dist_bert.huggingface.tokenizer.renumbered",
        lambda _, rows, name: renumber(other, rows, name),
    )
    assert "have other token ids in transformers, must be 0" in refusal(tmp_path)
    assert imported(tmp_path, "allowed", allow_differences=True)
