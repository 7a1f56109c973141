"""Selects the device of this process: the only place that decides it.

A GPU or the CPU (`device_type`), a rank's share of the cores (`set_up_device`), and whether the CPU
has bf16 instructions (`has_bf16_instructions`). torch is imported only where needed, so that
`--dry_run` and the doctor work without it. Not for: how matrix products are computed
(`dist_bert.model.products`).
"""

import ctypes
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_bert.common.errors import UserError
from dist_bert.common.machine import cgroup_memory_bytes, cpu_model, memory_bytes

if TYPE_CHECKING:
    import torch

DEVICE_VARIABLE = "DS_ACCELERATOR"  # DeepSpeed's own, so both always agree
_DEVICE_TYPES = ("cpu", "cuda")
_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is older
_CPU_INFO = Path("/proc/cpuinfo")
_DEVICE_FILES = Path("/dev")
_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")  # x86 twice, Arm
# oneDNN, which computes torch's products on CPU, can be limited to older instructions. Limits with
# these in their name allow bf16: https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_BF16_ISAS = ("BF16", "FP16", "AMX", "AVX10", "DEFAULT", "ALL")
# https://docs.nvidia.com/cuda/cublas/#results-reproducibility
_CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_VALUES = (":4096:8", ":16:8")  # buffers of KiB, and how many
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def device_type() -> str:
    """`cuda` or `cpu`: the value of DS_ACCELERATOR, else a GPU if torch sees one.

    Raises:
        UserError: DS_ACCELERATOR names another device, or a GPU and there is none.
    """
    import torch

    asked = os.environ.get(DEVICE_VARIABLE, "")
    has_gpu = torch.cuda.is_available()
    if asked and asked not in _DEVICE_TYPES:
        raise UserError(
            f"{DEVICE_VARIABLE} = {asked}: must be one of {', '.join(_DEVICE_TYPES)}, or unset for"
            " the GPU if there is one"
        )
    if asked == "cuda" and not has_gpu:
        raise UserError(
            f"{DEVICE_VARIABLE} = cuda: torch sees no GPU here; unset it to use the CPU, or find"
            " the cause with `python launch/doctor.py`"
        )
    return asked or ("cuda" if has_gpu else "cpu")


def num_gpu_files() -> int:
    """GPUs of this machine by their device files: torch takes seconds to say."""
    return len(list(_DEVICE_FILES.glob("nvidia[0-9]*")))


def num_wanted_gpus() -> int:
    """GPUs that a run here would use, without torch: none where DS_ACCELERATOR asks for the CPU."""
    return 0 if os.environ.get(DEVICE_VARIABLE) == "cpu" else num_gpu_files()


