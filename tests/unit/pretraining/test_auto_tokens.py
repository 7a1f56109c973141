"""`micro_batch_tokens auto`: the number that is planned, and the trial of it on a device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_bert.common.errors import UserError
from dist_bert.data.batches import NO_LABEL, TO_BE_FOUND, BatchShape, trial_micro_batch
from dist_bert.model.bert import BertForPreTraining
from dist_bert.pretraining import trial
from dist_bert.pretraining.auto_tokens import (
    MOST_ON_CPU,
    longest_samples,
    phases_to_settle,
    planned_tokens,
    with_tokens,
)
from dist_bert.pretraining.job import PretrainingJob
from dist_bert.pretraining.recipe import Phase
from dist_bert.training.memory import (
    SampleSize,
    largest_micro_batch,
)
from dist_bert.training.out_of_memory import remedy
from dist_bert.training.zero_layout import ZeroLayout
from tests.support.synthetic import SEQUENCE_LENGTH, TINY_MODEL, write_data_set
from tests.unit.pretraining.test_job import make_job

GIB = 2**30


@pytest.fixture
def job(tmp_path: Path) -> PretrainingJob:
    """12 samples a step on 3 ranks: 4 of 31 tokens are the most that a rank has."""
    write_data_set(tmp_path / "shards")
    return make_job(tmp_path, "--micro_batch_tokens", "auto")


def test_the_largest_micro_batch_that_fits_is_planned(tmp_path: Path) -> None:
    write_data_set(tmp_path / "shards")
    flags = ("--micro_batch_tokens", "auto", "--train_batch_size", "3000000")
    job = make_job(tmp_path, *flags)
    layout, samples = ZeroLayout.of(job.model, job.deepspeed), longest_samples(job.timeline)
    assert samples == [SampleSize(SEQUENCE_LENGTH, 5)], "15 % of 31, rounded up"
    memory = 6 * GIB
    most = largest_micro_batch(layout, samples[0], False, memory)
    assert 1_000 < most < 1_000_000
    found = planned_tokens(job.timeline, layout, samples, False, memory, is_gpu=True)
    assert found == most * SEQUENCE_LENGTH
    with_less = planned_tokens(job.timeline, layout, samples, True, memory, is_gpu=True)
    assert with_less > found, "layers that are computed again take less"
    on_cpu = planned_tokens(job.timeline, layout, samples, False, memory, is_gpu=False)
    assert on_cpu == MOST_ON_CPU
    assert planned_tokens(job.timeline, layout, samples, False, 1.0, True) == SEQUENCE_LENGTH


def test_short_samples_with_many_masks_may_take_the_most_memory(tmp_path: Path) -> None:
    """The longest samples' tokens with the most masks of any phase are no sample of the run."""
    write_data_set(tmp_path / "shards")
    flags = ("--micro_batch_tokens", "auto", "--train_batch_size", "3000000")
    job = make_job(tmp_path, *flags)
    layout = ZeroLayout.of(job.model, job.deepspeed)
    short, long = SampleSize(8, 4), SampleSize(32, 5)

    def planned(*samples: SampleSize) -> int:
        return planned_tokens(job.timeline, layout, samples, False, 6 * GIB, is_gpu=True)

    assert planned(short) < planned(long)
    assert planned(short, long) == planned(long, short) == planned(short)


def test_no_more_is_planned_than_a_rank_has_in_a_step(job: PretrainingJob) -> None:
    layout, samples = ZeroLayout.of(job.model, job.deepspeed), longest_samples(job.timeline)
    found = planned_tokens(job.timeline, layout, samples, False, 80 * GIB, is_gpu=True)
    assert found == 4 * SEQUENCE_LENGTH


def test_the_number_is_for_the_phases_that_have_none(tmp_path: Path) -> None:
    write_data_set(tmp_path / "shards")
    given = make_job(tmp_path)
    place = given.run.shards
    (corpus,) = given.timeline.corpora
    masks: dict[str, Any] = {"masked_lm_prob": 0.2, "final_masked_lm_prob": 0.4}
    phases = (
        Phase({place: 1.0}, "1", steps=3, micro_batch_tokens="auto", **masks),
        Phase({place: 1.0}, "2", steps=3, micro_batch_tokens=99, masked_lm_prob=0.45),
        Phase({place: 1.0}, "3", steps=3, train_micro_batch_size_per_gpu=2),
    )
    job = PretrainingJob.of(given.model, given.run, given.deepspeed, phases, {place: corpus})
    assert longest_samples(job.timeline) == [SampleSize(SEQUENCE_LENGTH, 13)], "40 %, rounded up"
    shapes = [job.batch_shape(step) for step in (1, 4, 7)]
    assert [shape.micro_batch_tokens for shape in shapes] == [TO_BE_FOUND, 99, 0]
    timeline = with_tokens(job.timeline, 60)
    shapes = [timeline.shape_at(step) for step in (1, 4, 7)]
    assert [shape.micro_batch_tokens for shape in shapes] == [60, 99, 0]
    assert [shape.global_batch_size for shape in shapes] == [12, 12, 12]
    assert timeline.identity() == job.timeline.identity(), "another number may resume"
    assert phases_to_settle(timeline) == ()


