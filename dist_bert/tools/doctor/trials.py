"""What must work is tried, in processes of its own with a time limit: they may crash or hang.

Each trial returns what was seen, what is wrong (empty if nothing is) and the remedy.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from dist_bert.common.machine import driver_version
from dist_bert.distributed.rendezvous import free_port

TIME_LIMIT_SECONDS = 60.0  # a cold disk takes half a minute to give torch
_NO_ANSWER = "no answer within"
_INSTALL = "pip install -c constraints.txt -e . in the repository, with this python"
_MOST_TIMES_SLOWER = 2.0  # bf16 against float32; a busy machine measures either too low
Outcome = tuple[str, str, str]

_IMPORT = """
import importlib, json, sys
problems = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        problems[name] = f"{type(error).__name__}: {error}"
print(json.dumps(problems))
"""
_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
    "gpus": [f"{g.name} {g.total_memory / 2**30:.0f} GiB, capability {g.major}.{g.minor}"
             + ("" if g.major >= 8 else ", no bf16") for g in gpus],
}))
"""
_MPI = """
import json
from mpi4py import MPI
ranks = MPI.COMM_WORLD.allgather(MPI.COMM_WORLD.Get_rank())
if MPI.COMM_WORLD.Get_rank() == 0:
    library = " ".join(MPI.Get_library_version().split("\\n")[0].strip("\\0").split())
    print(json.dumps({"ranks": ranks, "library": library}))
"""
_PRODUCTS = """
import json, torch
from dist_bert.common.device import device_type, has_bf16_instructions, run_device
from dist_bert.model.flops import measured_matmul_flops
device = run_device()
print(json.dumps({
    "device": "a GPU" if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
    "converts": device.type == "cpu" and not has_bf16_instructions(),
    "fp32": measured_matmul_flops(device, torch.float32, (256, 512, 1024)),
    "bf16": measured_matmul_flops(device, torch.bfloat16, (256, 512, 1024)),
}))
"""
_GLOO = """
import datetime, sys, torch, torch.distributed as dist
from dist_bert.common.cli import end_rank
dist.init_process_group("gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2,
                        timeout=datetime.timedelta(seconds=30))
total = torch.tensor([1.0 + int(sys.argv[2])])
dist.all_reduce(total)
assert total.item() == 3.0, total
dist.destroy_process_group()
end_rank(0)
"""


def try_imports(names: Sequence[str]) -> Outcome:
    """Imports packages one by one."""
    seconds, answer = _python(_IMPORT, *names)
    if isinstance(answer, str):
        return f"{', '.join(names)}: failed", answer, _INSTALL
    if answer:
        told = "; ".join(f"{name}: {problem}" for name, problem in answer.items())
        return f"{', '.join(answer)}: failed", told, _INSTALL
    return f"{', '.join(names)}: {seconds:.1f} s", "", ""


def try_torch() -> Outcome:
    """Imports torch and asks it for GPUs."""
    seconds, answer = _python(_TORCH)
    if isinstance(answer, str):
        return "failed", answer, _INSTALL
    gpus = ", ".join(answer["gpus"]) or "no GPU"
    driver = driver_version()
    cuda = f", CUDA {answer['cuda']}, NCCL {answer['nccl']}, driver {driver}" if driver else ""
    seen = f"{answer['version']}{cuda}, {gpus}: {seconds:.1f} s"
    if driver and not answer["gpus"]:
        return seen, "there are GPUs, but torch sees none", "install a torch for CUDA: pytorch.org"
    return seen, "", ""


def try_products() -> Outcome:
    """Measures matrix products in the types that runs compute in."""
    seconds, answer = _python(_PRODUCTS)
    if isinstance(answer, str):
        return "failed", answer, _INSTALL
    fp32, bf16 = answer["fp32"] / 1e12, answer["bf16"] / 1e12
    native = f"{bf16:.3g} in bf16"
    if answer["converts"]:
        native += " (emulated; runs use float32 products instead)"
    seen = f"{fp32:.3g} TFLOP/s in float32, {native}, on {answer['device']}: {seconds:.1f} s"
    if not answer["converts"] and bf16 < fp32 / _MOST_TIMES_SLOWER:
        return (
            seen,
            f"products in bf16 are {fp32 / bf16:.0f} times slower than in float32, though the"
            " processor has instructions for them",
            "train in float32: configs/zero2_fp32.json",
        )
    return seen, "", ""


