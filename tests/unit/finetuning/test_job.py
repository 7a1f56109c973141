"""Fine-tuning jobs from command lines: classes, refusals, and what makes it another run."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_bert.checkpoint.checkpoint import raise_differences
from dist_bert.common.errors import UserError
from dist_bert.common.settings import add_flags
from dist_bert.finetuning.config import FinetuneConfig
from dist_bert.finetuning.job import FinetuneJob, FinetunePlan
from dist_bert.finetuning.readers import ReadConfig
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import train_tokenizer
from dist_bert.training.deepspeed_flags import add_deepspeed_flags
from tests.support import labelled
from tests.support.corpus import english_sentences
from tests.support.synthetic import TINY_MODEL, write_run

DEEPSPEED = {
    "train_batch_size": 8,
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-3}},
    "zero_optimization": {"stage": 1},
}
MakeJob = Callable[..., FinetuneJob]


@pytest.fixture(scope="module")
def make_job(tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """Makes the job of a task, a training file and flags."""
    folder = tmp_path_factory.mktemp("encoder")
    sentences = english_sentences(300, seed=1)
    tokenizer = train_tokenizer(
        sentences, folder / "t", TokenizerConfig(vocab_size=TINY_MODEL.vocab_size)
    )
    write_run(folder / "run", tokenizer, TINY_MODEL, {})
    (folder / "deepspeed.json").write_text(json.dumps(DEEPSPEED))
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    add_deepspeed_flags(parser, str(folder / "deepspeed.json"))
    add_flags(parser, FinetuneConfig)
    add_flags(parser, ReadConfig)

    def make(task: str, train: Path, *flags: str | Path) -> FinetuneJob:
        given = ("--task", task, "--checkpoint", folder / "run", "--train", train, *flags)
        plan = FinetunePlan.of(parser.parse_args([str(flag) for flag in given]), world_size=1)
        (job,) = plan.jobs
        return job

    return make


def test_another_set_to_score_is_another_run(make_job: MakeJob, tmp_path: Path) -> None:
    """Its scores in the folder would be those of other examples."""
    train, one, other = (tmp_path / f"{name}.tsv" for name in ("train", "one", "other"))
    for seed, path in enumerate((train, one, other)):
        labelled.write_pairs(path, labelled.pairs(9, seed))
    job, same, changed = (
        make_job("pair_classification", train, "--eval", held_out) for held_out in (one, one, other)
    )
    raise_differences(tmp_path, job.identity(), same.identity())
    with pytest.raises(UserError, match="cannot resume: held-out set is "):
        raise_differences(tmp_path, job.identity(), changed.identity())


def test_a_micro_batch_of_auto_is_for_pretraining_alone(make_job: MakeJob, tmp_path: Path) -> None:
    labelled.write_pairs(tmp_path / "train.tsv", labelled.pairs(40, 0))
    flags = ("pair_classification", tmp_path / "train.tsv", "--train_micro_batch_size_per_gpu")
    with pytest.raises(UserError, match="train_micro_batch_size_per_gpu = auto: is for pretrain"):
        make_job(*flags, "auto")
    assert make_job(*flags, "2").deepspeed.batch_shape.micro_batch_size == 2


def test_a_tag_of_the_list_need_not_be_learnt_from(make_job: MakeJob, tmp_path: Path) -> None:
    train, dev, names = (tmp_path / name for name in ("train.conll", "dev.conll", "tags.txt"))
    train.write_text("She O\nsold O\nParis B-PLACE\n.. O\n\nHello O\n")
    dev.write_text("Alice B-PER\nslept O\n")
    names.write_text("O\nB-PLACE\nI-PLACE\nB-PER\nI-PER\n")
    flags = ("token_classification", train, "--eval", dev)
    with pytest.raises(UserError, match=r"no training example has: 'B-PER' \(.*dev.conll"):
        make_job(*flags)
    job = make_job(*flags, "--labels", names)
    assert job.task.classes == ("O", "B-PLACE", "I-PLACE", "B-PER", "I-PER")


def test_tags_that_are_all_outside_are_refused(make_job: MakeJob, tmp_path: Path) -> None:
    train = tmp_path / "train.conll"
    train.write_text("She O\nslept O\n\nAlice O\nslept O\n")
    with pytest.raises(UserError, match="tag_column: all tags are O; is it the right column"):
        make_job("token_classification", train, "--eval", train)
