"""Tasks of srun become ranks, and nothing else inside an allocation does."""

import sys
from pathlib import Path

import pytest

from dist_bert.common.errors import UserError
from dist_bert.common.slurm import first_host, take_over_ranks, tasks_of_nodes
from tests.integration.conftest import assert_one_line_error, environment
from tests.support.processes import run_script

ROOT = Path(__file__).parents[3]
# Task 3 of `srun -n 5` on two nodes, three and two; values as SLURM 22.05 writes them.
TASK = {
    "SLURM_JOB_ID": "1207",
    "SLURM_STEP_ID": "4",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "3,2",
    "SLURM_STEP_NODELIST": "node[07,11]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "5",
}
# What a batch script sees, and a program that it starts without srun.
BATCH = {
    "SLURM_JOB_ID": "1207",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "node[07,11]",
    "SLURM_TASKS_PER_NODE": "3,2",
}
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_a_task_of_srun_is_a_rank() -> None:
    task = dict(TASK)
    take_over_ranks(task)
    port = str(20_000 + (31 * 1207 + 4) % 12_000)
    assert [task[name] for name in NAMES] == ["3", "0", "5", "2", "node07", port]


def test_what_is_set_already_counts() -> None:
    task = {**TASK, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    take_over_ranks(task)
    assert (task["MASTER_ADDR"], task["MASTER_PORT"], task["RANK"]) == ("10.0.0.1", "29500", "3")
    launched = {**TASK, "RANK": "9"}
    take_over_ranks(launched)
    assert launched == {**TASK, "RANK": "9"}, "a launcher's word"


@pytest.mark.parametrize(
    "variables", [{}, BATCH, {**BATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}]
)
def test_without_srun_a_script_stays_a_single_process(variables: dict[str, str]) -> None:
    """Outside of SLURM, in a batch script, in the interactive step of `salloc`."""
    changed = dict(variables)
    take_over_ranks(changed)
    assert changed == variables


def test_one_gpu_for_each_task_is_refused() -> None:
    for devices in ("0,1", "", "NoDevFiles"):
        take_over_ranks({**TASK, "CUDA_VISIBLE_DEVICES": devices})
    alone = {"SLURM_STEP_TASKS_PER_NODE": "4,1", "CUDA_VISIBLE_DEVICES": "0"}
    take_over_ranks({**TASK, **alone})
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES = 1: each of the 2 tasks"):
        take_over_ranks({**TASK, "CUDA_VISIBLE_DEVICES": "1"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("solo", "solo"),
        ("node[1-2]", "node1"),
        ("gpu[003,007-012]", "gpu003"),
        ("rack[2-3]n[08-09],other[1-7]", "rack2n08"),
        ("alpha,beta[1-2]", "alpha"),
        ("10.0.0.7,10.0.0.8", "10.0.0.7"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_tasks_of_nodes() -> None:
    assert tasks_of_nodes("8") == [8]
    assert tasks_of_nodes("2(x3),1,4(x2)") == [2, 2, 2, 1, 4, 4]


def test_a_mistake_under_srun_is_told_once_and_a_world_of_one_is_refused(tmp_path: Path) -> None:
    """By the scripts as they are started; MPI finds no peers where srun's --mpi is not its own."""
    script = str(ROOT / "launch/prepare_shards.py")
    command = [sys.executable, "-m", "mpi4py", script, "--tokenizer", "none", "--output_dir", "out"]
    for task, told in (("0", True), ("3", False)):
        variables = {**environment(), **TASK, "SLURM_PROCID": task}
        made = run_script(*command, cwd=tmp_path, env=variables)
        if told:
            assert_one_line_error(made, "srun started 5 tasks, and MPI finds 1")
        assert made.returncode == 2 and bool(made.stderr) == told
    assert not (tmp_path / "out").exists()
