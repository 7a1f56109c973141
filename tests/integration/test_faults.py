"""Whole runs that are interrupted, hang, lose a rank or the launcher, or meet what is no number."""

import contextlib
import os
import platform
import pty
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from dist_bert.checkpoint.format import CheckpointReader
from dist_bert.checkpoint.run_dir import latest_checkpoint, step_of
from dist_bert.distributed.rendezvous import free_port
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import (
    BIN,
    deepspeed_launcher,
    environment,
    launcher,
    run_script,
    small_disk,
)
from tests.integration.test_pretrain import write_configs
from tests.support.processes import finish, slowness, started, wait_until

pytestmark = pytest.mark.trains

SCRIPT = "tests/integration/faulty_pretrain.py"
NO_FAULT = "0|nowhere|raise"
Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(data_set: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a run with a fault: its ranks without a launcher, which is faster, or with it."""
    flags = [*write_configs(tmp_path, stage=2, precision="bf16"), "--shards", data_set]

    def start_run(
        fault: str, run: str, *changes: str, num_ranks: int = 2, with_launcher: bool = False
    ) -> list[subprocess.Popen[str]]:
        script = [SCRIPT, *flags, "--output_dir", tmp_path / run, *changes]
        commands = [[*deepspeed_launcher(num_ranks), *script]]
        environments = [{**environment(), "FAULT": fault}]
        if not with_launcher:
            group = {"WORLD_SIZE": str(num_ranks), "LOCAL_SIZE": str(num_ranks)}
            group.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
            commands = [[BIN / "python", *script]] * num_ranks
            environments = [
                {**environments[0], **group, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                for rank in range(num_ranks)
            ]
        pipe, same = subprocess.PIPE, subprocess.STDOUT
        return [
            stack.enter_context(started(*command, env=variables, stdout=pipe, stderr=same))
            for command, variables in zip(commands, environments, strict=True)
        ]

    with contextlib.ExitStack() as stack:
        yield start_run


def ended(processes: list[subprocess.Popen[str]], *codes: int) -> list[str]:
    """Waits for all; checks their exit codes; returns what they printed."""
    outputs = [finish(process).stdout for process in processes]
    assert [process.returncode for process in processes] == list(codes), outputs
    return outputs


def rows_of(run: Path, name: str) -> list[tuple[float, ...]]:
    names = ("step", name, "train/grad_norm")
    return [tuple(row.get(n, 0) for n in names) for row in read_metrics(run) if name in row]


@pytest.mark.slow
def test_interrupted_and_broken_runs_equal_an_undisturbed_one(start: Start, tmp_path: Path) -> None:
    ended(start(NO_FAULT, "whole"), 0, 0)
    marker = tmp_path / "broken/interrupted"
    # Only one rank gets the signal, during a validation, which is then made by the resumed run.
    (output,) = ended(
        start("1|in the validation at step 7|SIGTERM", "broken", with_launcher=True), 85
    )
    assert "saved step 7 " in output and "validation at step 7" not in output
    assert marker.read_text() == "stopped at step 7 of 14: SIGTERM\n"
    # A rank fails: it tells why, the other one tells only that.
    others, own = ended(start("1|in step 9, micro-step 2|raise", "broken"), 1, 1)
    assert "resumed at step 7" in others and "validation at step 7" in others
    assert not marker.exists()
    # The checkpoint has the loss of the validation that was made up for, and so may be the best.
    validated = CheckpointReader(tmp_path / "broken/checkpoints/step-000000007").contents
    ((_, loss, _),) = rows_of(tmp_path / "broken", "validation/loss")
    assert validated["validation_loss"] == loss
    assert (tmp_path / "broken/checkpoints/best").read_text() == "step-000000007\n"
    assert own.splitlines()[-1] == "ValueError: an injected fault" and "rank 1 failed" in own
    assert "error: rank 0: lost another rank" in others and "Traceback" not in others
    left = [(tmp_path / f"broken/logs/rank-0000{rank}.log").read_text() for rank in (0, 1)]
    assert left[1].splitlines()[-1] == "ValueError: an injected fault" and "faulty_beat" in left[1]
    assert " error: rank 0: lost another rank" in left[0] and "Traceback" not in left[0]
    # In a step, which is finished before all stop.
    ended(start("1|in step 12, micro-step 1|SIGUSR1", "broken"), 85, 85)
    assert marker.read_text() == "stopped at step 12 of 14: SIGUSR1\n"
    for name, steps in (("train/loss", list(range(1, 13))), ("validation/loss", [7])):
        whole, broken = (rows_of(tmp_path / run, name) for run in ("whole", "broken"))
        assert [step for step, *_ in broken] == steps
        assert broken == whole[: len(broken)]  # bit for bit: JSON keeps every digit of a float
    weights = [
        CheckpointReader(tmp_path / run / "checkpoints/step-000000012").weights()
        for run in ("whole", "broken")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # Killed in a validation, a run goes on from the checkpoint before it.
    ended(start("1|in the validation at step 7|SIGKILL", "killed"), 1, -signal.SIGKILL)
    ended(start(NO_FAULT, "killed"), 0, 0)
    for name in ("train/loss", "validation/loss"):
        assert rows_of(tmp_path / "killed", name) == rows_of(tmp_path / "whole", name)


@pytest.mark.slow
def test_ranks_end_soon_after_their_launcher(start: Start) -> None:
    """Even one that hangs. `deepspeed` is killed, which leaves its own child and the ranks.

    The first rank that notices says so and exits, upon which the child ends the others.
    """
    (process,) = start("1|in step 2|orphan", "run", with_launcher=True)
    output = finish(process).stdout  # which the ranks hold open, too
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: not members_of(process.pid), "the end of all ranks")
    assert re.search("error: rank [01]: the launcher has exited", output), output


def members_of(session: int) -> list[str]:
    """Command lines of the living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(status[3]) == session and status[0] != "Z":
                found.append((folder / "cmdline").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.slow
def test_a_rank_that_vanishes_ends_the_others(start: Start) -> None:
    """Stopped, a process is as silent as one whose host has lost its power."""
    for silent in (0, 1):
        processes = start(
            f"{silent}|in step 2, micro-step 3|SIGSTOP", f"run{silent}",
            "--heartbeat_seconds", f"{4 * slowness():.0f}",
        )  # fmt: skip
        output = finish(processes[1 - silent]).stdout
        assert processes[1 - silent].returncode == 1
        processes[silent].kill()
        silence = finish(processes[silent]).stdout
        assert f"error: rank {1 - silent}: " in output and "heartbeat_seconds" in output
        assert "error" not in silence


@pytest.mark.slow
def test_a_hanging_rank_shows_where_and_ends_the_job(start: Start, tmp_path: Path) -> None:
    others, own = ended(start("1|in step 2, micro-step 3|hang", "run"), 1, 1)
    assert 'faulty_pretrain.py", line' in own and "in faulty_beat" in own and "in _step" in own
    assert "error: rank 1: no progress for" in own
    left = (tmp_path / "run/logs/rank-00001.log").read_text()
    assert "in faulty_beat" in left and " error: rank 1: no progress for" in left
    assert "while in step 2, micro-step 3 of 3; the stacks above show where it is" in own
    assert "error: rank 0: lost another rank" in others


@pytest.mark.slow
def test_a_save_that_hangs_ends_the_job_though_training_goes_on(start: Start) -> None:
    """The last save is step 14's; nobody waits for that of step 4 before step 12's."""
    flags = ("--num_train_steps", "100000", "--checkpoint_interval", "50000")
    others, own = ended(start("1|writing step 1$|hang", "waited_for", *flags), 1, 1)
    assert "(save_minutes = 0.017) while w" in own and "in faulty_save_file" in own
    others, own = ended(start("1|writing step 4$|hang", "beside", "--num_train_steps", "7"), 1, 1)
    assert "(save_minutes = 0.017) while w" in own and "in faulty_save_file" in own
    assert "error: rank 0: lost another rank" in others and "saved step 4 " not in others


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 14])
def test_a_save_that_fails_on_one_rank_ends_all_ranks(
    start: Start, tmp_path: Path, step: int
) -> None:
    """At the first save, which is waited for; at one beside training; and at the last one."""
    others, own = ended(start(f"1|writing step {step}$|full", "run"), 2, 2)
    folder = tmp_path / "run/checkpoints"
    assert own == ""
    assert [line for line in others.splitlines() if "error" in line] == [
        f"error: cannot save step {step}: {folder}/.step-{step:09d}.partial/fragments-00001"
        f".safetensors: cannot be written ([Errno 28] No space left on device: '{folder}/.step-"
        f"{step:09d}.partial/fragments-00001.safetensors')"
    ]
    assert "Traceback" not in others and f"saved step {step} " not in others
    kept = {1: set(), 4: {1}, 14: {8, 12}}[step]
    assert {path.name for path in folder.glob("*step-*")} == {f"step-{s:09d}" for s in kept}
    latest = latest_checkpoint(tmp_path / "run")
    assert (latest is not None and step_of(latest)) == (max(kept) if kept else False)


