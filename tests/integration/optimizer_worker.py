"""One rank of test_optimizers: trains a tiny model by every optimizer of ours, stage by stage.

Started with the folder for the files: weights after the last step as .npz, and what else is named
there. Checkpoints are written by some runs and resumed by others.
"""

import argparse
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from dist_bert.checkpoint import checkpoint, fragments
from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.checkpoint.writer import CheckpointWriter
from dist_bert.common.cli import end_rank
from dist_bert.distributed.process_group import leave_distributed, start_distributed
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine
from dist_bert.training.optimizers.lamb import Lamb

MODEL = ModelConfig(
    vocab_size=101,
    hidden_size=24,
    num_hidden_layers=3,  # borders of 2 and 4 ranks then cut matrices of layers
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=17,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.2,  # far from uniform predictions, so that every weight matters
)
NUM_STEPS, NUM_STEPS_16_BITS, NUM_SAMPLES, CLIP = 20, 8, 16, 0.5
SAVED_STEP, RESUMED_STEPS = 3, 3
# By name; eps is far above the rounding of gradients that are zero but for it (keys' biases).
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Lamb": {"lr": 3e-3, "betas": [0.9, 0.99], "eps": 1e-5, "weight_decay": 0.03},
    "StableAdamW": {"lr": 3e-3, "betas": [0.9, 0.95], "eps": 1e-5, "weight_decay": 0.1},
    "Muon": {
        "lr": 3e-3,
        "betas": [0.9, 0.95],
        "eps": 1e-5,
        "weight_decay": 0.1,
        "momentum": 0.9,
        "newton_schulz_steps": 5,
        "matrix_lr_factor": 2.0,
        "matrix_weight_decay": 0.2,
    },
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One engine."""

    optimizer: str
    stage: int
    accumulation: int = 1
    precision: str = "fp32"
    zero: tuple[tuple[str, Any], ...] = ()  # further options of ZeRO

    @property
    def name(self) -> str:
        """Of its file."""
        options = "".join(f"-{key}" for key, _ in self.zero)
        return f"{self.optimizer}-{self.stage}-{self.accumulation}-{self.precision}{options}"

    def engine(self) -> Any:
        """A new one, the same on all ranks."""
        values = {
            "train_batch_size": NUM_SAMPLES,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": CLIP,
            "optimizer": {"type": self.optimizer, "params": OPTIMIZERS[self.optimizer]},
            "zero_optimization": {"stage": self.stage, **dict(self.zero)},
            "bf16": {"enabled": self.precision == "bf16"},
            "fp16": {"enabled": self.precision == "fp16", "initial_scale_power": 3},
        }
        torch.manual_seed(1)
        config = DeepSpeedConfig.from_values(values, "case", dist.get_world_size())
        return build_engine(BertForPreTraining(MODEL), config)


def micro_batch(step: int, samples: range) -> dict[str, Any]:
    """Some of the random samples of a step, whose losses are shares of the step's mean loss."""
    batch: dict[str, Any] = {"input_ids": [], "masked_lm_positions": [], "masked_lm_labels": []}
    lengths: list[int] = []
    for sample in samples:
        rng = np.random.default_rng((step, sample))
        start, length = sum(lengths), int(rng.integers(7, 17))
        batch["input_ids"] += rng.integers(5, 101, length).tolist()
        batch["masked_lm_positions"] += [start + 1, start + 5]
        batch["masked_lm_labels"] += [7 + sample % 3, 11]
        lengths.append(length)
    return {
        **{name: torch.tensor(values) for name, values in batch.items()},
        "token_type_ids": torch.cat([(torch.arange(n) > n // 2).long() for n in lengths]),
        "position_ids": torch.cat([torch.arange(n) for n in lengths]),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "max_seqlen": max(lengths),
        "next_sentence_label": torch.tensor([sample % 2 for sample in samples]),
        "num_masked": 2 * NUM_SAMPLES,
        "num_samples": NUM_SAMPLES,
    }


def train(engine: Any, steps: range) -> None:
    """Trains on steps of the stream, which is the same for any number of ranks."""
    engine.train()
    accumulation = engine.gradient_accumulation_steps()
    size = NUM_SAMPLES // (dist.get_world_size() * accumulation)
    for step, micro_step in itertools.product(steps, range(accumulation)):
        first = (dist.get_rank() * accumulation + micro_step) * size
        loss, _ = engine(**micro_batch(step, range(first, first + size)))
        engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)
        engine.step()


def weights_of(engine: Any) -> dict[str, np.ndarray]:
    """The float32 weights, whole."""
    pieces = [(f.name, f.start, f.tensors["weight"]) for f in fragments.fragments(engine)]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, pieces)
    found = {name: torch.full(p.shape, torch.nan) for name, p in engine.module.named_parameters()}
    for name, start, values in itertools.chain.from_iterable(gathered):
        found[name].view(-1)[start : start + len(values)] = values
    return {name: tensor.numpy() for name, tensor in found.items()}


def write(folder: Path, name: str, engine: Any) -> None:
    """Weights, and what the optimizer tells of its last step."""
    found = weights_of(engine)
    told: dict[str, np.ndarray] = {}
    rule = engine.basic_optimizer.rule
    if isinstance(rule, Lamb) and rule.trust_ratios is not None:
        told = {key: np.array(value) for key, value in rule.metrics().items()}
        told["trust_ratios"] = rule.trust_ratios.numpy()
    if dist.get_rank() == 0:
        np.savez(folder / f"{name}.npz", **found, **told)  # type: ignore[arg-type]


def save_and_resume(case: Case, folder: Path) -> None:
    """A run that is stopped and resumed is bit for bit the run that is not."""
    run_dir = folder / f"run-{case.name}"
    engine = case.engine()
    train(engine, range(1, SAVED_STEP + 1))
    saves = CheckpointWriter(engine, run_dir, {}, 1, Watchdog())
    saves.save(TrainState(SAVED_STEP))
    saves.close()
    last = range(SAVED_STEP + 1, SAVED_STEP + RESUMED_STEPS + 1)
    train(engine, last)
    expected = contents(engine)
    engine.destroy()
    engine = case.engine()
    assert checkpoint.load(engine, run_dir, {}).step == SAVED_STEP
    train(engine, last)
    found = contents(engine)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected), case
    write(folder, f"resumed-{case.name}", engine)
    engine.destroy()


