"""Facts about this machine: processor, memory, limits, relevant environment variables."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
from pathlib import Path

from dist_bert.common.redaction import is_secret, redacted

_PACKAGES = ("numpy", "sentencepiece", "webdataset", "torch", "deepspeed")
_CPU_INFO = Path("/proc/cpuinfo")  # of Linux; on other systems, Python knows the name
_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED_V1 = 1 << 60  # cgroup v1 shows "no limit" as a number near 2^63
_VARIABLES = (
    "CUDA_", "DS_", "FI_", "GLOO_", "LD_", "MASTER_", "MKL_NUM_THREADS", "MPI", "NCCL_", "OMP_",
    "OMPI_", "PMI", "PYTHONPATH", "PYTORCH_", "RANK", "LOCAL_RANK", "SLURM_", "TMPDIR", "TORCH_",
    "UCX_", "WORLD_SIZE",
)  # fmt: skip


def machine() -> dict[str, str | int]:
    """Processor, number of cores that this process may use, and versions."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def cpu_model() -> str:
    """The processor's name."""
    text = _CPU_INFO.read_text() if _CPU_INFO.exists() else ""
    name = named_in(text, "model name")
    if not name and text:  # on Arm: lscpu translates the numbers of /proc/cpuinfo
        with contextlib.suppress(OSError):  # not installed
            name = named_in(_output_of("lscpu"), "Model name")
    return name or arm_numbers(text) or platform.processor() or platform.machine()


def named_in(text: str, field: str) -> str:
    """All distinct values of a field `NAME : VALUE`: a processor may have two kinds of cores."""
    lines = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = (value.strip() for name, value in lines if name.strip() == field)
    return " and ".join(dict.fromkeys(value for value in values if value not in ("", "-")))


def arm_numbers(cpuinfo: str) -> str:
    """Arm's numbers from /proc/cpuinfo in place of a name, e.g. "Arm 0x41/0xd0c"; else empty."""
    numbers = [named_in(cpuinfo, f"CPU {name}") for name in ("implementer", "part")]
    return f"Arm {'/'.join(numbers)}" if all(numbers) else ""


def _output_of(command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}  # untranslated field names
    ended = subprocess.run([command], env=environment, capture_output=True, text=True, check=False)
    return ended.stdout


def memory_bytes() -> tuple[int, int]:
    """Total and available memory of the machine."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kib["MemTotal"] << 10, kib["MemAvailable"] << 10


def cgroup_memory_bytes() -> int | None:
    """The lowest memory limit of this process's control groups; None if there is none."""
    limits = [int(text) for text in _cgroup_texts("memory.max") if text != "max"]
    limits += [int(text) for text in _texts(_CGROUP / "memory/memory.limit_in_bytes")]
    return min((limit for limit in limits if limit < _UNLIMITED_V1), default=None)


def cgroup_cores() -> float | None:
    """Number of cores whose time the control groups allow; None if there is no limit."""
    quotas = [text.split() for text in _cgroup_texts("cpu.max")]
    old = (_texts(_CGROUP / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    quotas += [[quota, period] for quota, period in zip(*old, strict=True) if quota != "-1"]
    return min((int(q) / int(p) for q, p in quotas if q != "max"), default=None)


def open_files() -> tuple[int, int]:
    """Soft and hard limit of open files of a process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def shared_memory_bytes() -> int:
    """Size of /dev/shm."""
    return shutil.disk_usage("/dev/shm").total


def driver_version() -> str:
    """Version of NVIDIA's driver; empty without one."""
    first, *_ = *_texts(Path("/proc/driver/nvidia/version")), ""
    numbers = (word for word in first.split() if word[0].isdigit() and "." in word)
    return next(numbers, "unknown") if first else ""


def _cgroup_texts(name: str) -> list[str]:
    """Contents of a cgroup v2 file for this process's group and all its parents."""
    own = [line[3:] for line in _texts(Path("/proc/self/cgroup")) if line.startswith("0::")]
    folder = Path(os.path.normpath(f"{_CGROUP}{own[0]}" if own else _CGROUP))
    return [
        text
        for path in (folder, *folder.parents)
        if path.is_relative_to(_CGROUP)
        for text in _texts(path / name)
    ]


def _texts(path: Path) -> list[str]:
    """The lines of a small file; none if it does not exist."""
    return path.read_text().splitlines() if path.exists() else []


def relevant_variables() -> dict[str, str]:
    """Name -> value, sorted by name; without the secrets of `dist_bert.common.redaction`."""
    return {
        name: redacted(os.environ[name])
        for name in sorted(os.environ)
        if name.startswith(_VARIABLES) and not is_secret(name)
    }