@pytest.mark.slow
def test_a_folder_has_one_training_at_a_time(start: Start, tmp_path: Path) -> None:
    """Also where the second one has other settings; a holder that is killed has it no more."""
    (holder,) = start("0|in step 6, micro-step 1|SIGSTOP", "run", num_ranks=1)
    status = Path(f"/proc/{holder.pid}/stat")
    while status.read_text().rpartition(")")[2].split()[0] != "T":
        assert holder.poll() is None
        time.sleep(0.1)
    run = tmp_path / "run"
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (output,) = ended(start(NO_FAULT, "run", "--warmup_steps", "1", num_ranks=1), 2)
    assert f"another training is writing there (process {holder.pid} on {platform.node()}" in output
    assert output.count("error: ") == 1 and "Traceback" not in output
    log = run / "logs" / "rank-00000.log"  # of both
    assert {path: path.read_bytes() for path in kept if path != log} == {
        path: data for path, data in kept.items() if path != log
    }
    holder.kill()
    holder.wait()
    (output,) = ended(start(NO_FAULT, "run", num_ranks=1), 0)
    assert "resumed at step 4 of 14" in output and "done: 14 steps" in output
    assert (run / "lock").read_bytes() == b""


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["/proc/run", "a_file/run"])
def test_a_folder_that_cannot_be_made_is_one_line(
    start: Start, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "a_file").touch()
    for num_ranks in (1, 2):
        outputs = ended(start(NO_FAULT, folder, num_ranks=num_ranks), *([2] * num_ranks))
        lines = [line for output in outputs for line in output.splitlines() if "error" in line]
        assert len(lines) == 1 and lines[0].startswith("error: cannot start: "), outputs
        assert folder.split("/")[1] in lines[0] and "Traceback" not in "".join(outputs)


