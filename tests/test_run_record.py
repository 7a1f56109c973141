"""What a start leaves in the run's folder."""

from pathlib import Path

import pytest

from dist_bert.metrics import write_rows
from dist_bert.run_dir import STARTS_NAME
from dist_bert.run_record import kept_peak

CPU = {"device": "the CPU (some)", "threads": 1, "arithmetic": "bf16", "world_size": 2}


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        ([], 3e9),
        ([{**CPU, "peak_flops": 5e9}, {**CPU, "peak_flops": 4e9}], 5e9),  # the machine is busy now
        ([{**CPU, "peak_flops": 2e9}], 3e9),
        ([{**CPU, "world_size": 4, "peak_flops": 5e9}], 3e9),
        ([{**CPU, "device": "NVIDIA H200", "peak_flops": 5e9}], 3e9),
        ([{**CPU, "arithmetic": "fp32", "peak_flops": 5e9}], 3e9),
        ([{"step": 7, "world_size": 2}], 3e9),  # written before peaks were kept
    ],
)
def test_a_run_keeps_the_highest_peak_of_equal_devices(
    tmp_path: Path, earlier: list[dict[str, object]], expected: float
) -> None:
    if earlier:
        write_rows(tmp_path / STARTS_NAME, earlier)
    assert kept_peak(tmp_path, {**CPU, "peak_flops": 3e9}) == expected