def set_up_allocator() -> None:
    """Lets the GPU's memory grow in segments, unless the environment says how to allocate.

    The number of tokens changes from one micro-step to the next, which leaves memory in pieces of
    a wrong size. For a process that has not imported torch: it reads the variable then.
    """
    if num_wanted_gpus() and not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ[_ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"


def set_up_products(precision: str) -> None:
    """Lets a GPU round float32 operands of matrix products to TF32, in a run in float32.

    Args:
        precision: of the DeepSpeed JSON: bf16, fp16 or fp32.
    """
    import torch

    if precision == "fp32" and has_gpu():
        torch.set_float32_matmul_precision("high")


def has_gpu() -> bool:
    """Whether this process computes on a GPU."""
    return device_type() == "cuda"


def run_device() -> "torch.device":
    """The device of this process; of several GPUs, the one that `set_up_device` selected."""
    import torch

    return torch.device(device_type())


def set_up_device(local_rank: int, local_size: int) -> None:
    """Selects this rank's GPU, or its share of the cores.

    Args:
        local_rank: number of this rank on its host.
        local_size: ranks on its host.

    Raises:
        UserError: the host has fewer GPUs.
    """
    import torch

    if has_gpu():
        num_gpus = torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise UserError(
                f"rank {local_rank} of this host has no GPU: torch sees {num_gpus} here; start at"
                f" most {num_gpus} ranks per host (deepspeed --num_gpus {num_gpus})"
            )
        torch.cuda.set_device(local_rank)
        return
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, num_cores() // local_size))
    _keep_freed_memory()


def compute_deterministically() -> None:
    """Lets every operation of this process sum in one order, and raise where it cannot.

    FlashAttention's backward pass, cuBLAS and gradients of gathered rows have another order each
    time on a GPU otherwise. Call it before anything uses the GPU.

    Raises:
        UserError: the environment asks cuBLAS for something else.
    """
    import torch

    asked = os.environ.setdefault(_CUBLAS_VARIABLE, _CUBLAS_VALUES[0])
    if asked not in _CUBLAS_VALUES:
        raise UserError(
            f"deterministic = True: {_CUBLAS_VARIABLE} = {asked}, with which cuBLAS does not sum in"
            f" one order; unset it, or set it to one of {', '.join(_CUBLAS_VALUES)}"
        )
    torch.use_deterministic_algorithms(True)
    # Writes NaN to all new memory, to find reads of it: time that no result needs.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def rank_memory_bytes() -> int:
    """Memory of this rank's GPU, or its share of what the machine or its control group allows."""
    import torch

    if has_gpu():
        return torch.cuda.mem_get_info()[1]
    total, _ = memory_bytes()
    return min(total, cgroup_memory_bytes() or total) // num_local_ranks()


def num_local_ranks() -> int:
    """Ranks on this host, as the launcher says."""
    return int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))


def num_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _keep_freed_memory() -> None:
    """Lets glibc keep freed memory instead of returning it after every large tensor.

    Otherwise the kernel zeros new pages: 3 to 20 % of a step on CPU. Other C libraries lack the
    function and are not changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, -1)


@functools.cache
def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bf16 matrices faster than float32 ones.

    Decided by its flags and oneDNN's limit, not by measurement: so a run computes in the same way
    after every resume, even on a busy machine. Without the instructions, oneDNN's bf16 products
    take 2 to 90 times as long as float32 ones (docs/performance.md).
    """
    return bool(bf16_flags()) and _onednn_may_use_bf16()


def bf16_flags() -> list[str]:
    """The processor's flags for bf16 products; none if the system does not list flags."""
    found = cpu_flags(_CPU_INFO.read_text()) if _CPU_INFO.exists() else set()
    return [flag for flag in _BF16_FLAGS if flag in found]


def cpu_flags(cpuinfo: str) -> set[str]:
    """Flags of the processor, called flags in /proc/cpuinfo on x86 and Features on Arm."""
    return {
        flag
        for line in cpuinfo.splitlines()
        if line.startswith(("flags", "Features"))
        for flag in line.split(":", 1)[1].split()
    }


def _onednn_may_use_bf16() -> bool:
    limits = [os.environ[name].upper() for name in _ISA_VARIABLES if os.environ.get(name)]
    return all(any(isa in limit for isa in _BF16_ISAS) for limit in limits[:1])


def describe_device(device: "torch.device", precision: str) -> dict[str, Any]:
    """Facts about a run's computation: `device`, `threads` of this process, `arithmetic`."""
    import torch

    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else f"the CPU ({cpu_model()})",
        "threads": 1 if is_gpu else torch.get_num_threads(),
        "arithmetic": arithmetic(precision, device.type),
    }


def arithmetic(precision: str, device: str) -> str:
    """How a run of a precision computes, in words.

    Args:
        precision: of the DeepSpeed JSON: bf16, fp16 or fp32.
        device: `cuda` or `cpu`.
    """
    if precision == "bf16" and device == "cpu" and not has_bf16_instructions():
        if bf16_flags():
            return "bf16 by float32 products: oneDNN may not use this CPU's bf16 instructions"
        return "bf16 by float32 products: this CPU has no bf16 instructions"
    if precision == "fp32" and device == "cuda":
        return "fp32 with TF32 products"  # of `set_up_products`
    return precision
