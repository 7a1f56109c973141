"""A data set made by the scripts themselves, and the launcher, for all integration tests."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_bert.config import ModelConfig
from dist_bert.rendezvous import free_port
from tests.corpus import write_text_files
from tests.synthetic import write_run

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


# Smaller than small, with sizes that are pairwise different; fits the shards of `data_set`.
TINY_MODEL = {
    "vocab_size": 707,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 101,
    "max_position_embeddings": 53,
}


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """Mounts a disk of a size such as "2m" on a new folder; yields a function that resizes it."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def environment() -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}


def run_script(
    *command: str | Path, timeout: float = 120, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs a command, in the repository's root, and returns what it printed and how it ended."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def mpiexec(num_ranks: int) -> list[str | Path]:
    """The MPI launcher and its interpreter, for a script."""
    return [BIN / "mpiexec", "-n", str(num_ranks), sys.executable, "-m", "mpi4py"]


def prepare_shards(
    num_ranks: int, *arguments: str | Path, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs launch/prepare_shards.py on MPI ranks."""
    return run_script(
        *mpiexec(num_ranks), ROOT / "launch/prepare_shards.py", *arguments, cwd=cwd, timeout=60
    )


def assert_one_line_error(made: subprocess.CompletedProcess[str], problem: str) -> None:
    """What a user's mistake looks like."""
    assert made.returncode == 2, (made.returncode, made.stderr)
    assert made.stderr.startswith("error: ") and made.stderr.count("\n") == 1, made.stderr
    assert problem in made.stderr


def files_of(folder: Path) -> dict[str, str]:
    """All files below a folder, with the hash of their bytes."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def launcher(num_ranks: int) -> list[str | Path]:
    """The deepspeed launcher on a port of its own, so that tests never meet each other."""
    return [BIN / "deepspeed", "--num_gpus", str(num_ranks), "--master_port", str(free_port())]


def kill_when_printed(text: str, *command: str | Path, timeout: float = 120) -> str:
    """Kills a command and all its children with -9 as soon as it has printed `text`."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    output = ""
    deadline = time.monotonic() + timeout
    try:
        for line in process.stdout:
            output += line
            if text in line:
                return output
            assert time.monotonic() < deadline, f"{text!r} did not come in {timeout} s: {output}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    raise AssertionError(f"ended without {text!r}: {output}")


@pytest.fixture(scope="session")
def encoder(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining run whose weights are random, for what does not depend on them; read only."""
    folder = tmp_path_factory.mktemp("encoder") / "run"
    model = ModelConfig(**TINY_MODEL)  # type: ignore[arg-type]
    write_run(folder, data_set / "tokenizer.model", model, {"bf16": {"enabled": True}})
    return folder


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Shards of sequences of up to 53 tokens, and their tokenizer of 701 pieces."""
    folder = tmp_path_factory.mktemp("data_set")
    write_text_files(folder / "text", count=397)
    text = folder / "text" / "*.txt"
    made = run_script(
        sys.executable, "launch/train_tokenizer.py", "--input", text,
        "--output_dir", folder / "tokenizer", "--vocab_size", "701",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    made = run_script(
        *mpiexec(2), "launch/prepare_shards.py", "--input", text,
        "--tokenizer", folder / "tokenizer/tokenizer.model", "--output_dir", folder / "shards",
        "--sequence_length", "53", "--samples_per_shard", "307", "--validation_share", "0.1",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    yield folder / "shards"
