"""What this machine has, what would not work on it, and what to do about that.

Every check stands for itself: one that fails is a finding, not the end. The standard library alone
is imported here; torch and the others only by processes of their own (`trials.py`), which may crash
or hang. Of a run it knows what its recipe needs of this machine. Not for: trying a run's own steps
(`launch/pretrain.py --check`).
"""

import functools
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dist_bert.common.device import (
    DEVICE_VARIABLE,
    arithmetic,
    bf16_flags,
    num_cores,
    num_gpu_files,
    num_wanted_gpus,
)
from dist_bert.common.machine import (
    cgroup_cores,
    cgroup_memory_bytes,
    cpu_model,
    memory_bytes,
    open_files,
    relevant_variables,
    shared_memory_bytes,
)
from dist_bert.tools.doctor.findings import Finding, judged
from dist_bert.tools.doctor.recipe import recipe_findings
from dist_bert.tools.doctor.trials import (
    remedy_of,
    try_deepspeed,
    try_gloo,
    try_imports,
    try_mpi,
    try_products,
    try_torch,
)
from dist_bert.training.deepspeed_release import REMEDY, fault_of

PACKAGES = (
    "torch",
    "deepspeed",
    "numpy",
    "safetensors",
    "sentencepiece",
    "mpi4py",
    "mpich",
    "tensorboard",
    "webdataset",
)
OPTIONAL_PACKAGES = {
    "zstandard": "corpora packed by zstd",
    "mwparserfromhell": "MediaWiki dumps",
    "warcio": "Common Crawl WET",
    "pyarrow": "parquet",
    "ftfy": "--repair_unicode",
    "matplotlib": "pictures",
    "plotly": "launch/report.py",
}
LEAST_DISK_GIB = 2.0  # a checkpoint of BERT-base is 1.3 GB, and its successor is written beside it
LEAST_MEMORY_GIB = 4.0  # two ranks of the quickstart
LEAST_SHARED_MEMORY_MIB = 64  # what Docker gives by default; NCCL between GPUs wants far more
LEAST_OPEN_FILES = 1_024  # 256 mapped shards of either split, and what libraries open


def examine(output_dir: str, recipe_flags: Sequence[str] = ()) -> list[Finding]:
    """All findings, the trials running side by side; takes 5 to 10 seconds.

    Args:
        output_dir: where runs are to be written; need not exist.
        recipe_flags: of launch/pretrain.py, to look at a recipe too.
    """
    at_once: list[Callable[[], Iterator[Finding]]] = [
        _versions,
        _devices,
        _limits,
        lambda: _disks(output_dir),
        _tools,
        _environment,
    ]
    with ThreadPoolExecutor() as pool:
        trials = [
            pool.submit(_isolated, name, functools.partial(_trial, name, run))
            for name, run in _TRIALS.items()
        ]
        if recipe_flags:
            free_bytes = shutil.disk_usage(_existing(output_dir)).free
            look = functools.partial(recipe_findings, recipe_flags, output_dir, free_bytes)
            trials.append(pool.submit(_isolated, "recipe", look))
        facts = [finding for check in at_once for finding in _isolated(check.__name__, check)]
        return facts + [finding for trial in trials for finding in trial.result()]


