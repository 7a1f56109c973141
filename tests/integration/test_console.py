"""What a user sees of whole runs: the exact lines of two ranks, and a terminal."""

import fcntl
import importlib.metadata
import json
import os
import platform
import pty
import re
import select
import struct
import termios
from pathlib import Path

import pytest

from dist_bert.common.code_version import code_fingerprint
from dist_bert.common.device import arithmetic, num_cores
from dist_bert.common.machine import cpu_model
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import BIN, deepspeed_launcher, environment
from tests.integration.test_pretrain import write_configs
from tests.support.processes import Patience, run_script, started, wait_until
from tests.unit.training.test_console import Terminal, logged

# Both ranks warn, one of them of something else, too; and that one is slow from step 4 on.
NOISY = """
import logging, os, runpy, time, warnings
from dist_bert.training import loop
from dist_bert.distributed.watchdog import Watchdog
beat, to_device, rank, step = Watchdog.beat, loop.to_device, os.environ["RANK"], 0
def noisy_beat(watchdog, doing):
    global step
    if doing == "in step 2, micro-step 1 of 3":
        for _ in range(101):
            logging.getLogger("DeepSpeed").warning("something is odd")
        logging.getLogger("DeepSpeed").info("a banner")
    if doing == "in step 3, micro-step 1 of 3" and rank == "1":
        warnings.warn("a rank of its own")
    step = int(doing.split()[2].strip(",")) if doing.startswith("in step") else step
    beat(watchdog, doing)
def slow_to_device(*arguments):
    if rank == "1" or step < 4:
        time.sleep(0.1)
    return to_device(*arguments)
Watchdog.beat, loop.to_device = noisy_beat, slow_to_device
runpy.run_path("launch/pretrain.py", run_name="__main__")
"""
FIGURE = r"(?:[\d,]+\.\d+(?:e[-+]\d+)?|\d+:\d\d:\d\d|(?<=  )[\d,]+(?= tokens))"
LAUNCHER = re.compile(r"\[[\d:, -]+\] \[(INFO|WARNING)\] \[(runner|launch|real_accelerator).py:")
LOSS = "loss #  mlm_loss #  nsp_loss #  mlm_accuracy #  nsp_accuracy #"


def steps(number: int) -> str:
    return f"step {number}/6  loss # (mlm #, nsp #)  lr #  # tokens/s  MFU #%  # left"


