"""What a start leaves in the run's folder, and says of settings that the last one did not have."""

import json
from pathlib import Path

import pytest

from dist_bert.checkpoint.run_dir import STARTS_NAME
from dist_bert.common.json_lines import write_rows
from dist_bert.training.run_record import _changes, kept_peak

SETTINGS = {
    "run": {"warmup_steps": 3, "schedule": "linear", "output_dir": "runs/a"},
    "deepspeed": {"optimizer": {"params": {"lr": 1e-3, "betas": [0.9, 0.999]}}},
    "world_size": 2,
    "commit": "f00d",
}


def test_every_setting_that_differs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SETTINGS))
    assert _changes(path, SETTINGS) == {}
    other = {
        "run": {"warmup_steps": 3, "schedule": "cosine", "output_dir": "runs/b", "new": 1},
        "deepspeed": {"optimizer": {"params": {"lr": 2e-3, "betas": [0.9, 0.98]}}},
        "commit": "beef",
    }
    assert _changes(path, other) == {
        "run.schedule": ("linear", "cosine"),
        "run.new": (None, 1),
        "deepspeed.optimizer.params.lr": (1e-3, 2e-3),
        "deepspeed.optimizer.params.betas": ([0.9, 0.999], [0.9, 0.98]),
        "world_size": (2, None),
    }


def test_credentials_of_an_earlier_config_are_not_told(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"run": {"shards": "https://me:geheim@host/a?sig=geheim"}}))
    assert _changes(path, {"run": {"shards": "https://***@host/a?***"}}) == {}
    expected = {"run.shards": ("https://***@host/a?***", "b")}
    assert _changes(path, {"run": {"shards": "b"}}) == expected


def test_a_damaged_config_is_no_reason_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\x00")
    assert _changes(path, SETTINGS) == {}
    assert "how the settings differ from the last start's is not known" in caplog.text


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
        ([{"world_size": 2}], 3e9),  # written before peaks were kept
    ],
)
def test_a_run_keeps_the_highest_peak_of_equal_devices(
    tmp_path: Path, earlier: list[dict[str, object]], expected: float
) -> None:
    if earlier:
        write_rows(tmp_path / STARTS_NAME, [{"step": 0, **start} for start in earlier])
    assert kept_peak(tmp_path, {**CPU, "peak_flops": 3e9}) == expected
