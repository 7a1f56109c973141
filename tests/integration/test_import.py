"""A published BERT through the scripts: imported, shards of its pieces, trained on, exported."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers

from dist_bert.data.shard_format import Manifest
from dist_bert.inference.trained_run import TrainedRun
from tests.integration.conftest import BIN, assert_one_line_error, prepare_shards, run_script
from tests.integration.test_pretrain import write_configs
from tests.support import labelled
from tests.support.corpus import write_text_files
from tests.support.published import (
    SIZES,
    byte_level_tokenizer,
    published_vocabulary,
    write_byte_level,
    write_modern_weights,
    write_vocabulary,
    write_weights,
)

VOCABULARY = published_vocabulary(lower_case=True)
SCRIPT = (sys.executable, "launch/import_model.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `published`, and `imported` by the script."""
    folder = tmp_path_factory.mktemp("import")
    write_vocabulary(folder / "published", VOCABULARY, do_lower_case=True)
    write_weights(folder / "published", len(VOCABULARY) + 6)
    made = run_script(*SCRIPT, "--input", folder / "published", "--output_dir", folder / "imported")
    assert made.returncode == 0 and made.stderr == "", made.stdout + made.stderr
    lines = made.stdout.splitlines()
    heads = [line.split()[0] for line in lines]
    assert heads[:-1] == ["importing", "model", "vocabulary", "outputs", "token"], made.stdout
    assert "--init_from" in lines[-1] and str(folder / "imported/tokenizer.model") in lines[-1]
    return folder


