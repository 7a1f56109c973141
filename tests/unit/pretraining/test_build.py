"""A run's model and the stream of its steps: ramps and phases, on any ranks, from any step on."""

import dataclasses
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.common.errors import UserError
from dist_bert.data.batches import StepBatch
from dist_bert.data.masking import MaskingVocabulary
from dist_bert.data.shard_source import ShardSource
from dist_bert.pretraining import build
from dist_bert.pretraining.build import new_model, open_corpora, training_stream
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.job import PretrainingJob
from dist_bert.pretraining.recipe import Phase
from dist_bert.pretraining.timeline import Corpus
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from tests.support.synthetic import TINY_MODEL, VOCAB_SIZE, write_data_set
from tests.unit.data.test_pretraining_batches import assert_equal_steps, samples_of

LAYOUTS: dict[str, Any] = {"books": ((5, 3), (7,), (4, 2, 6)), "wiki": ((9,), (2, 8))}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    folder = tmp_path_factory.mktemp("corpora")
    return {
        name: Corpus(
            name, ShardSource(folder / name), write_data_set(folder / name, layout).manifest
        )
        for name, layout in LAYOUTS.items()
    }


@pytest.fixture(autouse=True)
def vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up data sets have no tokenizer."""
    pieces = MaskingVocabulary(vocab_size=VOCAB_SIZE, num_reserved_pieces=5)
    monkeypatch.setattr(build, "_masking_vocabulary", lambda job, phase: pieces)


PHASES = [
    Phase({"books": 1.0}, steps=8, initial_batch_size=4, ramp_samples=16, train_batch_size=12,
          masked_lm_prob=0.4, final_masked_lm_prob=0.1),
    Phase({"books": 2.0, "wiki": 1.0}, steps=6),
    Phase({"wiki": 1.0}, samples=30),
]  # fmt: skip


def make_job(
    corpora: dict[str, Corpus], world_size: int = 1, phases: list[Phase] = PHASES
) -> PretrainingJob:
    deepspeed = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    }
    return PretrainingJob.of(
        TINY_MODEL,
        PretrainingConfig(warmup_steps=0),
        DeepSpeedConfig.from_values(deepspeed, "test", world_size),
        phases,
        corpora,
    )


def steps_of(
    job: PretrainingJob, monkeypatch: pytest.MonkeyPatch, rank: int = 0, done: int = 0
) -> list[StepBatch]:
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    state = TrainState(done, job.timeline.samples_before(done + 1))
    return list(training_stream(job, open_corpora(job, "train"), state))


def test_every_number_of_ranks_gets_the_same_samples(
    corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = steps_of(make_job(corpora), monkeypatch)
    assert [step.num_samples for step in whole] == [4, 4, 8, 12, 12, 12, 12, 12] + [8] * 10
    for world_size in (2, 4):
        job = make_job(corpora, world_size)
        per_rank = [steps_of(job, monkeypatch, rank) for rank in range(world_size)]
        for number, step in enumerate(whole):
            parts = [steps[number] for steps in per_rank]
            samples = chain.from_iterable(map(samples_of, chain(*(p.micro_batches for p in parts))))
            expected = chain.from_iterable(map(samples_of, step.micro_batches))
            assert sorted(samples) == sorted(expected)
            totals = {(p.num_tokens, p.num_masked, p.num_samples) for p in parts}
            assert totals == {(step.num_tokens, step.num_masked, step.num_samples)}


def test_every_step_can_be_the_first_of_a_resumed_run(
    corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(corpora)
    whole = steps_of(job, monkeypatch)
    for done in range(len(whole) + 1):  # borders, ramp and all
        assert_equal_steps(steps_of(job, monkeypatch, done=done), whole[done:])


def test_two_phases_of_a_data_set_are_one(
    corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [Phase({"books": 1.0}, samples=24), Phase({"books": 1.0}, samples=30)]
    steps = steps_of(make_job(corpora, phases=phases), monkeypatch)
    one = steps_of(make_job(corpora, phases=[Phase({"books": 1.0}, samples=54)]), monkeypatch)
    assert_equal_steps(steps, one)


def test_a_changed_batch_does_not_go_together_with_phases(
    corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    job = make_job(corpora)
    with pytest.raises(UserError, match="step 3 has seen 15 samples, and 16 by the phases"):
        training_stream(job, open_corpora(job, "train"), TrainState(3, 15))
    simple = make_job(corpora, phases=[Phase({"books": 1.0}, steps=9)])
    training_stream(simple, open_corpora(simple, "train"), TrainState(3, 15))


@pytest.mark.parametrize("is_asked", [True, False])
def test_the_model_gets_the_kernels_and_products_that_are_asked_for(
    corpora: dict[str, Corpus], is_asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    lines: list[str] = []
    monkeypatch.setattr(build, "use_flash_attention_3", lambda: calls.append("kernels"))
    monkeypatch.setattr(build, "use_float8", calls.append)
    job = make_job(corpora)
    run = dataclasses.replace(job.run, flash_attention_3=is_asked, float8=is_asked)
    model = new_model(dataclasses.replace(job, run=run), open_corpora(job, "train"), lines.append)
    assert calls == (["kernels", model.encoder.layers] if is_asked else [])
    told = ["attention by FlashAttention 3", "matrix products of the layers in 8 bits"]
    assert lines == (told if is_asked else [])
