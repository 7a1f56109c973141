"""Joins and leaves the process group of a launcher's ranks."""

import datetime
import os
import warnings

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from dist_bert.common.device import (
    DEVICE_VARIABLE,
    device_type,
    has_gpu,
    num_local_ranks,
    set_up_device,
)
from dist_bert.common.errors import UserError
from dist_bert.common.slurm import take_over_ranks
from dist_bert.distributed import rendezvous


def start_distributed(timeout_seconds: float = 1_800.0) -> None:
    """Joins the launcher's (or srun's) group, or makes one of a single process; selects the GPU.

    Args:
        timeout_seconds: longest wait of a rank for the others, in any collective.

    Raises:
        UserError: DeepSpeed has selected an unsupported kind of device, or the rendezvous fails:
            the port is in use, or some ranks do not join.
    """
    take_over_ranks()  # for callers other than launch scripts, which have done so
    init_method = rendezvous.init_method()
    found = get_accelerator().device_name()
    if found != device_type():
        raise UserError(
            f"DeepSpeed would compute on {found}, which is not supported: set {DEVICE_VARIABLE}=cpu"
            " or cuda"
        )
    set_up_device(int(os.environ.get("LOCAL_RANK", "0")), num_local_ranks())
    if not has_gpu():
        # Gloo needs no C++ compilation of 35 s at the first start on every machine, and
        # leaves nothing in /dev/shm when a rank is killed.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed uses former names of torch.distributed.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    timeout = datetime.timedelta(seconds=timeout_seconds)
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):  # of the groups ZeRO will make
        setattr(dist.distributed_c10d, name, timeout)
    backend = "nccl" if has_gpu() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, init_method=init_method)


def leave_distributed() -> None:
    """Leaves the process group, after engines are destroyed; `end_rank` then ends the rank."""
    if dist.is_initialized():
        dist.destroy_process_group()
