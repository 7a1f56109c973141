"""metrics.jsonl and TensorBoard tell the same, and nothing doubles back after a resume."""

import errno
import json
import os
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
    plugin_event_accumulator,
)
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from dist_bert.common.json_lines import read_rows
from dist_bert.training.metrics import MetricsWriter, read_metrics, scores_of

Curve = dict[int, float]


def values_at(step: int, run: float = 0.0) -> dict[str, float]:
    """Exact in float32, which is what TensorBoard keeps."""
    return {"train/loss": 8.0 - step / 4 + run, "progress/samples": 256.0 * step + run}


def write_steps(writer: MetricsWriter, steps: range, run: float = 0.0) -> None:
    for step in steps:
        writer.scalars(step, values_at(step, run))


def curves(run_dir: Path) -> dict[str, Curve]:
    """What TensorBoard shows."""
    board = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0, "tensors": 0})
    board.Reload()
    result = {}
    for name in board.Tags()["scalars"]:
        points = board.Scalars(name)
        assert len({point.step for point in points}) == len(points), "one point a step"
        assert [p.step for p in points] == sorted(p.step for p in points)
        result[name] = {point.step: point.value for point in points}
    return result


def texts(run_dir: Path) -> dict[str, dict[int, str]]:
    """Name -> step -> text, as TensorBoard's server reads them: `EventAccumulator` keeps all."""
    board = plugin_event_accumulator.EventAccumulator(str(run_dir / "tensorboard"), {"tensors": 0})
    board.Reload()
    result = {}
    for name in board.PluginTagToContent("text"):
        events = board.Tensors(name)
        told = {event.step: event.tensor_proto.string_val[0].decode() for event in events}
        assert len(told) == len(events), "one text a step"
        result[name.removesuffix("/text_summary")] = told
    return result


def rows_as_curves(run_dir: Path) -> dict[str, Curve]:
    result: dict[str, Curve] = {}
    for row in read_metrics(run_dir):
        step = int(row.pop("step"))
        for name, value in row.items():
            assert step not in result.setdefault(name, {})
            result[name][step] = value
    return result


def test_rows_and_curves_are_equal(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    write_steps(writer, range(1, 8))
    writer.scalars(7, {"validation/loss": 2.5})
    writer.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        *({"step": step, **values_at(step)} for step in range(1, 8)),
        {"step": 7, "validation/loss": 2.5},
    ]
    assert read_metrics(tmp_path) == rows
    assert curves(tmp_path) == rows_as_curves(tmp_path)
    assert curves(tmp_path)["train/loss"][3] == 7.25


def test_what_is_flushed_can_be_read_at_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    write_steps(writer, range(1, 4))
    writer.flush()
    assert len(read_metrics(tmp_path)) == 3
    assert curves(tmp_path) == rows_as_curves(tmp_path)
    writer.close()


def test_samples_of_one_segment_have_no_next_sentence_scores() -> None:
    metrics = {"mlm_loss": 7.0, "nsp_loss": 0.0, "mlm_accuracy": 0.25, "nsp_accuracy": 0.0}
    assert scores_of(metrics, has_pairs=True) == metrics
    assert scores_of(metrics, has_pairs=False) == {"mlm_loss": 7.0, "mlm_accuracy": 0.25}


