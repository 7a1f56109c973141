"""Which steps are followed by a save or a validation; the steps themselves run in integration/."""

import dataclasses

import numpy as np
import pytest
import torch

from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.data.batches import StepBatch
from dist_bert.training.config import TrainingConfig
from dist_bert.training.loop import SaveSchedule, StepRecord, validation_is_due

RUN = TrainingConfig(
    num_train_steps=11, warmup_steps=0, checkpoint_interval=4, validation_interval=3
)
BATCH = StepBatch([], num_samples=2, num_tokens=7, lengths=np.array([4, 3]))


def saved_steps(run: TrainingConfig, skipped: set[int], stops: set[int]) -> list[int]:
    schedule = SaveSchedule(run)
    record = StepRecord(TrainState(), BATCH, torch.zeros(4), None, 0.0, 0.0)
    return [
        step
        for step in range(1, run.num_train_steps + 1)
        if schedule.is_due(
            dataclasses.replace(record, state=TrainState(step), is_skipped=step in skipped),
            is_stop=step in stops,
        )
    ]


@pytest.mark.parametrize(
    "skipped,stops,expected",
    [
        (set(), set(), [1, 4, 8, 11]),
        ({4, 5}, set(), [1, 6, 8, 11]),  # put off until a step is not skipped
        ({1}, set(), [2, 4, 8, 11]),
        ({8, 9, 10, 11}, set(), [1, 4, 11]),  # the last step is saved in any case
        (set(), {6}, [1, 4, 6, 8, 11]),
        ({6}, {6}, [1, 4, 7, 8, 11]),
    ],
)
def test_what_is_saved(skipped: set[int], stops: set[int], expected: list[int]) -> None:
    assert saved_steps(RUN, skipped, stops) == expected


def test_what_is_validated() -> None:
    assert [step for step in range(12) if validation_is_due(step, RUN)] == [3, 6, 9, 11]
    never = dataclasses.replace(RUN, validation_interval=0)
    assert [step for step in range(12) if validation_is_due(step, never)] == [11]
