"""One rank of test_faults: trains with non-finite steps and without those steps, and compares.

Started with the folder of the shards. Prints a line for every ZeRO stage and precision.
"""

import argparse
import dataclasses
import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from dist_bert.checkpoint import checkpoint, fragments
from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.checkpoint.writer import CheckpointWriter
from dist_bert.common.cli import end_rank
from dist_bert.data.batches import BatchShape, StepBatch
from dist_bert.data.pretraining_batches import training_batches
from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import SampleOrder
from dist_bert.data.shard_format import Manifest
from dist_bert.distributed.agreement import StopAgreement
from dist_bert.distributed.process_group import leave_distributed, start_distributed
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.model.bert import BertForPreTraining
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine
from dist_bert.training.loop import SaveSchedule, StepRecord, TrainingLoop
from dist_bert.training.weight_average import start_average
from tests.integration.gradient_worker import MODEL

NAN_LOSS, NAN_GRADIENT, INFINITE_LOSS = 1, 2, 3
POISON = {2: (NAN_LOSS, 1), 3: (NAN_GRADIENT, 0), 5: (INFINITE_LOSS, 1)}  # step -> kind, rank
NUM_STEPS, SAVED_STEP = 7, 4
AVERAGE_DECAY = 0.1  # reached at step 1: later the number of steps plays no part
SUMMED_IN_FP32 = "bf16, gradients summed in fp32"  # with another of DeepSpeed's optimizers
SHAPE = BatchShape(accumulation_steps=2, world_size=2, micro_batch_size=3)


class PoisonedModel(BertForPreTraining):
    def forward(self, poison: int = 0, **batch: Any) -> tuple[Tensor, Tensor]:
        loss, shares = super().forward(**batch)
        if poison == NAN_LOSS:
            loss = loss * math.nan
        elif poison == NAN_GRADIENT:
            loss = loss + (loss - loss.detach()).sqrt()  # adds 0, whose gradient is infinite
        elif poison == INFINITE_LOSS:
            loss = loss + math.inf  # which leaves the gradient as it is
        return loss, shares


def batches(shards: Path) -> Iterator[StepBatch]:
    reader = SampleReader(shards, Manifest.load(shards), "train")
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, seed=5)
    return training_batches(reader, order, SHAPE, dist.get_rank(), start_sample=0)


def poisoned(steps: Iterator[StepBatch]) -> Iterator[StepBatch]:
    for step, batch in enumerate(steps, start=1):
        kind, rank = POISON.get(step, (0, -1))
        if rank == dist.get_rank():
            batch.micro_batches[-1]["poison"] = kind
        yield batch


def poisoned_from(first: int, steps: Iterator[StepBatch]) -> Iterator[StepBatch]:
    for step, batch in enumerate(steps, start=1):
        if step >= first and dist.get_rank() == 1:
            batch.micro_batches[0]["poison"] = NAN_LOSS
        yield batch


def new_engine(stage: int, precision: str, clipping: float) -> Any:
    values = {
        "train_batch_size": SHAPE.global_batch_size,
        "train_micro_batch_size_per_gpu": SHAPE.micro_batch_size,
        "gradient_accumulation_steps": SHAPE.accumulation_steps,
        "gradient_clipping": clipping,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True, "fused": True}},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": precision.startswith("bf16")},
        **({"data_types": {"grad_accum_dtype": "fp32"}} if precision == SUMMED_IN_FP32 else {}),
        "fp16": {"enabled": precision == "fp16", "initial_scale_power": 3, "hysteresis": 1},
    }
    torch.manual_seed(1)
    engine = build_engine(PoisonedModel(MODEL), DeepSpeedConfig(values, SHAPE))
    start_average(engine, AVERAGE_DECAY)
    return engine


def contents(engine: Any) -> list[Any]:
    """Weights, moments and step count of this rank; weights as the model has them."""
    found: list[Any] = [fragments.numbers(engine)["state"]["step"]]
    for fragment in fragments.fragments(engine):
        found += [fragment.name, *(t.clone() for t in fragment.tensors.values())]
    return found + [p.detach().clone() for p in engine.module.parameters()]


def are_alike(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) if torch.is_tensor(a) else a == b
        for a, b in zip(left, right, strict=True)
    )


