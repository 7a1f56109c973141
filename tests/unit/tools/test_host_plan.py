"""Launches of a step by arithmetic, against what PyTorch dispatches; the floor that they are."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist_bert.data.batches import trial_micro_batch
from dist_bert.model import bert as model_module
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.micro_batches import to_device
from dist_bert.tools.plan.host import layer_launches, pass_launches, step_launches
from dist_bert.tools.plan.plan import scaling, scaling_end, time_of_step
from tests.unit.tools.test_plan import HARDWARE, WORKLOAD, base_layout
from tests.unit.training.test_memory import MODEL, MODERN

# What only looks at a tensor in another way, or allocates one.
VIEWS = {
    *("view", "_unsafe_view", "detach", "slice", "split", "select", "unbind", "transpose", "t"),
    *("as_strided", "empty", "empty_like", "alias", "expand", "permute", "unsqueeze", "squeeze"),
}


class Counter(TorchDispatchMode):
    """Counts the operations that start something on a device."""

    num_launches = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_launches += str(op).split(".")[1] not in VIEWS
        return op(*args, **(kwargs or {}))


def launches_of(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """Forward and backward pass of a micro-batch, with the GPU's attention, without contents."""
    monkeypatch.setattr(model_module, "can_use_varlen_kernel", lambda *arguments: True)
    device = torch.device("meta")
    with device:
        bert = BertForPreTraining(model).to(torch.bfloat16)
    batch = to_device(trial_micro_batch(torch.tensor([20, 44]).numpy(), 0.15), device)
    with Counter() as counter:
        loss, _ = bert(**batch)
        loss.backward()
    return counter.num_launches


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"bias": False},
        {"norm": "pre"},
        {"positions": "rotary"},
        {"feed_forward": "geglu"},
        MODERN,
    ],
    ids=str,
)
def test_the_launches_of_a_pass_are_counted(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = (
        dataclasses.replace(MODEL, num_hidden_layers=layers, **change) for layers in (2, 4)
    )
    found = launches_of(short, monkeypatch), launches_of(long, monkeypatch)
    assert found[1] - found[0] == 2 * layer_launches(short)
    assert pass_launches(short) == pytest.approx(found[0], abs=16)


def test_a_step_has_its_passes_reductions_and_update() -> None:
    one = pass_launches(ModelConfig())
    size = len(base_layout().sizes)
    expected = {
        (0, 1): one + size + 12,
        (1, 1): one + 4 * size + 92,
        (2, 1): one + 4 * size + 92,
        (0, 3): 3 * one + 3 * size + 12,
        (1, 3): 3 * one + 6 * size + 92,
        (2, 3): 3 * one + 10 * size + 92,  # gradients of every micro-step are reduced
        (3, 3): 3 * one + 10 * size + 72,
    }
    for (stage, steps), launches in expected.items():
        layout = base_layout(stage=stage, accumulation_steps=steps)
        assert step_launches(layout) == launches, (stage, steps)
    lamb = base_layout(stage=1, optimizer="Lamb")
    assert step_launches(lamb) == one + 2 * size + 1_000


def test_no_step_is_faster_than_its_launches() -> None:
    layout = base_layout(stage=1, overlaps=False)
    fast = time_of_step(layout, 256, WORKLOAD, HARDWARE)
    assert not fast.is_bound_by_host and fast.busy_seconds == fast.compute_seconds
    slow = time_of_step(layout, 256, WORKLOAD, dataclasses.replace(HARDWARE, launch_seconds=1.0))
    assert slow.is_bound_by_host and slow.host_seconds == slow.num_launches == step_launches(layout)
    assert slow.seconds == slow.host_seconds + slow.exposed_seconds
    assert slow.exposed_seconds == fast.exposed_seconds > 0
    assert slow.idle_share == pytest.approx(1.0, abs=1e-3) and slow.share < fast.share


def test_scaling_ends_where_the_host_binds() -> None:
    layout, free = base_layout(stage=1), dataclasses.replace(HARDWARE, launch_seconds=1e-9)
    ends = [
        scaling_end(scaling(layout, 4_096, 512, WORKLOAD, hardware))
        for hardware in (free, dataclasses.replace(HARDWARE, launch_seconds=1e-4))
    ]
    assert ends[0] > ends[1] > 1
    stuck = dataclasses.replace(HARDWARE, launch_seconds=1.0)
    assert scaling_end(scaling(layout, 16, 16, WORKLOAD, stuck)) == 1, "even one GPU waits"
