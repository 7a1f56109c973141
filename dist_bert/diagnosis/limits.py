"""What the system lets this process have: memory, cores, files, GPUs. Linux alone knows it all."""

import os
import resource
import shutil
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED_V1 = 1 << 60  # version 1 writes a number near 2^63 for "no limit"


def memory_bytes() -> tuple[int, int]:
    """Memory of the machine, and what of it is available."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kib["MemTotal"] << 10, kib["MemAvailable"] << 10


def cgroup_memory_bytes() -> int | None:
    """The least memory limit of this process's control groups; None if there is none."""
    limits = [int(text) for text in _cgroup_texts("memory.max") if text != "max"]
    limits += [int(text) for text in _texts(_CGROUP / "memory/memory.limit_in_bytes")]
    return min((limit for limit in limits if limit < _UNLIMITED_V1), default=None)


def cgroup_cores() -> float | None:
    """Of how many cores the control groups allow the time; None if of all."""
    quotas = [text.split() for text in _cgroup_texts("cpu.max")]
    old = (_texts(_CGROUP / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    quotas += [[quota, period] for quota, period in zip(*old, strict=True) if quota != "-1"]
    return min((int(q) / int(p) for q, p in quotas if q != "max"), default=None)


def open_files() -> tuple[int, int]:
    """How many files a process may have open, and to what it may raise that."""
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
    """A file of version 2, of this process's group and all above it."""
    own = [line[3:] for line in _texts(Path("/proc/self/cgroup")) if line.startswith("0::")]
    folder = Path(os.path.normpath(f"{_CGROUP}{own[0]}" if own else _CGROUP))
    return [
        text
        for path in (folder, *folder.parents)
        if path.is_relative_to(_CGROUP)
        for text in _texts(path / name)
    ]


def _texts(path: Path) -> list[str]:
    """The lines of a small file; none where it is not there."""
    return path.read_text().splitlines() if path.exists() else []