def test_training_goes_on_from_it(folder: Path, tmp_path: Path) -> None:
    imported = folder / "imported"
    write_text_files(tmp_path / "text", count=60)
    made = prepare_shards(
        1, "--input", tmp_path / "text/*.txt", "--tokenizer", imported / "tokenizer.model",
        "--output_dir", tmp_path / "shards", "--sequence_length", "53", "--validation_share", "0.2",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    manifest = Manifest.load(tmp_path / "shards").tokenizer
    assert (manifest["vocab_size"], manifest["num_reserved_pieces"]) == (len(VOCABULARY), 125)
    optimizer = {"type": "AdamW", "params": {"lr": 2e-5, "torch_adam": True, "fused": True}}
    flags = write_configs(tmp_path, 2, "fp32", train_batch_size=6, optimizer=optimizer)
    flags[1] = imported / "model.json"
    ended = run_script(
        BIN / "python", "launch/pretrain.py", *flags, "--shards", tmp_path / "shards",
        "--output_dir", tmp_path / "run", "--init_from", imported, "--num_train_steps", "2",
        "--warmup_steps", "2", "--validation_samples", "5",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"weights from {imported}\n" in ended.stdout, "nothing is missing or not known"
    assert (tmp_path / "run/tokenizer.model").read_bytes() == (
        imported / "tokenizer.model"
    ).read_bytes()
    made = run_script(
        sys.executable, "launch/export_model.py", "--checkpoint", tmp_path / "run",
        "--output_dir", tmp_path / "export",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "0 differ" in made.stdout
    card = (tmp_path / "export/README.md").read_text("utf-8")
    assert "| optimizer steps | 2 |" in card and "an imported WordPiece vocabulary" in card

    text = "The old [MASK] is in the well, 昨天"
    logits = []
    for path in (folder / "published", tmp_path / "export"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = transformers.BertForPreTraining.from_pretrained(
            path, trust_remote_code=False
        ).eval()
        with torch.no_grad():
            answers = model(**tokenizer(text, return_tensors="pt")).prediction_logits[0]
        logits.append(answers[:, tokenizer.convert_tokens_to_ids(VOCABULARY)])
    difference = (logits[0] - logits[1]).abs().max()
    assert 1e-3 < difference < 0.1, "two steps with a small lr: the same model, a little further"


def test_training_goes_on_from_byte_level_pieces(tmp_path: Path) -> None:
    """ModernBERT's own folder: words masked whole, two steps, words tagged, exported again."""
    published, imported = tmp_path / "published", tmp_path / "imported"
    write_byte_level(published, byte_level_tokenizer())
    ids = {"pad": 668, "cls": 666, "sep": 667, "bos": 666, "eos": 667}
    write_modern_weights(published, 688, **{f"{name}_token_id": i for name, i in ids.items()})
    made = run_script(*SCRIPT, "--input", published, "--output_dir", imported)
    assert made.returncode == 0 and made.stderr == "", made.stdout + made.stderr
    write_text_files(tmp_path / "text", count=60)
    made = prepare_shards(
        1, "--input", tmp_path / "text/*.txt", "--tokenizer", imported / "tokenizer.model",
        "--output_dir", tmp_path / "shards", "--sequence_length", "53", "--validation_share", "0.2",
        "--pair_objective", "none", "--whole_words", "true",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    manifest = Manifest.load(tmp_path / "shards").tokenizer
    assert (manifest["vocab_size"], manifest["num_reserved_pieces"]) == (677, 14)
    optimizer = {"type": "AdamW", "params": {"lr": 2e-5, "torch_adam": True, "fused": True}}
    flags = write_configs(tmp_path, 2, "fp32", train_batch_size=6, optimizer=optimizer)
    flags[1] = imported / "model.json"
    ended = run_script(
        BIN / "python", "launch/pretrain.py", *flags, "--shards", tmp_path / "shards",
        "--output_dir", tmp_path / "run", "--init_from", imported, "--num_train_steps", "2",
        "--warmup_steps", "2", "--validation_samples", "5", "--masks", "fresh",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"weights from {imported}; not in it and new: " in ended.stdout, ended.stdout
    made = run_script(
        sys.executable, "launch/export_model.py", "--checkpoint", tmp_path / "run",
        "--output_dir", tmp_path / "export",
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    assert "0 differ" in made.stdout

    text = "The old [MASK] is in the well, 昨天"
    logits = []
    for path in (published, tmp_path / "export"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = transformers.ModernBertForMaskedLM.from_pretrained(path, trust_remote_code=False)
        with torch.no_grad():
            logits.append(model.eval()(**tokenizer(text, return_tensors="pt")).logits[0])
    difference = (logits[0] - logits[1]).abs().max()
    assert 1e-4 < difference < 0.1, "two steps with a small lr: the same model, a little further"

    labelled.write_tagged(tmp_path / "tags.txt", labelled.tagged(40))
    ended = run_script(
        BIN / "python", "launch/finetune.py", "--task", "token_classification",
        "--deepspeed_config", tmp_path / "deepspeed_config.json", "--checkpoint", tmp_path / "run",
        "--train", tmp_path / "tags.txt", "--output_dir", tmp_path / "tagger",
        "--num_train_epochs", "1",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    made = run_script(
        sys.executable, "launch/export_model.py", "--checkpoint", tmp_path / "tagger",
        "--output_dir", tmp_path / "exported_tagger",
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    assert "tag_words agrees on 32 of 32 examples" in made.stdout, made.stdout


def test_the_scripts_use_it(folder: Path) -> None:
    text = "The [MASK] lamp."
    filled = run_script(
        sys.executable, "launch/fill_mask.py", "--checkpoint", folder / "imported", "--json", text
    )
    assert filled.returncode == 0, filled.stderr
    ((answer, *_),) = json.loads(filled.stdout)["answers"]
    assert answer["piece"] in VOCABULARY
    run = TrainedRun.load(folder / "imported")
    assert (run.config.hidden_size, run.step) == (SIZES["hidden_size"], 0)


def test_mistakes_are_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "roberta").mkdir()
    (tmp_path / "roberta/config.json").write_text('{"model_type": "roberta"}')
    (tmp_path / "roberta/model.safetensors").touch()
    published = folder / "published"
    for source, new, problem in (
        (tmp_path, tmp_path / "new", "is a pickle, which can run code, and is not read"),
        (tmp_path / "none", tmp_path / "new", "--input "),
        (tmp_path / "run", tmp_path / "new", "has no checkpoint yet"),
        (tmp_path / "roberta", tmp_path / "new", "model_type = 'roberta': only 'bert' fits"),
        (published / "model.safetensors", tmp_path / "new", "is a run or a single file"),
        (published, folder / "imported", "exists and is not an empty folder"),
    ):
        made = run_script(*SCRIPT, "--input", source, "--output_dir", new)
        assert_one_line_error(made, problem)
        assert not new.exists() or new.name == "imported"
    dry = run_script(*SCRIPT, "--input", published, "--output_dir", tmp_path / "new", "--dry_run")
    assert str(published / "model.safetensors") in dry.stdout and not (tmp_path / "new").exists()
