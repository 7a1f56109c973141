"""An update is not bound by what it dispatches: of 24 layers, a thousand operations at most."""

import itertools
import json
from pathlib import Path

import pytest

from tests.integration.conftest import launcher, run_script

pytestmark = pytest.mark.trains

ADAMW = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True, "fused": True}}
LAMB = {"type": "Lamb", "params": {"lr": 1e-3}}
MUON = {"type": "Muon", "params": {"lr": 1e-3}}


def test_an_update_dispatches_few_operations_and_hardly_waits(tmp_path: Path) -> None:
    cases = {
        f"{optimizer['type']}-{stage}-{precision}": [optimizer, stage, precision]
        for optimizer, stage, precision in itertools.product(
            (ADAMW, LAMB, MUON), (0, 1, 2), ("bf16", "fp32")
        )
    }
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    ended = run_script(
        *launcher(1), "tests/integration/dispatch_worker.py", tmp_path / "cases.json",
        tmp_path / "counts.json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts.keys() == cases.keys()
    for name, found in counts.items():
        assert 0 < found["operations"] <= 1_000 and found["reads"] <= 4, (name, found)
        assert not found["refused"], (name, "torch would refuse it with `deterministic` on a GPU")
