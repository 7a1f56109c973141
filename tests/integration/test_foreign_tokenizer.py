"""Shards and an export through the scripts, with a SentencePiece model made elsewhere."""

import hashlib
import sys
from pathlib import Path

import sentencepiece

from dist_bert.data.shard_format import Manifest
from dist_bert.huggingface.folder import load_tokenizer
from dist_bert.model.config import ModelConfig
from dist_bert.tokenizer.tokenizer import Tokenizer
from tests.integration.conftest import TINY_MODEL, files_of, prepare_shards, run_script
from tests.support.corpus import chinese_sentences, english_sentences, write_text_files
from tests.support.synthetic import write_run

TRAINING = english_sentences(700, seed=1) + chinese_sentences(300, seed=2)
LINES = english_sentences(300, seed=8)


def test_a_model_of_t5_prepares_shards_and_is_exported(tmp_path: Path) -> None:
    write_text_files(tmp_path / "text", count=89)
    foreign = tmp_path / "spiece.model"
    with open(foreign, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TRAINING), model_writer=file,
            vocab_size=597, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        )  # fmt: skip
    shards = tmp_path / "shards"
    common: list[str | Path] = ["--input", tmp_path / "text/*.txt", "--tokenizer", foreign]
    made = prepare_shards(2, *common, "--output_dir", shards, "--sequence_length", "53")
    assert made.returncode == 0, made.stderr
    said = made.stdout.splitlines()
    begin = said.index(f"{foreign}: is from another project; its special pieces get BERT's ids")
    assert said[begin + 1 : begin + 7] == [
        "  [PAD]  0  was <pad> 0",
        "  [UNK]  1  was <unk> 2",
        "  [CLS]  2  added",
        "  [SEP]  3  was </s> 1",
        "  [MASK] 4  added",
        "  the other 594 pieces follow; text pieces keep their order",
    ]
    assert made.stdout.count("is from another project") == 1, "by one rank"

    tokenizer = Tokenizer(shards / "tokenizer.model")
    manifest = Manifest.load(shards)
    content = (shards / "tokenizer.model").read_bytes()
    assert manifest.tokenizer["fingerprint"] == hashlib.sha256(content).hexdigest()
    assert manifest.tokenizer["vocab_size"] == 599 == tokenizer.vocab_size
    before = files_of(shards)
    for given in (foreign, shards / "tokenizer.model"):
        again = prepare_shards(
            1, *common, "--tokenizer", given, "--output_dir", shards, "--sequence_length", "53"
        )
        assert again.returncode == 0 and "is finished already" in again.stdout, again.stderr
        assert files_of(shards) == before

    model = ModelConfig(**{**TINY_MODEL, "vocab_size": 599})  # type: ignore[arg-type]
    write_run(tmp_path / "run", shards / "tokenizer.model", model, {})
    exported = run_script(
        sys.executable, "launch/export_model.py", "--checkpoint", tmp_path / "run",
        "--output_dir", tmp_path / "export",
    )  # fmt: skip
    assert exported.returncode == 0 and ", 0 differ" in exported.stdout, exported.stderr
    original = sentencepiece.SentencePieceProcessor(model_file=str(foreign))
    published = load_tokenizer(tmp_path / "export")
    for line in LINES:
        assert published.tokenize(line) == original.encode(line, out_type=str)
        assert published.encode(line) == [2, *tokenizer.encode(line), 3]
