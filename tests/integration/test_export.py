"""A run exported through the script, and loaded by transformers alone."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import tokenizers
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.huggingface import tokenizer
from dist_bert.huggingface.export_pretrained import export
from dist_bert.huggingface.folder import check_new_folder, load_model
from dist_bert.huggingface.onnx_model import write_onnx
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.config import ModelConfig
from dist_bert.model.micro_batches import from_padded
from dist_bert.model.published_names import from_published
from tests.integration.conftest import TINY_MODEL, assert_one_line_error, environment, run_script
from tests.support.corpus import chinese_sentences, english_sentences
from tests.support.synthetic import write_run

SCRIPT = (sys.executable, "launch/export_model.py")
NAMES = ("input_ids", "attention_mask", "token_type_ids")
MODEL = ModelConfig(**{**TINY_MODEL, "hidden_act": "relu", "mlm_hidden_act": "relu"})  # type: ignore[arg-type]
LINES = english_sentences(300, seed=8) + chinese_sentences(200, seed=9)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A run, the folder made of it, and what the script said."""

    run_dir: Path
    model: Any
    folder: Path
    output: str


@pytest.fixture(scope="module")
def exported(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """707 rows of the table, 701 of them pieces; 768 with the padded ones."""
    folder = tmp_path_factory.mktemp("export")
    model = write_run(folder / "run", data_set / "tokenizer.model", MODEL, {})
    config = json.loads((folder / "run/config.json").read_text())
    manifest = json.loads((data_set / "manifest.json").read_text())
    shards = {
        "fingerprint": "f00d",
        "config": manifest["config"],
        "tokenizer": manifest["tokenizer"],
        "random_next": 0.375,
    }
    run = {"shards": str(data_set), "num_train_steps": 29}
    files.write_json(folder / "run/config.json", {**config, "run": run, "shards": shards})
    scores = {"loss": 3.0, "mlm_loss": 2.5, "nsp_accuracy": 0.75}
    row = {"step": 17, **{f"validation/{name}": score for name, score in scores.items()}}
    (folder / "run/metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "new").mkdir()  # empty: may be there
    made = run_script(*SCRIPT, "--checkpoint", folder / "run", "--output_dir", folder / "new")
    assert made.returncode == 0 and made.stderr == "", made.stdout + made.stderr
    return Exported(folder / "run", model, folder / "new", made.stdout)


def test_the_export_says_what_it_compared(exported: Exported) -> None:
    assert "step-000000017: 0.1 M parameters" in exported.output
    assert "0 differ" in exported.output and "largest difference" in exported.output
    card = (exported.folder / "README.md").read_text(encoding="utf-8")
    for fact in ("| optimizer steps | 17 |", "`f00d`", "| sequence_length | 53 |", "2.5000"):
        assert fact in card
    assert "75.00% (always the more frequent label: 62.50%)" in card
    assert "texts compared, 0 differ" in card
    assert {path.name for path in exported.folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "special_tokens_map.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    assert not list(exported.folder.parent.glob(".*")), "nothing temporary is left"


def test_transformers_alone_loads_it(exported: Exported, tmp_path: Path) -> None:
    """In a process that cannot see our package, and without a network."""
    program = (
        "import sys, torch, transformers as t\n"
        "folder, plain = sys.argv[1], dict(output_loading_info=True, trust_remote_code=False)\n"
        "tokenizer = t.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)\n"
        "model, told = t.AutoModelForMaskedLM.from_pretrained(folder, **plain)\n"
        "assert not told['missing_keys'], told\n"
        "for kind in (t.AutoModel, t.AutoModelForPreTraining):\n"
        "    _, told = kind.from_pretrained(folder, **plain)\n"
        "    assert not told['missing_keys'], told\n"
        "assert tokenizer.model_max_length == 53 == model.config.max_position_embeddings\n"
        "batch = tokenizer(['The old [MASK].', '昨天'], ['Alice', '灯笼。'], padding=True,"
        " return_tensors='pt')\n"
        "logits = model.eval()(**batch).logits\n"
        "answers = t.pipeline('fill-mask', model=model, tokenizer=tokenizer,"
        " trust_remote_code=False)('An old [MASK].')\n"
        "assert len(answers) == 5\n"
        "assert 'dist_bert' not in sys.modules and tokenizer.is_fast\n"
        "torch.save({**batch, 'logits': logits}, sys.argv[2])\n"
    )
    ended = run_script(
        sys.executable, "-c", program, exported.folder, tmp_path / "batch.pt", cwd=tmp_path,
        env={**environment(), "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    batch = torch.load(tmp_path / "batch.pt")
    assert batch["token_type_ids"].max() == 1
    unpadded: Any = from_padded(*(batch[name] for name in NAMES))
    with torch.no_grad():
        ours = exported.model.mlm_logits(exported.model.encoder(**unpadded))[:, :707]
    theirs = batch["logits"][batch["attention_mask"].bool()]
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_files_say_what_they_are(exported: Exported) -> None:
    config = json.loads((exported.folder / "config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"] and config["hidden_act"] == "relu"
    assert (config["vocab_size"], config["pad_token_id"], config["mask_token_id"]) == (707, 0, 4)
    settings = json.loads((exported.folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    with safe_open(exported.folder / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}
    assert WeightSource.find(exported.folder).model == MODEL, "and --init_from takes it back"
    back = from_published(load_file(exported.folder / "model.safetensors"), MODEL)
    for name, value in exported.model.state_dict().items():
        rows = 707 if name == "encoder.word_embeddings.weight" else None  # without the padded ones
        assert torch.equal(back[name][:rows], value[:rows]), name


def test_other_ids_end_the_export_unless_they_are_allowed(
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = TrainedRun.load(exported.run_dir)
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join([*LINES, "an old ｌａｍｐ", "[CLS] spelt"]), encoding="utf-8")
    export(run, exported.run_dir, tmp_path / "equal", str(lines), False)
    compared = len(LINES) + 1 + len(tokenizer.ODD_TEXTS)
    assert f"{compared:,} texts compared, 0 differ" in capsys.readouterr().out
    plain = tokenizers.normalizers.NFC()  # forgets full-width letters and spaces
    monkeypatch.setattr("dist_bert.huggingface.tokenizer._normalizer", lambda spec: plain)
    with pytest.raises(UserError, match=r"of 520 texts have other token ids .* must be 0;"):
        export(run, exported.run_dir, tmp_path / "other", str(lines), False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["equal", "lines.txt"]
    export(run, exported.run_dir, tmp_path / "other", str(lines), True)
    assert "in '  two  spaces" in capsys.readouterr().out
    assert (tmp_path / "other/model.safetensors").exists()


def test_other_logits_end_the_export(exported: Exported, tmp_path: Path) -> None:
    run = TrainedRun.load(exported.run_dir)
    gelu = dataclasses.replace(run.config, hidden_act="gelu", mlm_hidden_act="gelu")
    with pytest.raises(
        UserError, match="MLM logits, pooled, NSP logits of transformers differ from ours"
    ):
        export(
            dataclasses.replace(run, config=gelu), exported.run_dir, tmp_path / "new", None, True
        )
    assert not list(tmp_path.iterdir())
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    for name, problem in (("none", "cannot be read"), ("latin", "is not UTF-8")):
        with pytest.raises(UserError, match=f"--sample_text .*{name}: {problem}"):
            export(run, exported.run_dir, tmp_path / "new", str(tmp_path / name), True)


def test_onnxruntime_fills_masks(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights beside the file, as those of large models; and weights that it does not have."""
    monkeypatch.setattr("dist_bert.huggingface.onnx_model._MAX_FILE_BYTES", 0)
    folder = tmp_path / "new"
    export(TrainedRun.load(exported.run_dir), exported.run_dir, folder, None, False, with_onnx=True)
    assert (folder / "model.onnx.data").exists()
    assert "prediction_logits, seq_relationship_logits of onnxruntime" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    ids = torch.tensor([[2, 4, 55, 501, 3], [2, 77, 4, 3, 0]])
    mask, segments = (ids > 0).long(), torch.zeros_like(ids)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    (logits,) = session.run(["prediction_logits"], {n: v.numpy() for n, v in given.items()})
    unpadded: Any = from_padded(ids, mask, segments)
    with torch.no_grad():
        ours = exported.model.mlm_logits(exported.model.encoder(**unpadded))[:, :707]
    theirs = torch.from_numpy(logits)[mask.bool()]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    model = load_model(folder)
    with torch.no_grad():
        model.cls.predictions.bias.add_(0.002)
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: None)  # the file stays what it is
    with pytest.raises(UserError, match=r"largest difference 2\.0e-03 .*, must be at most 0\.001"):
        write_onnx(model, folder)


def test_a_relu_head_on_gelu_layers_is_left_out_and_said(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `bert_textbook.json` has it: transformers has one activation for both."""
    mixed = dataclasses.replace(MODEL, hidden_act="gelu")
    model = write_run(tmp_path / "run", data_set / "tokenizer.model", mixed, {})
    made = run_script(
        *SCRIPT, "--checkpoint", tmp_path / "run", "--output_dir", tmp_path / "new", "--onnx",
        "true",
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    reason = (
        "its activation is relu (mlm_hidden_act), that of the layers gelu (hidden_act),"
        " but transformers uses one for both, with which it would predict differently"
    )
    assert f"\nno MLM head: {reason}\n" in made.stdout
    assert "\noutputs    hidden states, pooled, NSP logits: largest difference" in made.stdout
    assert "\nonnx       logits of onnxruntime" in made.stdout
    card = (tmp_path / "new/README.md").read_text(encoding="utf-8")
    assert f"It lacks the masked LM head: {reason}.\n" in card
    assert "pipeline_tag: feature-extraction\n" in card and "fill-mask" not in card
    config = json.loads((tmp_path / "new/config.json").read_text())
    assert config["architectures"] == ["BertForNextSentencePrediction"]
    assert config["hidden_act"] == "gelu"

    theirs = load_model(tmp_path / "new", "BertForNextSentencePrediction")
    names = set(load_file(tmp_path / "new/model.safetensors"))
    assert names == set(theirs.state_dict()) - {"bert.embeddings.position_ids"}
    ids = torch.tensor([[2, 4, 55, 3, 501, 3]])
    segments = torch.tensor([[0, 0, 0, 0, 1, 1]])
    unpadded: Any = from_padded(ids, torch.ones_like(ids), segments)
    with torch.no_grad():
        ours = model.nsp_logits(model.encoder(**unpadded)[:1])
        logits = theirs(input_ids=ids, token_type_ids=segments).logits
    torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)
    assert TrainedRun.load(tmp_path / "new").missing_heads == ("MLM head",)


def test_mistakes_are_one_line(exported: Exported, tmp_path: Path) -> None:
    for flags, problem in (
        ((tmp_path, tmp_path / "new"), "has no latest checkpoint"),
        ((exported.run_dir, exported.folder), "exists and is not an empty folder"),
    ):
        made = run_script(*SCRIPT, "--checkpoint", flags[0], "--output_dir", flags[1])
        assert_one_line_error(made, problem)


def test_what_cannot_be_exported_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"transformers is not installed: .*\[huggingface\]"):
        check_new_folder(tmp_path / "new")