def _isolated(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a check finds; if it fails itself, that, and what it had found before."""
    found = []
    try:
        for finding in check():
            found.append(finding)
    except Exception as error:
        found.append(
            Finding(
                "checks that failed",
                name.strip("_"),
                f"{type(error).__name__}: {error}",
                problem="could not be looked at",
                remedy="report it, with this output",
            )
        )
    return found


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "python", f"{platform.python_version()} at {sys.executable}")
    for package in PACKAGES:
        version = _version(package)
        fault = fault_of(version) if package == "deepspeed" else ""
        yield Finding(
            "versions",
            package,
            version or "not installed",  # the import is tried below
            fault,
            REMEDY if fault else "",
            is_fatal=bool(fault),
        )
    for package, use in OPTIONAL_PACKAGES.items():
        version = _version(package)
        yield Finding("versions", package, version or f"not installed (optional: {use})")
    yield Finding("versions", "system", f"{_system_name()}, kernel {platform.release()}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _system_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _devices() -> Iterator[Finding]:
    yield Finding("devices", "processor", cpu_model())
    cores, quota = num_cores(), cgroup_cores() or float("inf")
    yield judged(
        Finding(
            "devices",
            "cores",
            f"{cores} of {os.cpu_count()} allowed"
            + (f", and the time of {quota:g} by the cgroup" if quota < float("inf") else ""),
        ),
        quota < cores,
        f"{cores} cores share the time of {quota:g}",
        "raise the container's CPU limit",
    )
    flags = ", ".join(bf16_flags()) or "no instructions"
    value = f"{flags}; a bf16 run uses {arithmetic('bf16', 'cpu')}"
    yield Finding("devices", "bf16 on the processor", value)
    unused = "" if num_wanted_gpus() or not num_gpu_files() else f"; {DEVICE_VARIABLE} = cpu"
    yield Finding("devices", "GPU device files", f"{num_gpu_files() or 'none'}{unused}")


def _limits() -> Iterator[Finding]:
    gib = 2**30
    total, free = memory_bytes()
    limit = cgroup_memory_bytes()
    may_use = total if limit is None else min(total, limit)
    cgroup = "" if limit is None else f"; the cgroup allows {limit / gib:.1f}"
    yield judged(
        Finding("limits", "memory", f"{total / gib:.1f} GiB, {free / gib:.1f} available{cgroup}"),
        may_use < LEAST_MEMORY_GIB * gib,
        f"{may_use / gib:.1f} GiB are less than two small ranks take",
        "raise the container's limit, or train on one rank: deepspeed --num_gpus 1",
    )
    shared = shared_memory_bytes() / 2**20
    yield judged(
        Finding("limits", "shared memory", f"{shared:,.0f} MiB in /dev/shm"),
        shared < LEAST_SHARED_MEMORY_MIB,
        f"less than {LEAST_SHARED_MEMORY_MIB} MiB: MPI and NCCL exchange through it",
        "docker run --shm-size 8g, or mount a larger /dev/shm",
    )
    soft, hard = open_files()
    yield judged(
        Finding("limits", "open files", f"{soft:,} (at most {hard:,})"),
        soft < LEAST_OPEN_FILES,
        "mapped shards take up to 512, the store of ranks and libraries the rest",
        f"ulimit -n {min(hard, 65_536)}",
    )


def _disks(output_dir: str) -> Iterator[Finding]:
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as error:  # no folder can be written to
        yield Finding(
            "disks", "$TMPDIR", "none", str(error), "export TMPDIR=a folder with space", True
        )
        temporary = ""
    asked = os.environ.get("TMPDIR", "")
    if temporary and asked and os.path.realpath(asked) != os.path.realpath(temporary):
        yield Finding(
            "disks",
            "$TMPDIR",
            asked,
            f"nothing can be written there; {temporary} is used",
            "make it, or free some space",
        )
    for name, folder in (
        ("current folder", os.getcwd()),
        ("temporary files", temporary),
        (f"--output_dir {output_dir}", _existing(output_dir)),
    ):
        if folder:
            yield _disk(name, folder)


def _disk(name: str, folder: str) -> Finding:
    free = shutil.disk_usage(folder).free / 2**30
    value = f"{free:,.1f} GiB free on the disk of {folder}"
    if not os.access(folder, os.W_OK):
        is_fatal = name != "current folder"  # where nothing need be written
        return Finding("disks", name, value, "is not writable", "give another folder", is_fatal)
    if free < LEAST_DISK_GIB:
        return Finding(
            "disks",
            name,
            value,
            f"less than {LEAST_DISK_GIB:g} GiB: two checkpoints of BERT-base take more",
            "free some space, or name another folder (--output_dir, TMPDIR)",
        )
    return Finding("disks", name, value)


def _existing(folder: str) -> str:
    """The folder, or the nearest one above it that is there."""
    path = Path(folder).resolve()
    return str(next(p for p in (path, *path.parents) if p.is_dir()))


def _tools() -> Iterator[Finding]:
    needed_by = {
        "c++": "DeepSpeed's own CPU Adam (without torch_adam) and torch.compile",
        "ninja": "the same",
        "nvcc": "DeepSpeed's own GPU optimizers (FusedAdam)",
        "git": "the commit that a run notes",
    }
    for tool, use in needed_by.items():
        yield Finding("tools", tool, shutil.which(tool) or f"not found; needed only by {use}")


def _environment() -> Iterator[Finding]:
    for name, value in relevant_variables().items():
        problem, remedy = _environment_problem(name)
        yield Finding("environment", name, value, problem, remedy)


def _environment_problem(name: str) -> tuple[str, str]:
    """What is wrong with a variable, and the remedy; both empty if nothing is."""
    value = os.environ[name]
    if value != {"RANK": "0", "WORLD_SIZE": "1"}.get(name, value):
        return (
            "is set though no launcher has started this: a script would wait for other ranks",
            f"unset {name}",
        )
    if name == "MPI4PY_MPIABI" and not value:
        return ("is empty: from mpi4py import MPI fails", f"unset {name}")
    if name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        here = [interface for _, interface in socket.if_nameindex()]
        asked = value.lstrip("=^").split(",")
        if not value.startswith("^") and not any(
            i == a or (name.startswith("NCCL") and i.startswith(a)) for a in asked for i in here
        ):
            return (f"there is no such network interface, only {', '.join(here)}", f"unset {name}")
    return "", ""


def _trial(name: str, run: Callable[[], tuple[str, str, str]]) -> Iterator[Finding]:
    value, problem, remedy = run()
    remedy = remedy_of(problem, remedy)
    yield Finding("trials", name, value, problem, remedy, is_fatal=bool(problem))


_TRIALS: dict[str, Callable[[], tuple[str, str, str]]] = {
    "imports": lambda: try_imports(
        ("numpy", "safetensors", "sentencepiece", "tensorboard", "webdataset")
    ),
    "torch": try_torch,
    "deepspeed": try_deepspeed,
    "matrix products": try_products,
    "MPI, 2 ranks": try_mpi,
    "gloo, 2 ranks": try_gloo,
}
