"""Ranks that srun started itself, one task a rank: SLURM's variables under the launchers' names.

Only tasks of a step of several tasks are ranks. A script that is started in a batch script or in
the shell of an allocation, without srun, stays a single process: what SLURM sets there describes
the allocation. Where a launcher (`deepspeed`, `torchrun`) has set RANK, its word counts. No torch.
"""

import os
import re
from collections.abc import MutableMapping

from dist_bert.common.errors import UserError

_NO_DEVICES = "NoDevFiles"  # what some versions say to a job without GPUs
_FIRST_PORT, _NUM_PORTS = 20_000, 12_000  # below those that Linux gives out by itself


def num_tasks(environment: MutableMapping[str, str] = os.environ) -> int:
    """Tasks of the step of srun that this process belongs to; 1 outside of any."""
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1"))


def take_over_ranks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_SIZE, MASTER_ADDR and MASTER_PORT of a task.

    A MASTER_ADDR or MASTER_PORT that is set already is kept. The port follows from job and step,
    so that two of them on one host do not meet.

    Args:
        environment: of this process; changed.

    Raises:
        UserError: a node has several tasks, and they see one GPU each.
    """
    if "RANK" in environment or num_tasks(environment) == 1:
        return
    node = int(environment["SLURM_NODEID"])
    local_size = tasks_of_nodes(environment["SLURM_STEP_TASKS_PER_NODE"])[node]
    step = 31 * int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])
    environment.setdefault("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"]))
    environment.setdefault("MASTER_PORT", str(_FIRST_PORT + step % _NUM_PORTS))
    environment.update(
        RANK=environment["SLURM_PROCID"],
        LOCAL_RANK=environment["SLURM_LOCALID"],
        WORLD_SIZE=environment["SLURM_STEP_NUM_TASKS"],
        LOCAL_SIZE=str(local_size),
    )
    devices = environment.get("CUDA_VISIBLE_DEVICES", "")
    if local_size > 1 and devices not in ("", _NO_DEVICES) and "," not in devices:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES = {devices}: each of the {local_size} tasks of a node sees a"
            " single GPU, and task I would take number I: give all of them all GPUs of the node,"
            " with --gpus-per-node or --gres in place of --gpus-per-task or --gpu-bind"
        )


def first_host(nodes: str) -> str:
    """The first of a list of hosts as SLURM writes it: `rack1-node03` of `rack[1-2]-node[03,7],x`.

    Without `scontrol`, which containers lack.
    """
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", nodes).split(",")[0]


def tasks_of_nodes(counts: str) -> list[int]:
    """Tasks of every node: [2, 2, 1] of `2(x2),1`."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, times in found for _ in range(int(times or 1))]
