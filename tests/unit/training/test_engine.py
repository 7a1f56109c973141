"""What an engine refuses; whole engines are in tests/integration."""

from typing import Any

import deepspeed
import pytest
from torch import nn

from dist_bert.common.errors import UserError
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine


@pytest.mark.parametrize("kind", [TypeError, ValueError, AssertionError])
def test_what_deepspeed_or_its_optimizer_refuses_is_a_mistake_of_the_user(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def initialize(config: dict[str, Any], **others: Any) -> None:
        raise kind(f"unexpected\n  {list(config['optimizer']['params'])[1]}")

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    optimizer = {"type": "AdamW", "params": {"lr": 1e-4, "beta": [0.9, 0.98]}}
    values = {"train_batch_size": 3, "optimizer": optimizer}
    with pytest.raises(UserError) as caught:
        build_engine(nn.Linear(2, 5), DeepSpeedConfig.from_values(values, "case", 1))
    assert str(caught.value) == "DeepSpeed configuration: unexpected beta"
