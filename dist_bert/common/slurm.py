"""Sets the launchers' variables from SLURM's, for ranks started directly by srun, one per task.

Only tasks of a step with several tasks are ranks. A script started without srun, in a batch script
or the shell of an allocation, stays a single process: SLURM's variables there describe the
allocation. If a launcher (`deepspeed`, `torchrun`) has set RANK, that takes precedence. No torch.
"""

import os
import re
from collections.abc import MutableMapping

from dist_bert.common.errors import UserError

_NO_DEVICES = "NoDevFiles"  # set by some versions for a job without GPUs
_FIRST_PORT, _NUM_PORTS = 20_000, 12_000  # below Linux's ephemeral ports


def num_tasks(environment: MutableMapping[str, str] = os.environ) -> int:
    """Number of tasks of the srun step that this process belongs to; 1 outside of any."""
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1"))


def take_over_ranks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_SIZE, MASTER_ADDR and MASTER_PORT of a task.

    An existing MASTER_ADDR or MASTER_PORT is kept. The port is computed from job and step, so that
    two of them on one host do not collide.

    Args:
        environment: of this process; modified.

    Raises:
        UserError: a node has several tasks that see one GPU each.
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
            " single GPU, but task I would use GPU number I: give every task all GPUs of the node,"
            " with --gpus-per-node or --gres instead of --gpus-per-task or --gpu-bind"
        )


def first_host(nodes: str) -> str:
    """The first of a list of hosts in SLURM's format: `rack1-node03` of `rack[1-2]-node[03,7],x`.

    Does not use `scontrol`, which containers lack.
    """
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", nodes).split(",")[0]


def tasks_of_nodes(counts: str) -> list[int]:
    """Number of tasks of each node: [2, 2, 1] for `2(x2),1`."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, times in found for _ in range(int(times or 1))]