def contents(engine: Any) -> dict[str, torch.Tensor]:
    """All that this rank holds: the model's weights, float32 weights, state, count of steps."""
    found = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    for fragment in fragments.fragments(engine):
        for what, tensor in fragment.tensors.items():
            found[f"{what} {fragment.name}"] = tensor.clone()
    found["step"] = torch.tensor(fragments.numbers(engine)["state"]["step"])
    return found


def resume_elsewhere(saved: Case, case: Case, folder: Path) -> None:
    """Goes on with a checkpoint of another layout."""
    engine = case.engine()
    assert checkpoint.load(engine, folder / f"run-{saved.name}", {}).step == SAVED_STEP
    train(engine, range(SAVED_STEP + 1, SAVED_STEP + RESUMED_STEPS + 1))
    write(folder, f"elastic-{case.name}", engine)
    engine.destroy()


def allow_fp16() -> None:
    """DeepSpeed refuses fp16 on CPU; torch has it."""
    accelerator = type(get_accelerator())
    accelerator.is_fp16_supported = lambda self: True
    accelerator.supported_dtypes = lambda self: [torch.float, torch.half, torch.bfloat16]


def cases() -> list[Case]:
    """What is trained from the start."""
    found = [
        Case(name, stage, accumulation)
        for name, stage, accumulation in itertools.product(OPTIMIZERS, range(3), (1, 4))
    ]
    if dist.get_world_size() == 2:
        options = (("round_robin_gradients", True), ("overlap_comm", True))
        found += [Case(name, 2, 4, zero=options) for name in OPTIMIZERS]
        found += [
            Case(name, stage, 1, precision)
            for name, stage, precision in itertools.product(OPTIMIZERS, range(3), ("bf16", "fp16"))
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("--output_dir", type=Path)
    arguments = parser.parse_args()
    start_distributed()
    allow_fp16()
    folder: Path = arguments.output_dir
    for case in cases():
        engine = case.engine()
        num_steps = NUM_STEPS if case.precision == "fp32" else NUM_STEPS_16_BITS
        train(engine, range(1, num_steps + 1))
        write(folder, case.name, engine)
        engine.destroy()
    for name in OPTIMIZERS:
        if dist.get_world_size() == 2:
            for stage in range(3):
                save_and_resume(Case(name, stage), folder)
            save_and_resume(Case(name, 1, 1, "bf16"), folder)
        else:
            stage = 0 if dist.get_world_size() == 1 else 1
            resume_elsewhere(Case(name, 2), Case(name, stage), folder)
    leave_distributed()


if __name__ == "__main__":
    main()
    end_rank(0)