@pytest.fixture(scope="module")
def noisy(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of a run of two ranks, and what it printed on stdout and on stderr."""
    folder = tmp_path_factory.mktemp("noisy")
    (folder / "noisy.py").write_text(NOISY)
    flags = write_configs(folder, stage=2, precision="bf16")
    # The first unnamed, so that DeepSpeed warns of what it finds; the second, as for most users.
    variables = environment()
    del variables["DS_ACCELERATOR"], variables["OMP_NUM_THREADS"]
    variables["CUDA_VISIBLE_DEVICES"] = ""  # so that it finds none
    ended = run_script(
        *deepspeed_launcher(2), folder / "noisy.py", *flags, "--shards", data_set, "--output_dir",
        folder / "run", "--num_train_steps", "6", "--log_interval", "1",
        env={**variables, "NCCL_DEBUG": "WARN", "SLURM_JWT": "geheim", "HOME_OF": "nobody"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "run", ended.stdout, ended.stderr


ODD = ["warning: something is odd", *(f"warning: something is odd ({n} times)" for n in (10, 100))]
OWN = "warning: a rank of its own (UserWarning of noisy.py, line 13)"
SLOW = (
    f"warning: rank 1 on {platform.node()} is slow: its forward passes took # times the median of"
    " all ranks, above # for 3 log intervals in a row; all ranks wait for it"
)


def test_the_exact_lines_of_two_ranks(noisy: tuple[Path, str, str]) -> None:
    run_dir, stdout, stderr = noisy
    expected = [
        "starting from step 0 of 6: 36 samples a step = 2 ranks x 3 micro-steps x 6, ZeRO 2,"
        f" {arithmetic('bf16', 'cpu')}, {on_cpu(num_cores() // 2)}",
        steps(1),
        f"saved step 1 in {run_dir}/checkpoints",
        *ODD,
        steps(2),
        f"rank 1: {OWN}",
        steps(3),
        steps(4),
        steps(5),
        SLOW,
        steps(6),
        f"validation at step 6  {LOSS}",
        f"saved step 6 in {run_dir}/checkpoints",
        "done: 6 steps, 216 samples, TOKENS tokens",
    ]
    told = [line for line in stdout.splitlines() if not LAUNCHER.match(line)]
    written = f"saved step 4 in {run_dir}/checkpoints"  # told when it is, in a later step
    assert [plain(line) for line in told if line != written] == expected
    places = [plain(line) for line in told]
    assert places.count(written) == 1 and places.index(written) > places.index(steps(4))
    assert stderr == ""
    assert logged(run_dir / "log.txt") == told


def test_every_rank_has_its_warnings_in_its_own_file(noisy: tuple[Path, str, str]) -> None:
    run_dir, *_ = noisy
    assert [path.name for path in sorted((run_dir / "logs").iterdir())] == [
        "rank-00000.log",
        "rank-00001.log",
    ]
    for rank, own in enumerate((ODD, [*ODD, OWN])):
        first, *lines = logged(run_dir / f"logs/rank-{rank:05d}.log")
        host = f"{platform.node()} "
        assert first.startswith(f"{host}start of rank {rank} of 2, process ")
        assert [plain(line.removeprefix(host)) for line in lines] == own


def test_the_slow_rank_is_told_by_the_metrics(noisy: tuple[Path, str, str]) -> None:
    rows = [row for row in read_metrics(noisy[0]) if "train/loss" in row]
    for row in rows:
        assert 0 <= row["ranks/worst_data_wait_fraction"] < 1
        assert 0.03 < row["ranks/median_compute_seconds"] < row["throughput/step_seconds"]
        if row["step"] > 3:
            assert row["ranks/slowest_rank"] == 1 and 1.2 < row["ranks/slowest_share"] <= 2
    assert len(rows) == 6


def test_the_environment_is_kept_without_secrets(noisy: tuple[Path, str, str]) -> None:
    text = (noisy[0] / "environment.json").read_text()
    (node,) = json.loads(text)["nodes"]
    assert node["host"] == platform.node() and node["ranks"] == [0, 1]
    assert node["python"] == platform.python_version()
    assert node["torch"] == importlib.metadata.version("torch")
    assert node["code"] == code_fingerprint() and node["kernel"] == platform.release()
    assert node["variables"]["NCCL_DEBUG"] == "WARN" and node["variables"]["WORLD_SIZE"] == "2"
    assert "RANK" not in node["variables"], "differs from rank to rank"
    assert "geheim" not in text and "nobody" not in text


def on_cpu(threads: int) -> str:
    """The end of the first line."""
    many = f", {threads} threads a rank" if threads > 1 else ""
    return f"on the CPU ({cpu_model()}){many}"


def plain(line: str) -> str:
    """A line with # for every figure."""
    line = re.sub(r"samples, [\d,]+ tokens", "samples, TOKENS tokens", line)
    return re.sub(FIGURE, "#", line)


def test_a_terminal_shows_one_bar(data_set: Path, tmp_path: Path) -> None:
    flags = write_configs(tmp_path, stage=0, precision="fp32")
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    command = [BIN / "python", "launch/pretrain.py", *flags, "--shards", data_set]
    command += ["--output_dir", tmp_path / "run", "--num_train_steps", "7", "--log_interval", "2"]
    terminal = Terminal()
    with started(*command, stdout=its, stderr=its) as process:
        os.close(its)
        patience = Patience()
        while not patience.is_over():
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(ours, 65_536)
            except OSError:  # all its ends are closed
                break
            terminal.write(data.decode(errors="replace").replace("\r\n", "\n"))
        wait_until(lambda: process.poll() is not None, "the end")
    assert process.returncode == 0, terminal.getvalue()
    folder = tmp_path / "run" / "checkpoints"
    assert [plain(line) for line in terminal.screen()] == [
        "starting from step 0 of 7: 36 samples a step = 1 ranks x 6 micro-steps x 6, ZeRO 0, fp32,"
        f" {on_cpu(int(environment()['OMP_NUM_THREADS']))}",
        f"saved step 1 in {folder}",
        f"saved step 4 in {folder}",
        f"validation at step 7  {LOSS}",
        f"saved step 7 in {folder}",
        "done: 7 steps, 252 samples, TOKENS tokens",
        "",
    ]
    bars = [part for part in re.split(r"[\r\n]", terminal.getvalue()) if "%|" in part]
    shown = " ".join(dict.fromkeys(re.sub(r"\|.*\|", "", bar).strip() for bar in bars))
    numbers = [int(number) for number in re.findall(r"step (\d)/7 ", shown)]
    assert numbers == sorted(numbers) and {1, 7} <= set(numbers)  # the others as time allows
    assert re.search(r"loss \d\.\d{4} \(mlm .*, nsp .*\)  lr .* tokens/s  MFU .*% .* left", shown)
    told = [line for line in logged(tmp_path / "run" / "log.txt") if line.startswith("step ")]
    assert [line.split("  ")[0] for line in told] == [f"step {n}/7" for n in (1, 2, 4, 6, 7)]
