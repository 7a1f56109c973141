"""Which device a process computes on, and by which arithmetic."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dist_bert.common import cli
from dist_bert.common import device as device_module
from dist_bert.common.device import (
    arithmetic,
    bf16_flags,
    compute_deterministically,
    device_type,
    has_bf16_instructions,
    has_gpu,
    num_gpu_files,
    num_wanted_gpus,
    run_device,
    set_up_allocator,
    set_up_device,
    set_up_products,
)
from dist_bert.common.errors import UserError

SERVER = "flags\t\t: fpu sse avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n"
LAPTOP = "flags\t\t: fpu sse avx2 fma\n"
ARM = "Features\t: fp asimd sve bf16 i8mm\n"
OLD_ARM = "Features\t: fp asimd crc32\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A file in place of /proc/cpuinfo, and no limit on oneDNN."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(device_module, "_CPU_INFO", path)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    has_bf16_instructions.cache_clear()
    yield path
    has_bf16_instructions.cache_clear()


@pytest.mark.parametrize(
    ("asked", "sees_gpu", "expected"),
    [
        ("", False, "cpu"),
        ("", True, "cuda"),
        ("cpu", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_the_variable_counts_before_what_torch_sees(
    monkeypatch: pytest.MonkeyPatch, asked: str, sees_gpu: bool, expected: str
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees_gpu)
    assert device_type() == expected
    assert has_gpu() == (expected == "cuda")
    assert run_device() == torch.device(expected)


def test_tests_compute_on_the_cpu_also_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_type() == "cpu"


@pytest.mark.parametrize(("asked", "problem"), [("cuda", "no GPU here"), ("xpu", "one of cpu,")])
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: str, problem: str
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"DS_ACCELERATOR = {asked}: .*{problem}"):
        device_type()


def test_gpus_are_counted_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_module, "_DEVICE_FILES", tmp_path)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert num_gpu_files() == num_wanted_gpus() == 0
    for name in ("nvidia0", "nvidia1", "nvidia11", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert num_gpu_files() == num_wanted_gpus() == 3
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert (num_gpu_files(), num_wanted_gpus()) == (3, 0)
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    assert num_wanted_gpus() == 3


def test_every_rank_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    set_up_device(local_rank=1, local_size=2)
    assert chosen == [1]
    with pytest.raises(UserError, match=r"rank 2 of this host has no GPU.*--num_gpus 2"):
        set_up_device(local_rank=2, local_size=3)


@pytest.mark.parametrize(
    ("cores", "local_size", "asked", "expected"),
    [(8, 2, "", 4), (2, 4, "", 1), (7, 2, "", 3), (8, 2, "5", None)],
)
def test_ranks_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, local_size: int, asked: str, expected: int | None
) -> None:
    taken: list[int] = []
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(device_module, "num_cores", lambda: cores)
    monkeypatch.setattr(device_module, "_keep_freed_memory", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    set_up_device(0, local_size)
    assert taken == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("cpu_info", "flags"),
    [
        (SERVER, ["amx_bf16", "avx512_bf16"]),
        (LAPTOP, []),
        (ARM, ["bf16"]),
        (OLD_ARM, []),
        (None, []),
    ],
)
def test_instructions_are_read_from_the_processors_flags(
    machine: Path, cpu_info: str | None, flags: list[str]
) -> None:
    if cpu_info is not None:
        machine.write_text(f"processor\t: 0\n{cpu_info}")
    assert bf16_flags() == flags
    assert has_bf16_instructions() == bool(flags)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("AVX2", False),
        ("avx512_core", False),
        ("AVX512_CORE_VNNI", False),
        ("AVX512_CORE_BF16", True),
        ("AVX512_CORE_AMX", True),
        ("DEFAULT", True),
        ("", True),
    ],
)
def test_a_limit_on_onednn_counts(
    machine: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: bool
) -> None:
    machine.write_text(SERVER)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert has_bf16_instructions() is expected


@pytest.mark.parametrize(
    ("precision", "sees_gpu", "expected"),
    [("fp32", True, "high"), ("bf16", True, "highest"), ("fp32", False, "highest")],
)
def test_float32_on_a_gpu_is_multiplied_as_tf32(
    monkeypatch: pytest.MonkeyPatch, precision: str, sees_gpu: bool, expected: str
) -> None:
    monkeypatch.setattr(device_module, "has_gpu", lambda: sees_gpu)
    try:
        set_up_products(precision)
        assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("num_gpus", "given", "expected"),
    [
        (1, {}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        (0, {}, {}),
        (1, {"DS_ACCELERATOR": "cpu"}, {}),
        (1, {"PYTORCH_ALLOC_CONF": ""}, {"PYTORCH_ALLOC_CONF": ""}),
        (1, {"PYTORCH_CUDA_ALLOC_CONF": "a:1"}, {"PYTORCH_CUDA_ALLOC_CONF": "a:1"}),
    ],
)
def test_memory_of_gpus_grows_in_segments_unless_the_user_says_how(
    monkeypatch: pytest.MonkeyPatch,
    num_gpus: int,
    given: dict[str, str],
    expected: dict[str, str],
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device_module, "num_gpu_files", lambda: num_gpus)
    monkeypatch.setattr("os.environ", dict(os.environ))  # what is set ends with the test
    set_up_allocator()
    found = {name: value for name, value in os.environ.items() if name.endswith("ALLOC_CONF")}
    assert found == expected


def test_a_rank_sets_it_before_it_does_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(cli, "set_up_allocator", lambda: done.append("set"))
    monkeypatch.setattr(cli, "end_rank", lambda code: done.append(f"ends with {code}"))
    cli.run_rank(lambda arguments: done.append("works"), argparse.Namespace(debug=False))
    assert done == ["set", "works", "ends with 0"]


def test_the_arithmetic_in_words(machine: Path) -> None:
    machine.write_text(LAPTOP)
    assert arithmetic("bf16", "cpu").startswith("bf16 by float32 products: this CPU has no")
    assert arithmetic("bf16", "cuda") == "bf16"
    assert arithmetic("fp16", "cuda") == "fp16"
    assert arithmetic("fp32", "cpu") == "fp32"
    assert arithmetic("fp32", "cuda") == "fp32 with TF32 products"
    has_bf16_instructions.cache_clear()
    machine.write_text(SERVER)
    assert arithmetic("bf16", "cpu") == "bf16"


def test_asking_needs_no_torch() -> None:
    program = (
        "import sys; from dist_bert.common.device import arithmetic; arithmetic('bf16', 'cpu');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.fixture
def arithmetic_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What deterministic arithmetic sets holds for the whole process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is restored
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("asked", [None, ":16:8"])
def test_deterministic_arithmetic_is_torchs_and_cublass(
    monkeypatch: pytest.MonkeyPatch, arithmetic_as_before: None, asked: str | None
) -> None:
    if asked:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", asked)
    compute_deterministically()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (asked or ":4096:8")
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled(), "FlashAttention reads it"
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_an_environment_against_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, arithmetic_as_before: None
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8")
    with pytest.raises(UserError, match=r"deterministic = True: CUBLAS.* = :4096:2:16:8.*unset it"):
        compute_deterministically()
    assert not torch.are_deterministic_algorithms_enabled()
