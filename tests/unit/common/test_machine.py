"""What /proc/cpuinfo says on x86 and on Arm, as recorded."""

from pathlib import Path

import pytest

from dist_bert.common import machine
from dist_bert.common.device import cpu_flags

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu vme sse2 avx2 avx512f avx512_bf16 amx_bf16
bugs\t\t: spectre_v1

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu vme sse2 avx2 avx512f avx512_bf16 amx_bf16
"""
GRAVITON2 = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1
"""
GRAVITON3 = GRAVITON2.replace("0xd0c", "0xd40").replace(" lrcpc", " lrcpc sve svebf16 i8mm bf16")
# Cores of two kinds, and the board behind them.
ROCK = f"""{GRAVITON2.replace("0xd0c", "0xd05")}
{GRAVITON2.replace("0xd0c", "0xd0b")}
Serial\t\t: 0123456789abcdef
Model\t\t: A board with both
"""
LSCPU = """Architecture:            aarch64
Vendor ID:               ARM
Model name:            Cortex-A55
Model:                 0
Model name:            Cortex-A76
"""


@pytest.mark.parametrize(
    ("cpuinfo", "lscpu", "name"),
    [
        (XEON, "not asked", "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"),
        (GRAVITON2, "Vendor ID: ARM\nModel name: Neoverse-N1\n", "Neoverse-N1"),
        (GRAVITON2, "Vendor ID: ARM\nModel name: -\n", "Arm 0x41/0xd0c"),
        (GRAVITON3, None, "Arm 0x41/0xd40"),  # no lscpu
        (ROCK, LSCPU, "Cortex-A55 and Cortex-A76"),
        (ROCK, "", "Arm 0x41/0xd05 and 0xd0b"),
    ],
)
def test_a_processor_has_a_name(
    cpuinfo: str, lscpu: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    if lscpu is not None:
        (tmp_path / "lscpu.txt").write_text(lscpu)
        (tools / "lscpu").write_text(
            f"#!/bin/sh\n[ $LC_ALL = C ] && exec /bin/cat {tmp_path}/lscpu.txt\n"
        )
        (tools / "lscpu").chmod(0o755)
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("PATH", str(tools))
    assert machine.cpu_model() == name


def test_a_system_without_proc_names_it_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "none")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert machine.cpu_model() == "arm64"


def test_flags_of_both_architectures() -> None:
    assert {"avx512_bf16", "amx_bf16"} <= cpu_flags(XEON) and "spectre_v1" not in cpu_flags(XEON)
    assert "asimd" in cpu_flags(GRAVITON2) and "bf16" not in cpu_flags(GRAVITON2)
    assert "bf16" in cpu_flags(GRAVITON3)
