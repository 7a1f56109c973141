"""Trains by the attention of a GPU, 4,551 tokens in a micro-batch, at each ZeRO stage.

A worker of tests/integration/test_gpu_path.py, on one rank; on a GPU, or on the CPU with a plain
kernel. gpu_path_worker.py FILE writes, by case: losses, and waits for the device in an update.
"""

import contextlib
import dataclasses
import itertools
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist_bert.common.cli import end_rank
from dist_bert.common.device import compute_deterministically, has_gpu
from dist_bert.distributed.process_group import leave_distributed, start_distributed
from dist_bert.model import bert as model_module
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine
from tests.integration.conftest import MODERN_PARTS
from tests.support.flash_kernel import flash_kernel_on_cpu

# With BERT's dropout of 0.1 everywhere; heads of 16, as the kernel wants multiples of 8.
MODEL = ModelConfig(
    vocab_size=701,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=101,
    max_position_embeddings=131,
)
MODELS = {"bert": MODEL, "modern": dataclasses.replace(MODEL, **MODERN_PARTS)}
LENGTHS = [131 - number for number in range(41)]  # 4,551 tokens
NUM_STEPS = 4


def make_batch(device: torch.device) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(3)
    lengths = torch.tensor(LENGTHS)
    ids = torch.randint(5, 701, (sum(LENGTHS),), generator=rng)
    masked = torch.randperm(len(ids), generator=rng)[:607].sort().values
    batch = {
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS]),
        "cu_seqlens": torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
        "masked_lm_positions": masked,
        "masked_lm_labels": ids[masked],
        "next_sentence_label": torch.arange(len(LENGTHS)) % 2,
    }
    counts = {"max_seqlen": 131, "num_masked": 607, "num_samples": len(LENGTHS)}
    return {name: tensor.to(device) for name, tensor in batch.items()} | counts


class Reads(TorchDispatchMode):
    """Counts the numbers that the host reads from the device."""

    count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "_local_scalar_dense" in str(op)
        return op(*args, **(kwargs or {}))


def waits_of_update(engine: Any) -> int:
    """Updates the weights; on a GPU torch itself tells what waits for it."""
    if not has_gpu():
        with Reads() as reads:
            engine.step()
        return reads.count
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        engine.step()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in told)


def train(name: str, stage: int, is_compiled: bool) -> dict[str, Any]:
    values = {
        "train_batch_size": len(LENGTHS),
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "torch_adam": True, "fused": True}},
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "gradient_clipping": 1.0,
    }
    torch.manual_seed(1)
    model = BertForPreTraining(MODELS[name])
    if is_compiled and has_gpu():
        model.encoder.compile_layers()
    elif is_compiled:  # the same graphs and the same division, without a C++ compiler
        for layer in model.encoder.layers:
            layer.compile(dynamic=True, backend="aot_eager_decomp_partition")
    engine = build_engine(model, DeepSpeedConfig.from_values(values, "test", 1))
    engine.train()
    batch = make_batch(engine.device)
    losses, waits = [], 0
    for step in range(NUM_STEPS):
        torch.manual_seed(100 + step)
        loss, _ = engine(**batch)
        losses.append(float(loss.detach()))
        engine.backward(loss)
        waits = waits_of_update(engine)  # the last one, without set-up
    engine.destroy()
    return {"losses": losses, "waits": waits}


def main() -> None:
    compute_deterministically()
    start_distributed()
    with contextlib.ExitStack() as stack:
        if not has_gpu():
            stack.enter_context(flash_kernel_on_cpu())
            vars(model_module)["can_use_varlen_kernel"] = lambda *_: True
        cases = [
            (name, stage, is_compiled)
            for name, stage, is_compiled in itertools.product(MODELS, range(4), (False, True))
            if stage < 3 or not is_compiled
        ]
        results = {"-".join(map(str, case)): train(*case) for case in cases}
        results["again"] = train(*cases[0])
    Path(sys.argv[-1]).write_text(json.dumps(results))
    leave_distributed()


if __name__ == "__main__":
    main()
    end_rank(0)
