"""A run's JSON files after years on a disk: whatever is wrong in them is one line, no traceback."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.errors import UserError
from dist_bert.finetuning.predict import FineTunedModel
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import train_tokenizer
from tests.support.corpus import english_sentences
from tests.support.processes import run_script
from tests.support.synthetic import TINY_MODEL, write_finetuned_run, write_run

VALUES: tuple[Any, ...] = (
    None,
    5,
    -1,
    2.5,
    "x",
    True,
    [],
    {},
    {"a": 1},
    ["a", 1],
)  # in the place of any other
TEXT_FACTS = {"max_seq_length": 31, "classes": ["a", "b"], "has_several_labels": False}
QUESTION_FACTS = {
    "max_seq_length": 31, "doc_stride": 5, "max_question_tokens": 7, "max_answer_tokens": 3,
    "as_token_classes": False, "may_lack_answers": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    config = TokenizerConfig(vocab_size=TINY_MODEL.vocab_size, byte_fallback=False)
    return train_tokenizer(english_sentences(900, seed=1), folder, config)


def damages(whole: Any) -> Iterator[Any]:
    """Copies of a value in each of which one thing, however deep, is gone or something else."""
    for key in list(whole):
        for value in VALUES:
            if type(value) is not type(whole[key]) or value != whole[key]:
                yield {**whole, key: value}
        yield {name: value for name, value in whole.items() if name != key}
        if isinstance(whole[key], dict):
            for inside in damages(whole[key]):
                yield {**whole, key: inside}


def refused_or_fine(path: Path, use: Callable[[], object]) -> int:
    """Damages one file in every way, uses it each time; returns how often that was refused."""
    data = path.read_bytes()
    num_refused = 0
    texts = [json.dumps(value) for value in damages(json.loads(data))]
    for text in [*texts, "", "[]", "null", "\0" * 99, data.decode()[:-2], "\ud800"]:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            use()
        except UserError as error:
            assert "\n" not in str(error), error
            names = (path.name, "model configuration: ", f"--checkpoint {path.parent}")
            assert any(name in str(error) for name in names), error
            num_refused += 1
    path.write_bytes(data)
    use()
    return num_refused


def test_a_pretrained_run(tokenizer: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, tokenizer, TINY_MODEL, {"bf16": {"enabled": True}})
    assert refused_or_fine(run / "config.json", lambda: TrainedRun.load(run)) > 50


@pytest.mark.parametrize(
    ("task", "facts"), [("pair_classification", TEXT_FACTS), ("question_answering", QUESTION_FACTS)]
)
def test_a_fine_tuned_run(
    tokenizer: Path, tmp_path: Path, task: str, facts: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    write_finetuned_run(run, tokenizer, TINY_MODEL, task, facts, tmp_path / "none")
    assert refused_or_fine(run / "config.json", lambda: FineTunedModel.load(run)) > 100
    assert refused_or_fine(run / "results.json", lambda: FineTunedModel.load(run)) > 20
    (tmp_path / "summary.json").write_text('{"best_run": "run"}')
    assert refused_or_fine(tmp_path / "summary.json", lambda: FineTunedModel.load(tmp_path)) > 5


def test_scripts_end_with_one_line(tokenizer: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_finetuned_run(
        run, tokenizer, TINY_MODEL, "pair_classification", TEXT_FACTS, tmp_path / "none"
    )
    config = json.loads((run / "config.json").read_text())
    del config["task"]["classes"]
    (run / "config.json").write_text(json.dumps(config))
    for script, flag in (("predict", "--input"), ("export_model", "--output_dir")):
        ended = run_script(
            sys.executable, f"launch/{script}.py", "--checkpoint", run, flag, tmp_path / "x"
        )
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
        told = "config.json configuration: task.classes is damaged, missing or not known"
        assert told in ended.stderr
