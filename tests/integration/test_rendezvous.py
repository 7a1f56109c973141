"""Runs that meet at one port: real processes, most of them with the launcher."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_bert.distributed.rendezvous import free_port, listen
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import BIN, ROOT, environment, run_script
from tests.integration.test_pretrain import write_configs

# More than anybody waits for: a run that is ended when the test has seen enough.
ENDLESS = (
    *("--num_train_steps", "1000000", "--validation_interval", "1000000"),
    *("--checkpoint_interval", "1000000"),
)
MINUTES = (
    600.0  # of anything that is waited for; a busy machine takes 10 times as long as a free one
)


def launched(port: int, *command: str | Path) -> list[str | Path]:
    """A script on two ranks of the launcher."""
    return [BIN / "deepspeed", "--num_gpus", "2", "--master_port", str(port), *command]


@contextlib.contextmanager
def started(output: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command that prints into a file; whatever is left of it at the end is killed."""
    with output.open("w") as file:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_steps(count: int, output: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits until a training has reported so many log intervals."""
    deadline = time.monotonic() + MINUTES
    while output.read_text().count("\nstep ") < count:
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)


def mistakes(output: str) -> list[str]:
    """The lines that tell a mistake; and no traceback."""
    assert "Traceback" not in output, output
    return [line for line in output.splitlines() if line.startswith("error: ")]


def losses(run: Path) -> list[tuple[float, float]]:
    return [(row["step"], row["train/loss"]) for row in read_metrics(run) if "train/loss" in row]


@pytest.fixture
def script(data_set: Path, tmp_path: Path) -> list[str | Path]:
    """A training, but for its folder, which comes last."""
    flags = write_configs(tmp_path, stage=2, precision="fp32")
    return ["launch/pretrain.py", *flags, "--shards", data_set, *ENDLESS, "--output_dir"]


@pytest.mark.slow
def test_a_second_run_at_the_port_of_a_training_leaves_it_alone(
    script: list[str | Path], tmp_path: Path
) -> None:
    port = free_port()
    outputs = [tmp_path / f"second{number}.txt" for number in range(3)]
    with started(tmp_path / "first.txt", *launched(port, *script, tmp_path / "first")) as first:
        wait_for_steps(1, tmp_path / "first.txt", first)
        with contextlib.ExitStack() as stack:
            others = [
                stack.enter_context(
                    started(output, *launched(port, *script, output.with_suffix("")))
                )
                for output in outputs
            ]
            for other, output in zip(others, outputs, strict=True):
                assert other.wait(MINUTES) == 2, output.read_text()
        seen = (tmp_path / "first.txt").read_text().count("\nstep ")
        wait_for_steps(seen + 2, tmp_path / "first.txt", first)  # it trains on
    for output in outputs:
        (line,) = mistakes(output.read_text())
        assert f"MASTER_PORT = {port}: is in use by another program" in line
        assert re.search(r"deepspeed --master_port \d+ launch/", line)
        assert not (output.with_suffix("") / "checkpoints").exists()
    with started(
        tmp_path / "alone.txt", *launched(free_port(), *script, tmp_path / "alone")
    ) as run:
        wait_for_steps(seen + 2, tmp_path / "alone.txt", run)
    disturbed, alone = losses(tmp_path / "first"), losses(tmp_path / "alone")
    both = min(len(disturbed), len(alone))
    assert both >= seen and disturbed[:both] == alone[:both], "bit for bit"


@pytest.mark.slow
def test_of_two_runs_that_start_at_once_one_trains(
    script: list[str | Path], tmp_path: Path
) -> None:
    """Ranks of the loser may come before those of the winner: they must not take their places."""
    port = free_port()
    outputs = [tmp_path / name for name in ("one.txt", "two.txt")]
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(started(output, *launched(port, *script, output.with_suffix(""))))
            for output in outputs
        ]
        deadline = time.monotonic() + MINUTES
        while all(run.poll() is None for run in runs):
            assert time.monotonic() < deadline, [output.read_text() for output in outputs]
            time.sleep(0.2)
        loser = next(index for index, run in enumerate(runs) if run.poll() is not None)
        assert runs[loser].returncode == 2, outputs[loser].read_text()
        (line,) = mistakes(outputs[loser].read_text())
        assert f"MASTER_PORT = {port}:" in line
        wait_for_steps(3, outputs[1 - loser], runs[1 - loser])


@pytest.mark.parametrize(
    "command",
    [
        "launch/pretrain.py --shards {shards} --output_dir {tmp}/run",
        "launch/pretrain.py --check --shards {shards} --output_dir {tmp}/run",
        "launch/finetune.py --task sentence_classification --checkpoint {run}"
        " --train {tmp}/train.tsv --eval {tmp}/train.tsv --output_dir {tmp}/run",
        "launch/evaluate.py --shards {shards} --checkpoint {run}",
        "launch/benchmark.py train --shards {shards} --train_batch_size 4 --micro_batch_size 2",
    ],
    ids=lambda command: command.split()[0][7:-3] + " --check" * ("--check" in command),
)
def test_every_script_tells_in_one_line_that_the_port_is_taken(
    command: str, data_set: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 as a task of srun has it; rank 1 never comes, which nobody waits for."""
    (tmp_path / "train.tsv").write_text("text\tlabel\ngood\t1\nbad\t0\n" * 20)
    words: list[str | Path] = [*command.format(shards=data_set, tmp=tmp_path, run=encoder).split()]
    words += write_configs(tmp_path, 0, "fp32")[:2] * ("pretrain" in command)  # the model's
    if "evaluate" not in command:
        words += ["--deepspeed_config", tmp_path / "deepspeed_config.json"]
    write_configs(tmp_path, stage=0, precision="fp32")
    step = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_ID": "1"}
    step |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_JOB_ID": "7"}
    with listen(0) as taken:
        port = taken.getsockname()[1]
        for name, value in {**step, "SLURM_STEP_NODELIST": "n1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        made = run_script(BIN / "python", *words, timeout=MINUTES)
    (line,) = mistakes(made.stderr)
    assert made.returncode == 2 and f"MASTER_PORT = {port}: is in use by another program" in line
    assert re.search(r"export MASTER_PORT=\d+ before srun$", line)