@pytest.mark.slow
def test_a_lost_terminal_saves_and_ends_the_run(data_set: Path, tmp_path: Path) -> None:
    """As a lost ssh session: the terminal is gone, and with it what could be written to."""
    flags = write_configs(tmp_path, stage=2, precision="bf16")
    script = ["launch/pretrain.py", *flags, "--shards", data_set, "--output_dir", tmp_path / "run"]
    ours, theirs = pty.openpty()
    # SIGHUP ends it also where these tests were started by nohup, which has it ignored.
    heard = ["env", "--default-signal=HUP"]
    command = ["setsid", "--ctty", "--wait", *heard, *deepspeed_launcher(2), *script]
    command += ["--num_train_steps", "100000"]
    with started(*command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        while b"saved step 4 " not in output:
            output += os.read(ours, 4_096)
        (leader,) = psutil.Process(process.pid).children()  # of the terminal's session
        os.close(ours)
        wait_until(lambda: not members_of(leader.pid), "all of the session have ended")
    told = (tmp_path / "run/interrupted").read_text()
    assert told.startswith("stopped at step ") and told.endswith("of 100,000: SIGHUP\n")
    saved = int(told.split()[3])
    assert latest_checkpoint(tmp_path / "run") == tmp_path / f"run/checkpoints/step-{saved:09d}"
    assert f"saved step {saved} in" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.slow
def test_a_disk_that_is_full_between_two_saves_does_not_end_the_run(
    start: Start, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "30m"):
        (process,) = start("0|in step 6, micro-step 1|SIGSTOP", "disk/run", num_ranks=1)
        status = Path(f"/proc/{process.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            assert process.poll() is None
            time.sleep(0.1)
        filler = tmp_path / "disk" / "filler"
        with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4_096))
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        output = ""
        while "training continues" not in output:
            line = process.stdout.readline()
            assert line, output
            output += line
        filler.unlink()
        output += ended([process], 0)[0]
        run = tmp_path / "disk" / "run"
        assert "No space left on device: training continues; the missing rows are written" in output
        assert "metrics are written again: nothing is missing" in output
        assert [row["step"] for row in read_metrics(run) if "train/loss" in row] == [*range(1, 15)]
        assert "metrics are written again" in (run / "log.txt").read_text()


