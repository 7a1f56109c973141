"""A data set made by the scripts themselves, and the launcher, for all integration tests."""

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_bert.distributed.rendezvous import free_port
from dist_bert.model.config import ModelConfig
from tests.support import synthetic
from tests.support.corpus import write_text_files
from tests.support.processes import BIN, ROOT, environment, kill_when_printed, run_script
from tests.support.synthetic import write_run

__all__ = ["BIN", "ROOT", "environment", "kill_when_printed", "run_script"]  # of every test here

# Smaller than small, with sizes that are pairwise different; fits the shards of `data_set`.
TINY_MODEL = {
    "vocab_size": 707,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 101,
    "max_position_embeddings": 53,
}
# Every part is another one, and most texts are longer than a window.
MODERN_PARTS = {
    **synthetic.MODERN_PARTS,
    "global_attn_every_n_layers": 2,
    "local_attention": 8,
    "global_rope_theta": 160_000.0,
    "layer_norm_eps": 1e-5,
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


def mpiexec(num_ranks: int) -> list[str | Path]:
    """The MPI launcher and its interpreter, for a script."""
    return [BIN / "mpiexec", "-n", str(num_ranks), sys.executable, "-m", "mpi4py"]


def prepare_shards(
    num_ranks: int, *arguments: str | Path, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs launch/prepare_shards.py on MPI ranks."""
    return run_script(*mpiexec(num_ranks), ROOT / "launch/prepare_shards.py", *arguments, cwd=cwd)


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
    """Starts ranks as `deepspeed` does, in half its time; for tests that are not about starting."""
    return [BIN / "python", "-u", ROOT / "tests/support/ranks.py", str(num_ranks), str(free_port())]


def deepspeed_launcher(num_ranks: int) -> list[str | Path]:
    """The launcher of users, two processes more."""
    return [BIN / "deepspeed", "--num_gpus", str(num_ranks), "--master_port", str(free_port())]


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