def test_texts_are_written(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer.text(5, "config", "```json\n{}\n```")
    writer.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    (event,) = board.Tensors("config/text_summary")
    assert event.step == 5
    assert event.tensor_proto.string_val == [b"```json\n{}\n```"]


def test_answers_and_marks_after_a_checkpoint_are_dropped_like_metrics(tmp_path: Path) -> None:
    for number, resumed_step in enumerate((0, 6, 6, 3)):
        writer = MetricsWriter(tmp_path, resumed_step)
        writer.mark(resumed_step + 1, "progress/restarts", number)
        writer.text(resumed_step + 1, "starts", f"start {number}")
        for step in range(resumed_step + 1, 9):
            row = {"text": f"{number} ü", "expected": [], "answers": []}
            writer.predictions(step, [row], f"table {number}")
        writer.close()
    rows = read_rows(tmp_path / "predictions.jsonl")
    numbers = {step: 0 if step <= 3 else 3 for step in range(1, 9)}
    assert [(row["step"], row["text"]) for row in rows] == [
        (step, f"{n} ü") for step, n in numbers.items()
    ]
    assert curves(tmp_path) == {"progress/restarts": {1: 0, 4: 3}}
    assert texts(tmp_path) == {
        "predictions": {step: f"table {number}" for step, number in numbers.items()},
        "starts": {1: "start 0", 4: "start 3"},
    }


@pytest.mark.parametrize("seconds", [3, 0, -3_600])  # the clock may have gone back
@pytest.mark.parametrize("resumed_step", [0, 1, 5, 7, 8])
def test_a_resumed_run_drops_what_came_after_its_checkpoint(
    tmp_path: Path, resumed_step: int, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = MetricsWriter(tmp_path, 0)
    write_steps(writer, range(1, 9))
    writer.close()
    # TensorBoard reads files in the order of the second in their names.
    second = time.time() + seconds
    monkeypatch.setattr("time.time", lambda: second)
    writer = MetricsWriter(tmp_path, resumed_step)
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, resumed_step + 1))
    write_steps(writer, range(resumed_step + 1, 11), run=0.5)
    writer.close()
    runs = {step: 0.0 if step <= resumed_step else 0.5 for step in range(1, 11)}
    expected = [{"step": step, **values_at(step, run)} for step, run in runs.items()]
    assert read_metrics(tmp_path) == expected
    assert curves(tmp_path) == rows_as_curves(tmp_path)


def test_a_last_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    write_steps(writer, range(1, 4))
    writer.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    for length in (len(whole) - 1, len(whole) - 9):  # without its end, and in its middle
        path.write_text(whole[:length])
        assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    writer = MetricsWriter(tmp_path, 3)
    write_steps(writer, range(4, 6))
    writer.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 4, 5]
    assert len(path.read_text().splitlines()) == 4


def test_a_run_without_metrics_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    MetricsWriter(tmp_path, 0).close()
    assert read_metrics(tmp_path) == []


def test_a_full_disk_makes_curves_late_and_nothing_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    room = 3_000
    write = os.write

    def write_while_there_is_room(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, data[:room])  # a part, as a disk that becomes full
        room -= written
        return written

    monkeypatch.setattr("dist_bert.common.files.os.write", write_while_there_is_room)
    writer = MetricsWriter(tmp_path, 0)
    for step in range(1, 41):
        write_steps(writer, range(step, step + 1))
        writer.flush()
    assert room == 0 and 3 < len(read_metrics(tmp_path)) < 40
    (record,) = caplog.records
    assert "jsonl: No space left on device: training continues" in record.getMessage()
    room = 1_000_000
    writer.flush()
    assert caplog.records[1].getMessage() == "metrics are written again: nothing is missing"
    write_steps(writer, range(41, 44))
    writer.close()
    assert len(caplog.records) == 2
    rows = [{"step": step, **values_at(step)} for step in range(1, 44)]
    assert read_metrics(tmp_path) == rows
    assert curves(tmp_path) == rows_as_curves(tmp_path)


def test_what_waits_for_room_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dist_bert.common.files._MAX_PENDING_BYTES", 1_000)
    writer = MetricsWriter(tmp_path, 0)
    (tmp_path / "metrics.jsonl").mkdir()  # cannot be written to, either
    for step in range(1, 41):
        writer.scalars(step, {"loss": 0.5})
        writer.flush()
    (tmp_path / "metrics.jsonl").rmdir()
    writer.close()
    rows = read_metrics(tmp_path)
    assert rows == [{"step": step, "loss": 0.5} for step in range(1, len(rows) + 1)]
    assert f"all but {40 - len(rows)} records" in caplog.text and 20 < len(rows) < 40