def test_a_layout_that_is_not_planned_for_is_refused(tmp_path: Path) -> None:
    write_data_set(tmp_path / "shards")
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    with pytest.raises(UserError, match=r"tokens = auto: .*offload_optimizer.* or give"):
        make_job(tmp_path, "--micro_batch_tokens", "auto", deepspeed={"zero_optimization": zero})
    make_job(tmp_path, "--micro_batch_tokens", "62", deepspeed={"zero_optimization": zero})


def test_a_trial_has_the_sizes_of_a_micro_batch() -> None:
    batch = trial_micro_batch(np.array([31, 20, 20, 7]), 0.15)
    assert batch["input_ids"].shape == (128,) and batch["max_seqlen"] == 32
    assert batch["cu_seqlens"][:5].tolist() == [0, 31, 51, 71, 78]
    assert batch["position_ids"][29:33].tolist() == [29, 30, 0, 1]
    assert (batch["masked_lm_labels"] != NO_LABEL).sum() == batch["num_masked"] == 12
    assert batch["next_sentence_label"].size == batch["num_samples"] == 4


class Device:
    """An engine of one rank, whose memory ends at a number of tokens."""

    device = torch.device("cpu")

    def __init__(self, most_tokens: float, checkpointing: bool = False) -> None:
        torch.manual_seed(5)
        self.module = BertForPreTraining(TINY_MODEL)
        self.module.encoder.activation_checkpointing = checkpointing
        self.tried: list[int] = []
        self.module.encoder.register_forward_hook(
            lambda module, inputs, hidden: self.take(hidden, most_tokens)
        )

    def train(self) -> None:
        self.module.train()

    def take(self, hidden: torch.Tensor, most_tokens: float) -> None:
        self.tried.append(len(hidden))
        if len(hidden) > most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")


def settle(
    job: PretrainingJob, device: Device, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[str]]:
    """The number that is found, and what is said of it."""
    monkeypatch.setattr(trial, "_least_of_ranks", lambda number, engine: number)
    monkeypatch.setattr(trial, "rank_memory_bytes", lambda: 16 * GIB)
    said: list[str] = []
    found = trial.settled(job, device, said.append, lambda doing: None)
    assert all(parameter.grad is None for parameter in device.module.parameters())
    assert found.deepspeed.batch_shape == found.timeline.largest_shape
    return found.batch_shape(1).micro_batch_tokens, said


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_planned_is_tried(
    job: PretrainingJob, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(1_000, checkpointing)
    tokens, said = settle(job, device, monkeypatch)
    assert tokens == 124 and device.tried == [128], "rounded up, as all micro-batches are"
    assert said == ["micro_batch_tokens auto: 124 tokens (planned for 16.0 GiB a rank; tried)"]


def test_what_does_not_fit_is_halved_down_to_one_sample(
    job: PretrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(64)
    tokens, said = settle(job, device, monkeypatch)
    assert tokens == 62 and device.tried == [128, 64]
    line = "micro_batch_tokens auto: out of memory with 124 tokens a rank; trying 62"
    assert said[0] == line and len(said) == 2
    device = Device(63)
    with pytest.raises(UserError, match=r"not even one of the longest samples \(31 tokens\) fits"):
        settle(job, device, monkeypatch)
    assert device.tried == [128, 64, 64], "124, 62 and 31 tokens"


def test_one_rank_without_memory_is_enough(
    job: PretrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, answers = Device(1_000), iter([16 * GIB, 0, 1])  # memory, then of another rank
    monkeypatch.setattr(trial, "rank_memory_bytes", lambda: 16 * GIB)
    monkeypatch.setattr(trial, "_least_of_ranks", lambda number, engine: next(answers))
    found = trial.settled(job, device, lambda line: None, lambda doing: None)
    assert found.batch_shape(1).micro_batch_tokens == 62


def test_at_zero_3_the_plan_is_taken_untried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data_set(tmp_path / "shards")
    stage_3 = {"zero_optimization": {"stage": 3}}
    job = make_job(tmp_path, "--micro_batch_tokens", "auto", deepspeed=stage_3)
    device = Device(0)
    tokens, said = settle(job, device, monkeypatch)
    assert tokens == 124 and not device.tried and "not tried: at ZeRO-3" in said[0]


def test_a_number_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data_set(tmp_path / "shards")
    job = make_job(tmp_path, "--micro_batch_tokens", "99")
    device = Device(0)
    found = trial.settled(job, device, lambda line: None, lambda doing: None)
    assert found is job and not device.tried


def test_the_end_of_memory_comes_with_its_remedy() -> None:
    by_tokens = remedy(BatchShape(4, 2, 1, 4_096))
    assert by_tokens.startswith(
        "out of GPU memory: lower --micro_batch_tokens (now 4096, try 2048), or set"
    )
    by_samples = remedy(BatchShape(4, 2, 8))
    assert "lower --train_micro_batch_size_per_gpu (now 8, try 4), or" in by_samples
    assert "(now 1), or set" in remedy(BatchShape(4, 2, 1))
