"""Checkpoints that are written during training: killed while writing, and held up.

With `faulty_pretrain.py`, whose faults are in the threads that write.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dist_bert.checkpoint.format import CheckpointReader
from dist_bert.checkpoint.run_dir import checkpoints_newest_first, latest_checkpoint, step_of
from tests.integration.conftest import run_script
from tests.integration.test_checkpoints import command, losses
from tests.support.processes import finish, kill_when_printed, started, wait_until

pytestmark = pytest.mark.trains

NUM_KILLS = 30
# Where the writing stands still when the run is killed, and on which rank.
PLACES = (
    ("0", "save_file"),
    ("1", "save_file"),
    ("0", "write_state"),
    ("0", "_point"),
    ("0", "remove_old"),
)


def faulty(start: list[str | Path]) -> list[str | Path]:
    """The same command with a fault."""
    return [
        "tests/integration/faulty_pretrain.py" if part == "launch/pretrain.py" else part
        for part in start
    ]


def whole_steps(run_dir: Path) -> list[int]:
    """Steps of the checkpoints of which every file is what was written, newest first."""
    readers = [CheckpointReader(path) for path in checkpoints_newest_first(run_dir)]
    assert not [f.problem(r.folder) for r in readers for f in r.files if f.problem(r.folder)]
    return [step_of(reader.folder) for reader in readers]


@pytest.mark.slow
def test_killed_again_and_again_in_the_middle_of_writing(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start saves one checkpoint more and is killed while it writes the next one."""
    last = NUM_KILLS + NUM_KILLS // len(PLACES) + 2
    run: dict[str, Any] = {"num_train_steps": last, "checkpoint_interval": 1, "keep_checkpoints": 2}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    start = command(tmp_path / "config", data_set, ranks=2, stage=2, **run)
    ended = run_script(*start, undisturbed)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    step = 0
    for number in range(NUM_KILLS):
        rank, function = PLACES[number % len(PLACES)]
        monkeypatch.setenv("FAULT", f"{rank}|writing step {step + 2}$|stall_{function}")
        output = kill_when_printed("the writing stalls", *faulty(start), killed)
        assert not step or f"resumed at step {step} of {last}" in output
        found = latest_checkpoint(killed)
        assert found is not None and whole_steps(killed)[0] == step_of(found)
        step += 2 if function == "remove_old" else 1  # there `latest` has moved already
        assert step_of(found) == step, f"killed before {function}: {output}"
    ended = run_script(*start, killed)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert losses(killed) == losses(undisturbed) and len(losses(killed)) == last
    assert whole_steps(killed) == whole_steps(undisturbed)
    weights = [
        CheckpointReader(checkpoints_newest_first(r)[0]).weights() for r in (undisturbed, killed)
    ]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert not list((killed / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_training_goes_on_while_a_save_is_held_up(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the third save; and what is written then is what was there at the first one."""
    run: dict[str, Any] = {"num_train_steps": 9, "checkpoint_interval": 2}
    undisturbed, held_up = tmp_path / "undisturbed", tmp_path / "held_up"
    start = command(tmp_path / "config", data_set, ranks=2, stage=2, **run)
    ended = run_script(*start, undisturbed)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    goes_on, log = tmp_path / "goes_on", tmp_path / "log"
    monkeypatch.setenv("FAULT", "1|writing step 2$|block")
    monkeypatch.setenv("UNBLOCK", str(goes_on))
    waits = "rank 0: waiting for the writing of step 2;"
    with (
        open(log, "w") as file,
        started(*faulty(start), held_up, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        wait_until(lambda: waits in log.read_text() or process.poll() is not None, waits)
        told = log.read_text()
        assert waits in told and "in step 7," not in told and "saved step 2 " not in told, told
        assert whole_steps(held_up) == [1]
        goes_on.touch()
        finish(process)
    told = log.read_text()
    assert process.returncode == 0, told
    texts = ("rank 0: in step 6,", waits, "saved step 2 ", "rank 0: in step 7,")
    places = [told.index(text) for text in texts]
    assert places == sorted(places), told
    assert re.findall(r"saved step (\d) ", told) == ["1", "2", "4", "6", "8", "9"]
    assert whole_steps(held_up) == whole_steps(undisturbed) == [9, 8, 6, 4, 2, 1]
    for step in (2, 4, 6):
        of_runs = [
            CheckpointReader(run / f"checkpoints/step-{step:09d}").weights()
            for run in (undisturbed, held_up)
        ]
        assert all((of_runs[0][name] == of_runs[1][name]).all() for name in of_runs[0])
