"""Two hosts without SLURM: DeepSpeed's launchers over ssh, and a slow network."""

import contextlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from dist_bert.training.metrics import read_metrics
from tests.cluster.conftest import DEEPSPEED, MODEL, RUN, STATE, Cluster, losses_of
from tests.integration.conftest import BIN, data_set, environment, run_script
from tests.support.processes import finish, started

__all__ = ["data_set"]  # a fixture

pytestmark = pytest.mark.cluster
# Of 1.6 million parameters: enough for a time on the wire at 100 Mbit/s that is well above noise.
LINK_MODEL = {
    **MODEL,
    "hidden_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 768,
}
LINK_STEPS = 6
BYTES_PER_SECOND, DELAY_MS = 12.5e6, 10  # each way, between the hosts


@pytest.fixture(scope="module")
def flags(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a run of 14 steps; without --output_dir."""
    folder = tmp_path_factory.mktemp("configs")
    run = {**RUN, "num_train_steps": 14}
    words = ["--shards", str(data_set)]
    for flag, values in (("model", MODEL), ("config", run), ("deepspeed_config", DEEPSPEED)):
        (folder / f"{flag}.json").write_text(json.dumps(values))
        words += [f"--{flag}", str(folder / f"{flag}.json")]
    return words


@pytest.fixture(scope="module")
def expected(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process on one machine."""
    run = tmp_path_factory.mktemp("one") / "run"
    made = run_script(sys.executable, "launch/pretrain.py", *flags, "--output_dir", run)
    assert made.returncode == 0, made.stdout + made.stderr
    return losses_of(run)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["pdsh", "mpich"])
def test_two_hosts_over_ssh(
    hosts: Cluster, flags: list[str], expected: list[float], tmp_path: Path, launcher: str
) -> None:
    """As docs/cluster.md says; the file has what a shell of ssh lacks."""
    (tmp_path / ".deepspeed_env").write_text(
        f"PATH={BIN}:/usr/bin:/bin\nDS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n"
    )
    hostfile = STATE / "hostfile"
    command = [BIN / "deepspeed", "--hostfile", hostfile, "--launcher", launcher]
    command += ["--master_addr", "node1", "launch/pretrain.py", *flags]
    variables = {**environment(), "DS_ENV_FILE": str(tmp_path / ".deepspeed_env")}
    made = run_script(*command, "--output_dir", tmp_path / "run", env=variables)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "48 samples a step = 4 ranks x 2 micro-steps x 6" in made.stdout
    assert losses_of(tmp_path / "run") == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_slow_link_changes_the_time_and_nothing_else(
    hosts: Cluster, data_set: Path, tmp_path: Path
) -> None:
    """By as much as the plan says of its messages, within a factor of two."""
    words = ["--shards", str(data_set), "--num_train_steps", str(LINK_STEPS), "--warmup_steps", "2"]
    words += ["--validation_interval", "0", "--validation_samples", "33", "--log_interval", "1"]
    words += ["--checkpoint_interval", "100"]
    deepspeed = {**DEEPSPEED, "train_batch_size": 24}
    for flag, values in (("model", LINK_MODEL), ("deepspeed_config", deepspeed)):
        (tmp_path / f"{flag}.json").write_text(json.dumps(values))
        words += [f"--{flag}", str(tmp_path / f"{flag}.json")]
    seconds = {}
    for name in ("fast", "slow"):
        if name == "slow":
            hosts.node("delay", "node2", DELAY_MS)
            hosts.node("rate", "node2", f"{BYTES_PER_SECOND * 8:.0f}bit")
        try:
            train_on_both(hosts, [*words, "--output_dir", str(tmp_path / name)])
        finally:
            hosts.node("rate", "node2", "none")
            hosts.node("delay", "node2", 0)
        steps = [row["throughput/step_seconds"] for row in read_metrics(tmp_path / name)[1:-1]]
        seconds[name] = statistics.median(steps)
    rows = [
        [r["train/loss"] for r in read_metrics(tmp_path / n) if "train/loss" in r] for n in seconds
    ]
    assert rows[0] == rows[1] and len(rows[0]) == LINK_STEPS
    made = run_script(
        sys.executable, "launch/plan.py", *words, "--gpus", "4", "--gpus_per_node", "2",
        "--gpu_memory_gib", "4", "--peak_tflops", "0.05", "--link_gbytes_per_second", "100",
        str(BYTES_PER_SECOND / 1e9), "--link_latency_microseconds", str(1_000 * DELAY_MS),
        "--json", tmp_path / "plan.json",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    planned = json.loads((tmp_path / "plan.json").read_text())["plan"]["communication"]["seconds"]
    measured = seconds["slow"] - seconds["fast"]
    print(seconds, planned, measured)
    assert planned / 2 < measured < planned * 2, (seconds, planned)


def train_on_both(hosts: Cluster, words: list[str]) -> None:
    """A run of two ranks on each host, started without a launcher."""
    group = {**environment(), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}
    group |= {"MASTER_ADDR": "node1", "MASTER_PORT": "29611"}
    with contextlib.ExitStack() as stack:
        ranks = []
        for rank in range(4):
            command = [hosts.scripts / "node.sh", "exec", f"node{1 + rank // 2}", BIN / "python"]
            variables = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank % 2)}
            process = started(
                *command, "launch/pretrain.py", *words, env=variables, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            ranks.append(stack.enter_context(process))
        made = [finish(rank) for rank in ranks]
    assert not any(rank.returncode for rank in made), [rank.stdout for rank in made]
