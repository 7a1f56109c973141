"""One rank of test_first_step: what engines hold before their first step, and after it.

Prints a line for each optimizer, ZeRO stage and precision, which begins with "wrong" if it is.
"""

import argparse
import itertools
from typing import Any

import torch
import torch.distributed as dist

from dist_bert.checkpoint import fragments
from dist_bert.common.cli import end_rank
from dist_bert.distributed.process_group import leave_distributed, start_distributed
from dist_bert.model.bert import BertForPreTraining
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine
from tests.integration.optimizer_worker import MODEL, NUM_SAMPLES, allow_fp16, train

LR, DECAY = 0.01, 20.0  # one update more would take away a fifth of the weights
DEEPSPEEDS = ("AdamW", "Adam")
CASES = (
    *itertools.product(["AdamW"], range(4), ["fp32", "bf16", "fp16"]),
    *itertools.product(["Adam", "Lamb", "StableAdamW", "Muon"], [0, 2], ["bf16"]),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.parse_args()
    start_distributed()
    allow_fp16()
    for name, stage, precision in CASES:
        problems = problems_of(name, stage, precision)
        line = f"{name} at ZeRO {stage} in {precision}"
        print(f"wrong: {line}: {'; '.join(problems)}\n" if problems else f"right: {line}\n", end="")
    leave_distributed()


def problems_of(name: str, stage: int, precision: str) -> list[str]:
    """What is wrong with the start of a run."""
    params: dict[str, Any] = {"lr": LR, "weight_decay": DECAY}
    if name in DEEPSPEEDS:
        params |= {"torch_adam": True, "adam_w_mode": name == "AdamW"}
    values = {
        "train_batch_size": NUM_SAMPLES,
        "optimizer": {"type": name, "params": params},
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16", "initial_scale_power": 3},
    }
    torch.manual_seed(1)
    model = BertForPreTraining(MODEL)
    initial = {name: p.detach().clone().view(-1) for name, p in model.named_parameters()}
    config = DeepSpeedConfig.from_values(values, "case", dist.get_world_size())
    engine = build_engine(model, config)
    problems = start_problems(engine, initial)
    train(engine, range(1, 2))
    if name == "AdamW":
        problems += update_problems(engine, initial)
    engine.destroy()
    return problems


def start_problems(engine: Any, initial: dict[str, torch.Tensor]) -> list[str]:
    """Weights that are not the initial ones bit for bit, state that is not that of no step."""
    problems = []
    for fragment in fragments.fragments(engine):
        expected = initial[fragment.name][fragment.start : fragment.start + fragment.size]
        if not torch.equal(fragment.tensors["weight"], expected):
            problems.append(f"{fragment.name} has changed")
        moments = {what: t for what, t in fragment.tensors.items() if what != "weight"}
        problems += [
            f"{what} of {fragment.name} is not 0" for what, t in moments.items() if t.any()
        ]
    steps = fragments.numbers(engine)["state"].get("step", 0.0)
    return [*problems, *([f"{steps:.0f} steps are counted"] if steps else [])]


def update_problems(engine: Any, initial: dict[str, torch.Tensor]) -> list[str]:
    """An update by AdamW: at most the learning rate, beside the weight decay of matrices."""
    shapes = {n: getattr(p, "ds_shape", p.shape) for n, p in engine.module.named_parameters()}
    problems = []
    for fragment in fragments.fragments(engine):
        start = initial[fragment.name][fragment.start : fragment.start + fragment.size]
        decay = DECAY if len(shapes[fragment.name]) > 1 else 0.0
        moved = (fragment.tensors["weight"] - (1.0 - LR * decay) * start).abs().max()
        if moved > 1.01 * LR:
            problems.append(f"{fragment.name} moved by {moved:.3g}")
        if not moved:
            problems.append(f"{fragment.name} did not move")
    return problems


if __name__ == "__main__":
    main()
    end_rank(0)
