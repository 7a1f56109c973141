"""The one rank of test_loss_curve: trains a tiny model through the loop, once for every case.

Started by the launcher with a JSON file of cases, the shards, and the JSON file for the results.
"""

import argparse
import json
from pathlib import Path

from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.common.cli import end_rank
from dist_bert.data.shard_source import ShardSource
from dist_bert.distributed.agreement import StopAgreement
from dist_bert.distributed.process_group import leave_distributed, start_distributed
from dist_bert.model.config import ModelConfig
from dist_bert.model.float8 import use_float8
from dist_bert.pretraining.build import new_model, open_corpora, training_stream
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.job import PretrainingJob
from dist_bert.pretraining.recipe import Phase
from dist_bert.pretraining.timeline import Corpus
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine
from dist_bert.training.loop import TrainingLoop


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
        source = ShardSource(str(arguments.shards))
        run = PretrainingConfig(**case["run"])
        job = PretrainingJob.of(
            ModelConfig(**case["model"]),
            run,
            DeepSpeedConfig.from_values(case["deepspeed"], name, 1),
            [Phase.of_run(run)],
            {run.shards: Corpus("shards", source, source.manifest())},
        )
        results[name] = curve(job, is_float8=case.get("float8", False))
    arguments.results.write_text(json.dumps(results))
    leave_distributed()


def curve(job: PretrainingJob, is_float8: bool) -> list[list[float]]:
    """Masked LM loss, next-sentence loss and gradient norm of every step.

    Args:
        job: what to train.
        is_float8: whether the layers multiply in 8 bits, emulated.
    """
    readers = open_corpora(job, "train")
    model = new_model(job, readers, say=print)
    if is_float8:
        use_float8(model.encoder.layers, emulate=True)
    engine = build_engine(model, job.deepspeed)
    is_loss = [name.endswith("_loss") for name in engine.module.metric_names]
    steps = []

    state, stop = TrainState(), StopAgreement(lambda: 0)
    loop = TrainingLoop(engine, job.run, job.lr, stop, beat=lambda doing: None)
    for record in loop.steps(training_stream(job, readers, state), state):
        assert record.grad_norm is not None
        steps.append([*record.metrics[is_loss].tolist(), float(record.grad_norm)])
    engine.destroy()
    return steps


if __name__ == "__main__":
    main()
    end_rank(0)
