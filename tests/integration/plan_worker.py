"""One rank of test_plan: what real engines hold and send, as JSON, for every case.

Started by the launcher with the architecture, the number of the first case and the output folder.
"""

import argparse
import dataclasses
import json
import types
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_bert.common.cli import end_rank
from dist_bert.distributed.process_group import leave_distributed, start_distributed
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine
from tests.integration.conftest import MODERN_PARTS

_BERT = ModelConfig(
    vocab_size=701,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=101,
    max_position_embeddings=53,
)
MODELS = {"bert": _BERT, "modern": dataclasses.replace(_BERT, **MODERN_PARTS)}
MICRO_BATCH_SIZE = 3
SENT_ARGUMENT = {  # operation -> name and place of the argument that has all of the message
    "all_reduce": ("tensor", 0),
    "reduce": ("tensor", 0),
    "broadcast": ("tensor", 0),
    "all_gather_into_tensor": ("output_tensor", 0),
    "reduce_scatter_tensor": ("input", 1),
    "all_to_all_single": ("input", 1),
}
UNCOUNTED = ("all_gather", "reduce_scatter", "all_to_all", "all_reduce_coalesced", "send")
FEW = 8  # elements of an all-reduce: norms, overflow flags and the like, which no plan counts


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured."""

    stage: int
    precision: str
    accumulation_steps: int

    def config(self, num_ranks: int) -> DeepSpeedConfig:
        """Buckets are smaller than the model and larger than its largest parameter."""
        values = {
            "train_batch_size": MICRO_BATCH_SIZE * num_ranks * self.accumulation_steps,
            "train_micro_batch_size_per_gpu": MICRO_BATCH_SIZE,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
            "gradient_clipping": 1.0,
            "bf16": {"enabled": self.precision == "bf16"},
            "zero_optimization": {
                "stage": self.stage,
                "overlap_comm": True,
                "contiguous_gradients": True,
                "reduce_bucket_size": 40_000,
                "stage3_prefetch_bucket_size": 10_000,
                "stage3_param_persistence_threshold": 100,
            },
        }
        return DeepSpeedConfig.from_values(values, "case", num_ranks)


def cases(first_accumulation: int) -> list[Case]:
    """Every stage in both precisions, each with one accumulation."""
    accumulation = {"bf16": first_accumulation, "fp32": 3 - first_accumulation}
    return [Case(stage, p, steps) for p, steps in accumulation.items() for stage in range(4)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("--architecture")
    parser.add_argument("--first_accumulation", type=int)
    parser.add_argument("--output_dir", type=Path)
    arguments = parser.parse_args()
    sent: Counter[str] = Counter()
    count_messages(sent)
    start_distributed()
    model = MODELS[arguments.architecture]
    measured = [measure(model, case, sent) for case in cases(arguments.first_accumulation)]
    path = arguments.output_dir / f"rank{dist.get_rank()}.json"
    path.write_text(json.dumps(measured))
    leave_distributed()


def count_messages(sent: Counter[str]) -> None:
    """Counts bytes and calls of all that is handed to torch.distributed from now on."""

    def counted(operation: str, function: Callable[..., Any]) -> Callable[..., Any]:
        name, place = SENT_ARGUMENT[operation]

        def call(*args: Any, **kwargs: Any) -> Any:
            tensor = kwargs[name] if name in kwargs else args[place]
            if operation != "all_reduce" or tensor.numel() > FEW:
                sent[operation] += tensor.nbytes
                sent[f"{operation} calls"] += 1
            return function(*args, **kwargs)

        return call

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("DeepSpeed sends by a function that is not counted")

    for operation in SENT_ARGUMENT:
        setattr(dist, operation, counted(operation, getattr(dist, operation)))
    for operation in UNCOUNTED:
        setattr(dist, operation, refused)


def measure(model: ModelConfig, case: Case, sent: Counter[str]) -> dict[str, Any]:
    """Messages of one step, bytes held while gradients are there; the third step of a run.

    ZeRO-3 watches the order of weights for two steps.
    """
    num_ranks = dist.get_world_size()
    torch.manual_seed(1)
    engine = build_engine(BertForPreTraining(model), case.config(num_ranks))
    held: Counter[str] = Counter()
    for step in range(3):
        sent.clear()
        for micro_step in range(case.accumulation_steps):
            loss, _ = engine(**batch(step * 10 + micro_step))
            engine.backward(loss * num_ranks, scale_wrt_gas=False)
            if step == 2:
                held |= bytes_held(engine)  # the most of each
            engine.step()
    result = {"sent": dict(sent), "held": dict(held)}
    engine.destroy()
    return result


def batch(seed: int) -> dict[str, Any]:
    """A micro-batch of random samples."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([13, 7, 11])
    num_tokens = int(lengths.sum())
    return {
        "input_ids": torch.randint(5, _BERT.vocab_size, (num_tokens,), generator=rng),
        "token_type_ids": torch.zeros(num_tokens, dtype=torch.int64),
        "position_ids": torch.cat([torch.arange(n) for n in lengths.tolist()]),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "max_seqlen": 13,
        "masked_lm_positions": torch.arange(5),
        "masked_lm_labels": torch.full((5,), 7),
        "next_sentence_label": torch.zeros(3, dtype=torch.int64),
        "num_masked": 10,
        "num_samples": 6,
    }


def bytes_held(engine: Any) -> Counter[str]:
    """Memory of all tensors that the engine can reach: weights, optimizer, all the rest."""
    weights, optimizer = {}, {}
    for parameter in engine.module.parameters():
        weights.update(memory_of(parameter.data))
        weights.update(memory_of(getattr(parameter, "ds_tensor", parameter.data)))
    inner = engine.basic_optimizer
    for tensor in (p for group in inner.param_groups for p in group["params"]):
        optimizer.update(memory_of(tensor.data))
    if engine.zero_optimization_stage() == 3:  # gives them to the inner one as it steps
        for tensor in engine.optimizer.fp32_partitioned_groups_flat:
            optimizer.update(memory_of(tensor.data))
    for state in inner.state.values():
        for value in state.values():
            optimizer.update(memory_of(value) if torch.is_tensor(value) else {})
    everything = {k: v for tensor in tensors_within(engine) for k, v in memory_of(tensor).items()}
    named = weights | optimizer
    return Counter(
        weights=sum(weights.values()),
        optimizer=sum(n for k, n in optimizer.items() if k not in weights),
        rest=sum(n for k, n in everything.items() if k not in named),
    )


def memory_of(tensor: torch.Tensor) -> dict[int, int]:
    """Address and bytes of what a tensor is a view of; DeepSpeed keeps shapes as meta tensors."""
    if tensor.is_meta:
        return {}
    storage = tensor.untyped_storage()
    return {storage.data_ptr(): storage.nbytes()}


def tensors_within(root: Any) -> Iterator[torch.Tensor]:
    """All tensors in the attributes and containers of an object, and of theirs, and so on.

    Not what hangs on functions and modules: they outlive an engine and lead to the one before.
    """
    closed = (type, types.ModuleType, types.FunctionType, str, bytes)
    seen: set[int] = set()
    waiting = deque([root])
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, closed):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            yield thing
            waiting.append(thing.grad if thing.is_leaf else None)
        if isinstance(thing, dict):
            waiting.extend([*thing, *thing.values()])
        elif isinstance(thing, list | tuple | set | frozenset | deque):
            waiting.extend(thing)
        elif isinstance(thing, types.MethodType):
            waiting.append(thing.__self__)
        waiting.extend(getattr(thing, "__dict__", {}).values())


if __name__ == "__main__":
    main()
    end_rank(0)
