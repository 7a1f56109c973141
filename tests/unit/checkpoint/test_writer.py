"""Saves beside training, on one rank: copies, waits, order, failures, and what memory they take.

Several ranks are in tests/integration/test_saves.py and test_faults.py.
"""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dist_bert.checkpoint import checkpoint
from dist_bert.checkpoint import format as checkpoint_format
from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.checkpoint.format import CheckpointReader, FragmentFile
from dist_bert.checkpoint.run_dir import checkpoints_newest_first, step_of
from dist_bert.checkpoint.writer import CheckpointWriter
from dist_bert.common.errors import UserError
from dist_bert.distributed.watchdog import Watchdog

WRITE = FragmentFile.write


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Gate:
    """Holds up the writing of fragments until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        monkeypatch.setattr(FragmentFile, "write", self.write)

    def write(self, folder: Path, rank: int, fragments: Any) -> FragmentFile:
        self.opened.wait()
        return WRITE(folder, rank, fragments)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def engine() -> Any:
    """What a writer takes of an engine without ZeRO, with one step done."""
    torch.manual_seed(3)
    model = nn.Linear(7, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(torch.ones(3, 7)).sum().backward()
    optimizer.step()
    return SimpleNamespace(
        module=model, optimizer=optimizer, basic_optimizer=optimizer, fp16_enabled=lambda: False
    )


class Saves:
    """A writer, the engine whose steps it saves, and what it has told."""

    def __init__(self, run_dir: Path, keep: int = 9) -> None:
        self.run_dir = run_dir
        self.engine = engine()
        self.told: list[int] = []
        self.beats: list[str] = []
        watchdog = Watchdog()
        watchdog.beat = self.beats.append  # type: ignore[assignment,method-assign]
        self.writer = CheckpointWriter(
            self.engine, run_dir, {"seed": 5}, keep, watchdog, self.told.append
        )

    def step(
        self, step: int, validation_loss: float | None = None, comparable_since: int = 0
    ) -> dict[str, torch.Tensor]:
        """A step and its save; returns the weights behind it."""
        self.engine.optimizer.step()
        weights = {n: p.detach().clone() for n, p in self.engine.module.named_parameters()}
        self.writer.save(TrainState(step, 36 * step, 360 * step), validation_loss, comparable_since)
        return weights

    def pointer(self, name: str) -> str:
        return (self.run_dir / "checkpoints" / name).read_text()


@pytest.fixture
def saves(tmp_path: Path) -> Iterator[Saves]:
    saves = Saves(tmp_path)
    yield saves
    saves.writer.close()


def steps_of(run_dir: Path) -> list[int]:
    return [step_of(path) for path in checkpoints_newest_first(run_dir)]


def test_steps_go_on_while_two_saves_are_written_and_the_third_waits(
    gate: Gate, saves: Saves
) -> None:
    weights = [saves.step(1), saves.step(2)]
    assert saves.told == [] and steps_of(saves.run_dir) == []
    third = threading.Thread(target=lambda: weights.append(saves.step(3)))
    third.start()
    while not saves.beats:
        assert third.is_alive()
    assert saves.beats == ["waiting for the writing of step 1"]
    gate.opened.set()
    third.join()
    saves.writer.finish()
    assert saves.told == [1, 2, 3] and steps_of(saves.run_dir) == [3, 2, 1]
    for path, expected in zip(
        reversed(checkpoints_newest_first(saves.run_dir)), weights, strict=True
    ):
        reader = CheckpointReader(path)
        assert reader.contents["state"] == {
            "step": step_of(path), "samples": 36 * step_of(path), "tokens": 360 * step_of(path)
        }  # fmt: skip
        assert reader.contents["optimizer"]["state"] == {"step": step_of(path) + 1.0}
        assert reader.contents["identity"] == {"seed": 5}
        assert all(torch.equal(reader.weights()[name], expected[name]) for name in expected)
    moment = saves.engine.optimizer.state[saves.engine.module.bias]["exp_avg"]
    found = reader.read("exp_avg", "bias", 0, 5)  # of the last one
    assert torch.equal(found, moment) and found.abs().sum() > 0


def test_a_save_is_told_when_it_is_there_and_once(gate: Gate, saves: Saves) -> None:
    saves.step(1)
    saves.writer.tell_written()
    assert saves.told == []
    gate.opened.set()
    while not saves.told:
        saves.writer.tell_written()
        assert not saves.told or saves.pointer("latest") == "step-000000001\n"
    saves.writer.finish()
    assert saves.told == [1]


def test_the_second_copy_takes_memory_only_when_it_is_needed(gate: Gate, saves: Saves) -> None:
    def buffers() -> set[int]:
        return {
            tensor.data_ptr()
            for snapshot in saves.writer._snapshots
            for fragment in snapshot.fragments
            for tensor in fragment.tensors.values()
        }

    gate.opened.set()
    saves.step(1)
    saves.writer.finish()
    first = buffers()
    assert len(first) == 2 * 3  # weight and bias, each with two moments
    saves.step(2)
    saves.writer.finish()
    assert buffers() == first
    gate.opened.clear()
    saves.step(3)
    saves.step(4)
    assert len(buffers()) == 2 * len(first) and buffers() > first
    both = buffers()
    gate.opened.set()
    for step in (5, 6, 7):
        saves.step(step)
    saves.writer.finish()
    assert buffers() == both


def test_latest_never_goes_back_and_the_best_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointed: list[tuple[str, str]] = []
    point = checkpoint._point

    def recorded(folder: Path, pointer: str, path: Path) -> None:
        point(folder, pointer, path)
        pointed.append((pointer, path.name))
        assert CheckpointReader(path).contents["state"]["step"] == step_of(path)

    monkeypatch.setattr(checkpoint, "_point", recorded)
    saves = Saves(tmp_path, keep=2)
    losses = {3: 0.7, 6: 0.5, 9: 0.6, 11: 0.5}
    for step in range(1, 13):
        saves.step(step, losses.get(step))
        assert len(steps_of(tmp_path)) <= 2 + 2  # the best, and the one that is being published
    saves.writer.close()
    latest = [name for pointer, name in pointed if pointer == "latest"]
    assert latest == [f"step-{step:09d}" for step in range(1, 13)]
    assert [name for p, name in pointed if p == "best"] == ["step-000000003", "step-000000006"]
    assert steps_of(tmp_path) == [12, 11, 6]
    assert saves.pointer("best") == "step-000000006\n"
    assert saves.told == list(range(1, 13))


def test_a_failure_is_raised_where_its_save_is_waited_for(
    saves: Saves, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: Any, path: Path) -> None:
        if "step-000000002" in str(path):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        save_file(tensors, path)

    save_file = vars(checkpoint_format)["save_file"]
    monkeypatch.setitem(vars(checkpoint_format), "save_file", fail)
    saves.step(1)
    saves.writer.finish()
    saves.step(2)
    while not saves.writer.has_failed:
        pass
    saves.step(3)  # not two saves before this one: nothing was waited for
    message = r"^cannot save step 2: .*fragments-00000\.safetensors: cannot be written"
    with pytest.raises(UserError, match=message):
        saves.step(4)
    with pytest.raises(UserError, match=message):  # also of those behind it, none of which began
        saves.writer.finish()
    saves.writer.close()
    assert saves.told == [1] and not saves.writer._thread.is_alive()
    assert {path.name for path in (saves.run_dir / "checkpoints").iterdir()} == {
        "latest",
        "step-000000001",
    }
    assert saves.pointer("latest") == "step-000000001\n"


def test_closing_ends_what_is_written_and_the_thread(gate: Gate, saves: Saves) -> None:
    """As behind the mistake that ends a run: the saves before it are not lost."""
    saves.step(1)
    saves.step(2)
    threading.Timer(0.2, gate.opened.set).start()
    saves.writer.close()
    assert steps_of(saves.run_dir) == [2, 1] and saves.told == [1, 2]
    assert not any(thread.name == "checkpoint writer" for thread in threading.enumerate())


def test_losses_of_an_earlier_phase_do_not_count(saves: Saves) -> None:
    best = []
    for step, loss, since in ((1, 1.0, 0), (2, 3.0, 1), (3, 2.0, 1), (4, 2.5, 1), (5, 9.0, 4)):
        saves.step(step, loss, since)
        saves.writer.finish()
        best.append(int(saves.pointer("best").strip()[-3:]))
    assert best == [1, 2, 3, 3, 5]
