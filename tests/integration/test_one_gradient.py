"""One global batch has one loss and one gradient, whatever the ranks, micro-steps and ZeRO."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dist_bert.data.batches import BatchShape
from dist_bert.data.pretraining_batches import training_batches
from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import SampleOrder
from dist_bert.data.shard_format import Manifest
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.micro_batches import to_device
from tests.integration.conftest import launcher, run_script
from tests.integration.gradient_worker import GLOBAL_BATCH_SIZE, MODELS

pytestmark = pytest.mark.trains


def reference(data_set: Path, config: ModelConfig) -> tuple[float, dict[str, NDArray[np.float32]]]:
    """Plain torch, one process, the whole batch at once."""
    shape = BatchShape(1, 1, GLOBAL_BATCH_SIZE)
    reader = SampleReader(data_set, Manifest.load(data_set), "train")
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, seed=5)
    batch = next(training_batches(reader, order, shape, rank=0, start_sample=0))
    torch.manual_seed(1)
    model = BertForPreTraining(config)
    loss, _ = model(**to_device(batch.micro_batches[0], torch.device("cpu")))
    loss.backward()
    gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return float(loss.detach()), gradients


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "num_ranks", "micro_batches"),
    [
        ("bert", 1, ["3"]),
        ("bert", 2, ["3", "2", "100t"]),
        ("bert", 4, ["3", "70t"]),
        ("modern", 2, ["3", "2", "100t"]),
    ],
)
def test_layouts_agree(
    data_set: Path, tmp_path: Path, model: str, num_ranks: int, micro_batches: list[str]
) -> None:
    ended = run_script(
        *launcher(num_ranks), "tests/integration/gradient_worker.py", "--model", model,
        "--micro_batches", *micro_batches, "--shards", data_set,
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    expected_loss, expected = reference(data_set, MODELS[model])
    for stage, size in itertools.product(range(4), micro_batches):
        found = np.load(tmp_path / f"zero{stage}-{size}.npz")
        assert float(found["loss"]) == pytest.approx(expected_loss, rel=1e-5)
        assert set(found.files) == {"loss", *expected}
        for name, gradient in expected.items():
            scale = np.abs(gradient).max()
            difference = np.abs(found[name] - gradient).max()
            assert difference <= 1e-5 * scale + 1e-9, (stage, name, difference, scale)
