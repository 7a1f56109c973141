"""An update is not bound by what it dispatches: of 24 layers, a thousand operations at most."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from dist_bert.tools.plan.host import pass_launches, step_launches
from tests.integration.conftest import launcher, run_script
from tests.unit.training.test_memory import make_layout

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
    for stage in (0, 1, 2):  # what launch/plan.py counts beside the model, of 302 parameters
        model = dataclasses.replace(make_layout().model, num_hidden_layers=24)
        layout = make_layout(model, stage=stage)
        planned = step_launches(layout) - pass_launches(layout.model)
        assert len(layout.sizes) == 302
        assert counts[f"AdamW-{stage}-bf16"]["beyond_model"] == pytest.approx(planned, abs=24)
