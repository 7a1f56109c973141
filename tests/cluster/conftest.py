"""A SLURM of two hosts on this machine, made by the scripts of a test cluster where there are any.

They lie in $TEST_CLUSTER or in shared/cluster beside the checkout (or further up, for a worktree).
"""

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import BIN, ROOT, TINY_MODEL, environment
from tests.support.corpus import write_text_files
from tests.support.processes import Patience, finish

CANNOT = 77  # exit code of the scripts: this machine has no name spaces, no apt-get, no root
STATE = Path(os.environ.get("TC_DIR", "/run/testcluster"))
# Of every run here: float32 without dropout, so that any layout computes the same losses.
MODEL = {**TINY_MODEL, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DEEPSPEED = {
    "train_batch_size": 48,
    "train_micro_batch_size_per_gpu": 6,
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-3, "torch_adam": True, "fused": True}},
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
}
RUN = {
    "num_train_steps": 60,
    "warmup_steps": 7,
    "checkpoint_interval": 5,
    "log_interval": 5,
    "validation_interval": 23,
    "validation_samples": 33,
}
NUM_SAMPLES = DEEPSPEED["train_batch_size"]


def find_scripts() -> Path | None:
    """The folder of the test cluster's scripts."""
    asked = os.environ.get("TEST_CLUSTER")
    folders = [Path(asked)] if asked else [parent / "shared/cluster" for parent in ROOT.parents]
    return next((folder for folder in folders if (folder / "slurm-up.sh").exists()), None)


def command(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of SLURM or of the test cluster: the daemons that it starts stay."""
    process = subprocess.Popen(
        [str(word) for word in words], cwd=ROOT, env={**environment(), **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    return finish(process)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The scripts, and what jobs need from the environment."""

    scripts: Path

    def call(self, script: str, *arguments: object) -> str:
        """Runs one of the scripts; skips the test where it cannot work here."""
        made = command(self.scripts / script, *arguments)
        if made.returncode == CANNOT:
            pytest.skip(made.stderr.strip().splitlines()[-1])
        assert made.returncode == 0, made.stdout + made.stderr
        return made.stdout

    def node(self, action: str, name: str, *arguments: object) -> str:
        """Acts on one host: cut, heal, crash, boot, rate, delay, kill."""
        return self.call("node.sh", action, name, *arguments)

    def order(self, *words: object) -> None:
        """Runs a command of SLURM, which must succeed."""
        made = command(*words)
        assert made.returncode == 0, made.stderr

    def processes(self, name: str, pattern: object) -> list[str]:
        """Processes of a host whose command line matches."""
        return command(self.scripts / "node.sh", "pids", name, pattern).stdout.split()

    def submit(self, log: Path, *words: object, **variables: str) -> "Job":
        """Queues a batch script of launch/slurm with options before, and arguments behind it."""
        setup = {"SETUP": f"export PATH={BIN}:$PATH"}
        made = command("sbatch", "--parsable", "--output", log, *words, **setup, **variables)
        assert made.returncode == 0, made.stderr
        return Job(made.stdout.strip(), log)


@dataclasses.dataclass(frozen=True)
class Job:
    """A batch job and what it prints."""

    number: str
    log: Path

    @property
    def facts(self) -> dict[str, str]:
        """What SLURM says of it."""
        made = command("scontrol", "show", "job", "-o", self.number)
        return dict(word.partition("=")[::2] for word in made.stdout.split() if "=" in word)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, text: str, times: int = 1) -> float:
        """Waits until the log has a text so many times; returns for how many seconds."""
        start, patience = time.monotonic(), Patience()
        while self.output.count(text) < times:
            state = self.facts["JobState"]
            assert state not in ("FAILED", "COMPLETED", "TIMEOUT"), (state, self.output)
            assert not patience.is_over(), f"no {text!r}: {self.output}"
            time.sleep(0.05)
        return time.monotonic() - start

    def ended(self, state: str = "COMPLETED") -> str:
        """Waits for the end, in a state; returns what was printed."""
        patience = Patience()
        going_on = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
        while (now := self.facts.get("JobState", "PENDING")) in going_on:
            assert not patience.is_over(), f"still {now}: {self.output}"
            time.sleep(0.2)
        assert now == state, (self.facts, self.output)
        return self.output


@pytest.fixture(autouse=True)
def nothing_outlives_its_test() -> None:
    """In place of the other fixture of this name: hosts and daemons that a test restarts stay."""


@pytest.fixture(scope="session")
def hosts() -> Iterator[Cluster]:
    """Two hosts, node1 and node2, with ssh between them."""
    scripts = find_scripts()
    if scripts is None:
        pytest.skip("no scripts of a test cluster: set TEST_CLUSTER")
    if os.getuid():
        pytest.skip("a test cluster needs root")
    cluster = Cluster(scripts)
    cluster.call("hosts-up.sh", 2)
    yield cluster
    cluster.call("hosts-down.sh")  # SLURM first, where it is up


@pytest.fixture(scope="session")
def slurm(hosts: Cluster) -> Iterator[Cluster]:
    """The same two hosts as nodes of a SLURM, of two CPUs each and what it takes for two GPUs."""
    os.environ["TC_GPUS"] = "2"
    hosts.call("slurm-up.sh", 2)
    os.environ["SLURM_CONF"] = str(STATE / "slurm/slurm.conf")
    yield hosts
    del os.environ["SLURM_CONF"], os.environ["TC_GPUS"]
    hosts.call("slurm-down.sh")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text files, and the JSON files of a run."""
    folder = tmp_path_factory.mktemp("corpus")
    write_text_files(folder / "text", count=397)
    for name, values in (("model", MODEL), ("deepspeed", DEEPSPEED), ("run", RUN)):
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def training_flags(corpus: Path, run: Path, *changes: object) -> list[str]:
    """Of launch/pretrain.py."""
    flags: list[object] = ["--deepspeed_config", corpus / "deepspeed.json", "--output_dir", run]
    flags += ["--model", corpus / "model.json", "--config", corpus / "run.json"]
    return list(map(str, [*flags, "--shards", corpus / "shards", *changes]))


def losses_of(run: Path) -> list[float]:
    """Of the steps 1, 2, 3... without a gap or a repetition, each with its samples."""
    rows: list[dict[str, Any]] = [row for row in read_metrics(run) if "train/loss" in row]
    steps = [row["step"] for row in rows]
    assert steps == list(range(1, len(rows) + 1))
    assert [row["progress/samples"] for row in rows] == [step * NUM_SAMPLES for step in steps]
    return [row["train/loss"] for row in rows]
