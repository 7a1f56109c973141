"""One rank of test_one_gradient: writes loss and full gradients of one global batch as .npz.

Started by a launcher with the micro-batch sizes, the shards and the folder for the files.
"""

import argparse
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from dist_bert.common.cli import end_rank
from dist_bert.data.batches import BatchShape
from dist_bert.data.pretraining_batches import training_batches
from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import SampleOrder
from dist_bert.data.shard_format import Manifest
from dist_bert.distributed.process_group import leave_distributed, start_distributed
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.micro_batches import to_device
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine
from tests.integration.conftest import MODERN_PARTS

GLOBAL_BATCH_SIZE = 12
MODEL = ModelConfig(
    vocab_size=701,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=53,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.2,  # far from uniform predictions, so that every weight matters
)
MODELS = {
    "bert": MODEL,
    "modern": dataclasses.replace(MODEL, **MODERN_PARTS),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("--model", choices=list(MODELS))
    parser.add_argument("--micro_batches", nargs="+", help="samples, or tokens as 100t")
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--output_dir", type=Path)
    arguments = parser.parse_args()
    start_distributed()
    for stage, size in itertools.product(range(4), arguments.micro_batches):
        shape = shape_of(size, dist.get_world_size())
        loss, gradients = one_batch(MODELS[arguments.model], stage, shape, arguments.shards)
        if dist.get_rank() == 0:
            gradients["loss"] = np.array(loss)
            path = arguments.output_dir / f"zero{stage}-{size}.npz"
            np.savez(path, **gradients)  # type: ignore[arg-type]
    leave_distributed()


def shape_of(size: str, world_size: int) -> BatchShape:
    if size.endswith("t"):
        return BatchShape(GLOBAL_BATCH_SIZE // world_size, world_size, 1, int(size[:-1]))
    return BatchShape(GLOBAL_BATCH_SIZE // (world_size * int(size)), world_size, int(size))


def one_batch(
    model: ModelConfig, stage: int, shape: BatchShape, shards: Path
) -> tuple[float, dict[str, np.ndarray]]:
    """Global loss and gradients of the first global batch, before the update."""
    values = {
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        # every parameter of this small model partitioned, as those of a large one are
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    torch.manual_seed(1)
    config = DeepSpeedConfig(values, shape).with_shape(shape)
    engine = build_engine(BertForPreTraining(model), config)
    reader = SampleReader(shards, Manifest.load(shards), "train")
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, seed=5)
    batch = next(training_batches(reader, order, shape, dist.get_rank(), start_sample=0))
    total = torch.zeros(())
    for number, micro_batch in enumerate(batch.micro_batches, start=1):
        is_last = number == len(batch.micro_batches)
        engine.set_gradient_accumulation_boundary(is_last)
        loss, _ = engine(**to_device(micro_batch, engine.device))
        engine.backward(loss * shape.world_size, scale_wrt_gas=False)
        total += loss.detach()
        if is_last:
            gradients = {
                name: safe_get_full_grad(p).float().numpy().copy()
                for name, p in engine.module.named_parameters()
            }
        engine.step()
    dist.all_reduce(total)
    engine.destroy()
    return float(total), gradients


if __name__ == "__main__":
    main()
    end_rank(0)
