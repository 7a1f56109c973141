"""One rank of test_options: trains a tiny model a few steps for each of several configurations.

Started by the launcher with a JSON file of cases, the shards, and the JSON file for the results.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_bert.common.cli import end_rank
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

NUM_STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    start_distributed()
    results = {}
    for name, case in json.loads(arguments.cases.read_text()).items():
        path = arguments.cases.with_name(f"{name}-rank{dist.get_rank()}.json")
        path.write_text(json.dumps(case["deepspeed"]))
        config = DeepSpeedConfig.load(path, int(os.environ["WORLD_SIZE"]))
        results[name] = trained(config, case, arguments.shards)
    if dist.get_rank() == 0:
        arguments.results.write_text(json.dumps(results))
    leave_distributed()


def trained(config: DeepSpeedConfig, case: dict[str, Any], shards: Path) -> list[list[float]]:
    """Global loss and gradient norm of every step."""
    torch.manual_seed(1)
    model = BertForPreTraining(
        ModelConfig(
            vocab_size=701,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=37,
            max_position_embeddings=53,
            hidden_dropout_prob=case["dropout"],
            attention_probs_dropout_prob=case["dropout"],
        )
    )
    model.encoder.activation_checkpointing = case["activation_checkpointing"]
    engine = build_engine(model, config)
    engine.train()
    reader = SampleReader(shards, Manifest.load(shards), "train")
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, seed=5)
    rank = dist.get_rank()
    batches = training_batches(reader, order, config.batch_shape, rank, start_sample=0)
    steps = []
    for step in range(NUM_STEPS):
        total = torch.zeros((), device=engine.device)
        for micro_step, micro_batch in enumerate(next(batches).micro_batches):
            torch.manual_seed(100 * step + 10 * micro_step + rank)
            loss, _ = engine(**to_device(micro_batch, engine.device))
            engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)
            engine.step()
            total += loss.detach()
        dist.all_reduce(total)
        steps.append([float(total), float(engine.get_global_grad_norm())])
    engine.destroy()
    return steps


if __name__ == "__main__":
    main()
    end_rank(0)
