"""Counts what an optimizer step dispatches to the device, and how often it waits for a number.

A worker of tests/integration/test_dispatch.py, on one rank.
"""

import collections
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist_bert.common.cli import end_rank
from dist_bert.distributed.process_group import leave_distributed, start_distributed
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine
from tests.support.deterministic_ops import refused

MODEL = ModelConfig(
    vocab_size=101,
    hidden_size=16,
    num_hidden_layers=24,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
)
# What makes another view of a tensor, and starts nothing on a device.
VIEWS = ("view", "detach", "slice", "split", "select", "unbind", "transpose", "as_strided", "empty")


class Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    @property
    def started(self) -> dict[str, int]:
        """Without those that only make views."""
        return {op: n for op, n in self.counts.items() if not any(view in op for view in VIEWS)}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(op)] += 1
        return op(*args, **(kwargs or {}))


def count(optimizer: dict[str, Any], stage: int, precision: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "train_batch_size": 2,
        "optimizer": optimizer,
        "zero_optimization": {"stage": stage},
        "gradient_clipping": 1.0,
    }
    if precision == "bf16":
        values["bf16"] = {"enabled": True}
    engine = build_engine(BertForPreTraining(MODEL), DeepSpeedConfig.from_values(values, "test", 1))
    ids = torch.randint(5, 101, (64,))
    batch = {
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "position_ids": torch.arange(64) % 32,
        "cu_seqlens": torch.tensor([0, 32, 64], dtype=torch.int32),
        "max_seqlen": 32,
        "masked_lm_positions": torch.arange(64),
        "masked_lm_labels": ids,
        "next_sentence_label": torch.tensor([0, 1]),
        "num_masked": 64,
        "num_samples": 2,
    }
    for _ in range(2):  # the first one makes the optimizer's state
        with Counter() as passes:
            loss, _ = engine(**batch)
            engine.backward(loss)
        with Counter() as counter:
            engine.step()
    engine.destroy()
    ops = counter.started
    reads = sum(n for op, n in ops.items() if "_local_scalar_dense" in op)
    update = sum(ops.values())
    step = update + sum(passes.started.values())
    return {
        "operations": update,
        "reads": reads,
        "beyond_model": step - of_model(batch),
        "refused": sorted(refused(counter.counts)),
    }


def of_model(batch: dict[str, Any]) -> int:
    """Operations of a forward and backward pass in bf16 without an engine."""
    model = BertForPreTraining(MODEL).bfloat16()
    with Counter() as counter:
        loss, _ = model(**batch)
        loss.backward()
    return sum(counter.started.values())


def main() -> None:
    start_distributed()
    cases = json.loads(Path(sys.argv[-2]).read_text())
    counts = {name: count(*case) for name, case in cases.items()}
    Path(sys.argv[-1]).write_text(json.dumps(counts))
    leave_distributed()


if __name__ == "__main__":
    main()
    end_rank(0)