def try_deepspeed() -> Outcome:
    """Imports deepspeed, and finds its launcher."""
    seconds, answer = _python(_IMPORT, "deepspeed")
    problem = answer if isinstance(answer, str) else answer.get("deepspeed", "")
    if problem:
        return "failed", problem, _INSTALL
    if shutil.which("deepspeed") is None:
        return "no launcher", "the command deepspeed is not on PATH", _activate()
    return f"imported in {seconds:.1f} s", "", ""


def try_mpi() -> Outcome:
    """Lets two ranks of mpiexec find each other."""
    launcher = shutil.which("mpiexec")
    if launcher is None:
        return "no mpiexec", "the command mpiexec is not on PATH", _activate("or pip install mpich")
    seconds, answer = _answer([launcher, "-n", "2", sys.executable, "-m", "mpi4py", "-c", _MPI])
    if isinstance(answer, str):
        return f"{launcher}: failed", answer, "pip install mpich mpi4py, or load the MPI module"
    seen = f"{launcher}, {answer['library']}: {seconds:.1f} s"
    if answer["ranks"] != [0, 1]:
        return (
            seen,
            f"two ranks found {len(answer['ranks'])}: mpiexec and mpi4py use different libraries",
            "put the mpiexec of the library named here first on PATH",
        )
    return seen, "", ""


def try_gloo() -> Outcome:
    """Adds up a number over two processes of torch.distributed."""
    meeting = f"tcp://127.0.0.1:{free_port()}"
    start = time.monotonic()
    ranks = [_start([sys.executable, "-c", _GLOO, meeting, str(rank)]) for rank in range(2)]
    problems = [_end(rank, start + TIME_LIMIT_SECONDS)[1] for rank in ranks]
    seconds = time.monotonic() - start
    if any(problems):
        return (
            "failed",
            next(filter(None, problems)),
            "if it names an address: export GLOO_SOCKET_IFNAME=lo (on one host), or the"
            " interface that joins the hosts",
        )
    return f"all_reduce: {seconds:.1f} s", "", ""


def recipe_needs(flags: Sequence[str]) -> dict[str, Any] | str:
    """What a recipe needs (`dist_bert.tools.doctor.recipe_needs`), or why that is unknown."""
    command = [sys.executable, "-m", "dist_bert.tools.doctor.recipe_needs", *flags]
    return _answer(command)[1]


def remedy_of(problem: str, remedy: str) -> str:
    """What to do about a trial's problem: a busy machine may be all that is wrong."""
    if problem.startswith(_NO_ANSWER):
        return f"try again when the machine is less busy; if that does not help: {remedy}"
    return remedy


def _python(program: str, *arguments: str) -> tuple[float, dict[str, Any] | str]:
    return _answer([sys.executable, "-c", program, *arguments])


def _answer(command: Sequence[str]) -> tuple[float, dict[str, Any] | str]:
    """Seconds, and the JSON of the last line that a command prints, or how it failed."""
    start = time.monotonic()
    output, problem = _end(_start(command), start + TIME_LIMIT_SECONDS)
    seconds = time.monotonic() - start
    if problem:
        return seconds, problem
    return seconds, json.loads(output.strip().rsplit("\n", 1)[-1])


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONSAFEPATH": "1"},  # no module of the current folder
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that all it started can be killed
    )


def _end(process: subprocess.Popen[str], deadline: float) -> tuple[str, str]:
    """What a process printed, and how it failed, by its last words; kills it at the deadline."""
    try:
        output, said = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "", f"{_NO_ANSWER} {TIME_LIMIT_SECONDS:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode == 0:
        return output, ""
    last = next((line for line in reversed((said or output).splitlines()) if line.strip()), "")
    if process.returncode < 0:
        last = f"ended by {signal.Signals(-process.returncode).name} {last}".rstrip()
    return output, last or f"ended with exit code {process.returncode}"


def _activate(other: str = "") -> str:
    bin_dir = os.path.dirname(sys.executable)
    return f"activate the environment (. {bin_dir}/activate) {other}".rstrip()
