"""What is told of a step: all metrics that the data has, and no others."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.data.batches import StepBatch
from dist_bert.model.bert import METRIC_NAMES
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.training import progress as progress_module
from dist_bert.training.console import Console
from dist_bert.training.loop import StepRecord
from dist_bert.training.progress import Progress, slowness
from tests.support.synthetic import TINY_MODEL

METRICS = (7.25, 0.75, 0.5, 0.625)
PREDICTIONS = [
    {
        "text": "A [MASK] | a[MASK] <b>.",
        "expected": ["\u2581lamp", "|"],
        "answers": [
            [{"piece": "\u2581lamp", "probability": 0.5}, {"piece": "x_y", "probability": 0.25}],
            [{"piece": "s", "probability": 0.125}, {"piece": "|", "probability": 0.0625}],
        ],
    }
]
TABLE = r"""| input | answer | model |
|---|---|---|
| A \[MASK\] \| a\[MASK\] &lt;b&gt;. | **LAMP** | LAMP 50.0% · x\_y 25.0% |
|  | \| | s 12.5% · \| 6.2% |""".replace("LAMP", "\u2581lamp")
LENGTHS = np.array([19, 15, 7])  # 2 layers, 1,270 pairs
BATCH = StepBatch([], num_samples=3, num_tokens=41, lengths=LENGTHS, num_masked=11)


class Writer:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.rows.append({"step": step, **values})

    def predictions(self, step: int, rows: Any, markdown: str) -> None:
        self.answers = (step, rows, markdown)

    def flush(self) -> None:
        pass


def told(
    has_pairs: bool, monkeypatch: pytest.MonkeyPatch, peak_flops: float = 1e9
) -> tuple[list[dict[str, float]], Any]:
    """Rows of one step and one validation, and the arguments that operations were counted from."""
    counted: list[Any] = []

    def count(*arguments: Any) -> float:
        counted.append(arguments)
        return 5.0

    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(progress_module, "training_flops", count)
    module = torch.nn.Linear(2, 2)
    module.metric_names = METRIC_NAMES  # type: ignore[assignment]
    device = torch.device("cpu")
    engine = SimpleNamespace(module=module, device=device, fp16_enabled=lambda: False)
    run = dataclasses.replace(PretrainingConfig(), num_train_steps=1, warmup_steps=0)
    writer: Any = Writer()
    ranks: Any = SimpleNamespace(compare=lambda records, seconds: {"ranks/slowest_rank": 7})
    progress = Progress(engine, TINY_MODEL, run, has_pairs, writer, Console(), ranks, peak_flops)
    state = TrainState(step=1, samples=3, tokens=41)
    progress.add(StepRecord(state, BATCH, torch.tensor(METRICS), 2.5, 1e-3, 0.0))
    progress.validation(1, dict(zip(METRIC_NAMES, METRICS, strict=True)), PREDICTIONS)
    assert writer.answers == (1, PREDICTIONS, TABLE)
    return writer.rows, counted


def test_pairs_are_told_with_both_losses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (step, validation), counted = told(True, monkeypatch)
    assert step["ranks/slowest_rank"] == 7 and "ranks/slowest_rank" not in validation
    for row, kind in ((step, "train"), (validation, "validation")):
        scores = {name: row[f"{kind}/{name}"] for name in METRIC_NAMES}
        assert tuple(scores.values()) == METRICS
        assert row[f"{kind}/loss"] == 8.0
    assert "  loss 8.0000 (mlm 7.2500, nsp 0.7500)  lr 1.00e-03" in capsys.readouterr().out
    assert counted == [(TINY_MODEL, 41, 1_270, 11, 3)]


def test_single_segments_are_told_without_next_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (step, validation), counted = told(False, monkeypatch)
    for row, kind in ((step, "train"), (validation, "validation")):
        assert row[f"{kind}/loss"] == row[f"{kind}/mlm_loss"] == 7.25
        assert row[f"{kind}/mlm_accuracy"] == 0.5
        assert not [name for name in row if "nsp" in name]
    output = capsys.readouterr().out
    assert "  loss 7.2500 (mlm 7.2500)  lr 1.00e-03" in output
    assert "validation at step 1  loss 7.2500  mlm_loss 7.2500  mlm_accuracy 0.5000\n" in output
    assert counted == [(TINY_MODEL, 41, 1_270, 11, 0)]


@pytest.mark.parametrize(
    ("mfu", "days", "expected"),
    [
        (0.5, 1.0, []),
        (0.02, 1.0, ["speed"]),
        (0.02, 0.01, []),  # over soon
        (None, 1.0, []),
        (0.5, 400.0, ["length"]),
        (0.02, 400.0, ["speed", "length"]),
    ],
)
def test_a_run_that_will_take_too_long_is_warned_of(
    mfu: float | None, days: float, expected: list[str]
) -> None:
    found = slowness(mfu, days * 86_400)
    assert list(found) == expected
    if "speed" in found:
        assert "20 times as long as is usual" in found["speed"] and "MFU 2.0%" in found["speed"]
    if "length" in found:
        assert "400 days" in found["length"]


def test_a_share_above_the_peak_is_never_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (step, _), _ = told(True, monkeypatch, peak_flops=1e-9)
    captured = capsys.readouterr()
    assert "throughput/mfu" not in step and "MFU  " not in captured.out
    assert "the machine was busy then" in captured.out + captured.err
    (step, _), _ = told(True, monkeypatch)
    assert 0 < step["throughput/mfu"] <= 1
    assert "  MFU " in capsys.readouterr().out
