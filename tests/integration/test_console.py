"""What a user sees of whole runs: the exact lines of two ranks, and a terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

from tests.integration.conftest import BIN, ROOT, environment, launcher
from tests.integration.test_pretrain import write_configs
from tests.test_console import Terminal, logged

NOISY = """
import logging, runpy, warnings
from dist_bert.watchdog import Watchdog
beat = Watchdog.beat
def noisy_beat(watchdog, doing):
    if doing == "in step 2, micro-step 1 of 3":
        warnings.warn("something is odd")
        logging.getLogger("DeepSpeed").info("a banner")
    beat(watchdog, doing)
Watchdog.beat = noisy_beat
runpy.run_path("launch/pretrain.py", run_name="__main__")
"""
FIGURE = r"(?:[\d,]+\.\d+(?:e[-+]\d+)?|\d+:\d\d:\d\d|(?<=  )[\d,]+(?= tokens))"
LAUNCHER = re.compile(r"\[[\d:, -]+\] \[(INFO|WARNING)\] \[(runner|launch|real_accelerator).py:")
LOSS = "loss #  mlm_loss #  nsp_loss #  mlm_accuracy #  nsp_accuracy #"


def steps(number: int) -> str:
    return f"step {number}/4  loss # (mlm #, nsp #)  lr #  # tokens/s  MFU #%  # left"


def test_the_exact_lines_of_two_ranks(data_set: Path, tmp_path: Path) -> None:
    script = tmp_path / "noisy.py"
    script.write_text(NOISY)
    run_dir = tmp_path / "run"
    flags = write_configs(tmp_path, stage=2, precision="bf16")
    accelerator = "DS_ACCELERATOR"  # unnamed, so that DeepSpeed warns of what it finds
    ended = subprocess.run(
        [*map(str, launcher(2)), str(script), *map(str, flags), "--shards", str(data_set),
         "--output_dir", str(run_dir), "--num_train_steps", "4", "--log_interval", "2"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={name: value for name, value in environment().items() if name != accelerator},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    warning = "warning: something is odd (UserWarning of noisy.py, line 7)"
    expected = [
        "starting from step 0 of 4: 36 samples a step = 2 ranks x 3 micro-steps x 6, ZeRO 2, bf16,"
        " on the CPU",
        steps(1),
        f"saved step 1 in {run_dir}/checkpoints",
        warning,
        steps(2),
        steps(4),
        f"validation at step 4  {LOSS}",
        f"saved step 4 in {run_dir}/checkpoints",
        "done: 4 steps, 144 samples, TOKENS tokens",
    ]
    told = [line for line in ended.stdout.splitlines() if not LAUNCHER.match(line)]
    assert [plain(line) for line in told] == expected
    assert ended.stderr == f"rank 1: {warning}\n"
    assert logged(run_dir / "log.txt") == told


def plain(line: str) -> str:
    """A line with # for every figure."""
    line = re.sub(r"samples, [\d,]+ tokens", "samples, TOKENS tokens", line)
    return re.sub(FIGURE, "#", line)


def test_a_terminal_shows_one_bar(data_set: Path, tmp_path: Path) -> None:
    flags = write_configs(tmp_path, stage=0, precision="fp32")
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    process = subprocess.Popen(
        [str(BIN / "python"), "launch/pretrain.py", *map(str, flags), "--shards", str(data_set),
         "--output_dir", str(tmp_path / "run"), "--num_train_steps", "7", "--log_interval", "2"],
        cwd=ROOT, env=environment(), stdout=its, stderr=its,
    )  # fmt: skip
    os.close(its)
    terminal = Terminal()
    while True:
        try:
            data = os.read(ours, 65_536)
        except OSError:  # all its ends are closed
            break
        terminal.write(data.decode(errors="replace").replace("\r\n", "\n"))
    assert process.wait(timeout=60) == 0, terminal.getvalue()
    folder = tmp_path / "run" / "checkpoints"
    assert [plain(line) for line in terminal.screen()] == [
        "starting from step 0 of 7: 36 samples a step = 1 ranks x 6 micro-steps x 6, ZeRO 0, fp32,"
        " on the CPU",
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