def trained(
    engine: Any, steps: Iterator[StepBatch], run: PretrainingConfig, saved: list[Any], folder: str
) -> list[StepRecord]:
    records: list[StepRecord] = []
    saves = CheckpointWriter(engine, folder, {}, 1, Watchdog())

    schedule = SaveSchedule(run)
    loop = TrainingLoop(
        engine, run, lambda step: 1e-3, StopAgreement(lambda: 0), beat=lambda doing: None
    )
    for record in loop.steps(steps, TrainState()):
        records.append(record)
        is_due = schedule.is_due(record, is_stop=False)
        # The first of its interval; step 1 is saved, too.
        if is_due and not saved and record.state.step > 1 and run.checkpoint_interval < NUM_STEPS:
            saves.save(record.state)
            saves.finish()
            saved.extend(contents(engine))
    saves.close()
    return records


def check(stage: int, precision: str, clipping: float, shards: Path, folder: str) -> None:
    run = PretrainingConfig(num_train_steps=NUM_STEPS, warmup_steps=0, schedule="constant")
    run = dataclasses.replace(run, checkpoint_interval=SAVED_STEP - 1, max_skipped_steps=99)
    run = dataclasses.replace(run, average_decay=AVERAGE_DECAY)
    engine = new_engine(stage, precision, clipping)
    saved: list[Any] = []
    records = trained(engine, poisoned(batches(shards)), run, saved, folder)
    skipped = [record.state.step for record in records if record.is_skipped]
    assert skipped == list(POISON), (stage, precision, skipped)
    found = contents(engine)

    # Step 3 was skipped, so its checkpoint was put off to step 4. Going back to it changes all.
    state = checkpoint.load(engine, folder, {})
    assert state == records[SAVED_STEP - 1].state and not are_alike(contents(engine), found)
    assert are_alike(contents(engine), saved)
    engine.destroy()

    engine = new_engine(stage, precision, clipping)
    clean = (b for step, b in enumerate(batches(shards), start=1) if step not in POISON)
    run = dataclasses.replace(run, num_train_steps=NUM_STEPS - len(POISON), checkpoint_interval=99)
    records = trained(engine, clean, run, [], folder)
    assert not any(record.is_skipped for record in records)
    assert are_alike(contents(engine), found), (stage, precision)
    engine.destroy()


def check_floor(stage: int, shards: Path) -> None:
    """A falling loss scale is no fault; at its floor, three skipped steps end the run."""
    accelerator = type(get_accelerator())  # DeepSpeed refuses fp16 on CPU; torch has it
    accelerator.is_fp16_supported = lambda self: True
    accelerator.supported_dtypes = lambda self: [torch.float, torch.half, torch.bfloat16]
    run = PretrainingConfig(num_train_steps=20, warmup_steps=0, max_skipped_steps=3)
    engine = new_engine(stage, "fp16", 1.0)
    scales: list[float] = []

    stop = StopAgreement(lambda: 0)
    for record in TrainingLoop(engine, run, lambda step: 1e-3, stop, beat=lambda doing: None).steps(
        poisoned_from(2, batches(shards)), TrainState()
    ):
        scales.append(float(engine._get_optimizer_loss_scale()))
        if record.must_roll_back:
            break
    else:
        raise AssertionError(f"went on: {scales}")
    assert record.state.step == 7 and scales == [8, 4, 2, 1, 1, 1, 1], scales
    engine.destroy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--output_dir")
    arguments = parser.parse_args()
    start_distributed()
    for stage, precision in (*itertools.product(range(4), ("fp32", "bf16")), (1, SUMMED_IN_FP32)):
        clipping = 0.0 if (stage, precision) == (0, "fp32") else 1.0
        with tempfile.TemporaryDirectory(dir=arguments.output_dir) as own:
            folder = [own]
            dist.broadcast_object_list(folder, src=0)
            check(stage, precision, clipping, arguments.shards, folder[0])
            dist.barrier()
        if dist.get_rank() == 0:
            print(f"ZeRO {stage}, {precision}: alike", flush=True)
    for stage in (0, 1, 3):
        check_floor(stage, arguments.shards)
        if dist.get_rank() == 0:
            print(f"ZeRO {stage}, fp16: stopped", flush=True)
    leave_distributed()


if __name__ == "__main__":
    main()
    end_rank(0)