@pytest.mark.slow
def test_a_limit_of_file_sizes_is_one_line(start: Start, tmp_path: Path) -> None:
    """As a full disk, for whoever cannot mount one: the first save meets it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500 << 10, limits[1]))  # what is started has it, too
    try:
        processes = start(NO_FAULT, "run", num_ranks=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (output,) = ended(processes, 2)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: cannot save step 1: ") and "File too large" in line
    assert "Traceback" not in output
    assert not (tmp_path / "run/checkpoints/latest").exists()
    (output,) = ended(start(NO_FAULT, "run", num_ranks=1), 0)
    assert "starting from step 0" in output and "done: 14 steps" in output


@pytest.mark.slow
@pytest.mark.parametrize("is_late", [False, True])
def test_a_diverging_run_goes_back_once_then_stops(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """To the last checkpoint, also where its writing has to be waited for."""
    if is_late:
        monkeypatch.setenv("LATE", "1")
    steps = "in step (3|6|7|9|10|11|12),"
    (output,) = ended(start(f"0|{steps}|nan", "run", "--max_skipped_steps", "2", num_ranks=1), 2)
    assert "step 3: skipped, loss or gradient is not finite (samples 72 to 107 of the" in output
    assert (
        "step 7: loss or gradient was not finite in 2 steps (samples 180 to 251 of the stream):"
        " rolled back to the weights of step 4"
    ) in output
    assert "saved step 8 " in output, "which makes the next rollback possible"
    assert "step 10: loss or gradient was not finite in 2 steps" in output
    error = output.strip().splitlines()[-1]
    assert error.startswith(
        "error: step 12: loss or gradient was not finite in 2 steps (samples 360"
    )
    assert "to 431 of the stream), also after rolling back to a checkpoint: try a lower lr" in error
    assert "Traceback" not in output
    rows = [row for row in read_metrics(tmp_path / "run") if "train/skipped_steps" in row]
    assert [row["train/skipped_steps"] for row in rows] == [0, 0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 7]
    assert ["train/loss" in row for row in rows].count(False) == 7


@pytest.mark.slow
@pytest.mark.parametrize("what", ["record", "skip", "roll_back"])
def test_a_loss_that_jumps_is_recorded_and_acted_on(
    start: Start, tmp_path: Path, what: str
) -> None:
    """On two ranks, of which one alone has the jump; all act on it together."""
    flags = ("--num_train_steps", "34", "--on_spike", what, "--checkpoint_interval", "24")
    outputs = ended(start("0|in step (28|30),|jump", "run", *flags), 0, 0)
    output = outputs[0]
    rows = [row for row in read_metrics(tmp_path / "run") if "train/skipped_steps" in row]
    assert [row["step"] for row in rows] == list(range(1, 35))
    spikes = {row["step"]: row["train/spike"] for row in rows if "train/spike" in row}
    assert spikes.keys() == {28, 30} and all(2 < spike < 8 for spike in spikes.values())
    assert output.count("times the median of the steps before (spike_threshold)") == 2
    num_skipped = 0 if what == "record" else 2
    assert rows[-1]["train/skipped_steps"] == num_skipped
    assert output.count("skipped, its loss is a spike (samples ") == num_skipped
    told = "rolled back to the weights of step 24; training continues with the next samples"
    assert output.count(told) == (what == "roll_back"), "once until the next checkpoint"


@pytest.mark.slow
def test_skipped_steps_leave_no_trace(data_set: Path, tmp_path: Path) -> None:
    """For ZeRO 0 to 3 in float32 and bfloat16; also that going back to a checkpoint takes all."""
    made = run_script(
        *launcher(2), "tests/integration/guard_worker.py", "--shards", data_set,
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.count(": alike\n") == 9 and made.stdout.count("fp16: stopped\n") == 3


def test_the_time_limit_may_end_before_the_first_step(start: Start, tmp_path: Path) -> None:
    (output,) = ended(start(NO_FAULT, "run", "--max_minutes", "0.001", num_ranks=1), 85)
    reason = "stopped at step 0 of 14: max_minutes reached"
    assert reason in output and "step 1/14" not in output
    assert (tmp_path / "run/interrupted").read_text() == f"{reason}\n"
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_signal_before_the_first_step_is_heard(
    start: Start, tmp_path: Path, num_ranks: int
) -> None:
    """While the model is made, by the last rank alone; the same command then starts anew."""
    fault = f"{num_ranks - 1}|making the model|SIGTERM"
    output, *_ = ended(start(fault, "run", num_ranks=num_ranks), *([85] * num_ranks))
    reason = "stopped at step 0 of 14: SIGTERM"
    assert reason in output and "step 1/14" not in output
    assert (tmp_path / "run/interrupted").read_text() == f"{reason}\n"
    assert not (tmp_path / "run/checkpoints").exists()
    output, *_ = ended(start(NO_FAULT, "run", num_ranks=num_ranks), *([0] * num_ranks))
    assert "starting from step 0" in output and "done: 14 steps" in output


def test_all_groups_take_the_timeout() -> None:
    """Also those that are made later, without naming one: ZeRO's."""
    program = (
        "import torch, torch.distributed as dist\n"
        "from dist_bert.distributed.process_group import leave_distributed, start_distributed\n"
        "start_distributed(7.5)\n"
        "for group in (dist.group.WORLD, dist.new_group([0])):\n"
        "    print(group._get_backend(torch.device('cpu')).options._timeout.total_seconds())\n"
        "leave_distributed()\n"
    )
    made = run_script(BIN / "python", "-c", program)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-2:] == ["7.5", "7.5"]
