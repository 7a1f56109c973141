"""The optimizers of ours train as the papers say, whatever ranks, micro-steps and ZeRO."""

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_bert.model.bert import BertForPreTraining
from tests.integration.conftest import launcher, run_script
from tests.integration.optimizer_worker import (
    CLIP,
    MODEL,
    NUM_SAMPLES,
    NUM_STEPS,
    NUM_STEPS_16_BITS,
    OPTIMIZERS,
    RESUMED_STEPS,
    SAVED_STEP,
    micro_batch,
)
from tests.support.reference_optimizers import UPDATES, State, clip

pytestmark = [pytest.mark.trains, pytest.mark.slow]
RANKS = (2, 1, 4)  # 2 write the checkpoints that the others resume


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all ranks have written."""
    folder = tmp_path_factory.mktemp("optimizers")
    for num_ranks in RANKS:
        own = folder / str(num_ranks)
        own.mkdir()
        if num_ranks != RANKS[0]:
            for run in (folder / str(RANKS[0])).glob("run-*"):
                (own / run.name).symlink_to(run)
        ended = run_script(
            *launcher(num_ranks), "tests/integration/optimizer_worker.py", "--output_dir", own
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


@functools.cache
def reference(name: str, num_steps: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Weights, and what the last update returned: one process, the whole batch at once."""
    torch.manual_seed(1)
    model = BertForPreTraining(MODEL)
    states: State = {}
    told: dict[str, float] = {}
    for step in range(1, num_steps + 1):
        model.zero_grad()
        loss, _ = model(**micro_batch(step, range(NUM_SAMPLES)))
        loss.backward()
        clip(model, CLIP)
        told = UPDATES[name](model, states, step, OPTIMIZERS[name])
    return {name: p.detach().numpy() for name, p in model.named_parameters()}, told


def largest_difference(found: Any, expected: dict[str, np.ndarray]) -> float:
    assert expected.keys() <= set(found.files)
    return max(float(np.abs(found[name] - values).max()) for name, values in expected.items())


@pytest.mark.parametrize("num_ranks", sorted(RANKS))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_layouts_train_as_the_reference(folder: Path, name: str, num_ranks: int) -> None:
    expected, _ = reference(name, NUM_STEPS)
    start, _ = reference(name, 0)
    moved = max(float(np.abs(start[key] - values).max()) for key, values in expected.items())
    assert moved > 0.01, "so that a wrong update would show"
    for stage, accumulation in itertools.product(range(3), (1, 4)):
        found = np.load(folder / f"{num_ranks}/{name}-{stage}-{accumulation}-fp32.npz")
        difference = largest_difference(found, expected)
        assert difference < 1e-5, (stage, accumulation, difference)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_order_of_gradients_does_not_matter(folder: Path, name: str) -> None:
    found = np.load(folder / f"2/{name}-2-4-fp32-round_robin_gradients-overlap_comm.npz")
    assert largest_difference(found, reference(name, NUM_STEPS)[0]) < 1e-5


@pytest.mark.parametrize("num_ranks", sorted(RANKS))
def test_trust_ratios_are_those_of_whole_parameters(folder: Path, num_ranks: int) -> None:
    _, expected = reference("Lamb", NUM_STEPS)
    for stage in range(3):
        found = np.load(folder / f"{num_ranks}/Lamb-{stage}-1-fp32.npz")
        ratios = found["trust_ratios"]
        assert ratios == pytest.approx(list(expected.values()), abs=1e-6), stage
        assert float(found["trust_ratio_min"]) == ratios.min()
        assert float(found["trust_ratio_max"]) == ratios.max()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stages_agree_in_16_bits(folder: Path, name: str, precision: str) -> None:
    """The float32 weights, as far as gradients of 16 bits tell."""
    expected, _ = reference(name, NUM_STEPS_16_BITS)
    start, _ = reference(name, 0)
    for stage in range(3):
        found = np.load(folder / f"2/{name}-{stage}-1-{precision}.npz")
        for key, values in expected.items():
            moved = np.abs(values - start[key]).mean()
            assert np.abs(found[key] - values).mean() < 0.2 * moved, (stage, key)


@pytest.mark.parametrize("num_ranks", sorted(RANKS))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_is_the_unbroken_one(folder: Path, name: str, num_ranks: int) -> None:
    """On the layout that saved it, which the worker compares bit for bit, and on others."""
    expected, _ = reference(name, SAVED_STEP + RESUMED_STEPS)
    if num_ranks == RANKS[0]:
        names = [f"resumed-{name}-{stage}-1-fp32" for stage in range(3)]
    else:
        names = [f"elastic-{name}-{0 if num_ranks == 1 else 1}-1-fp32"]
    for file in names:
        found = np.load(folder / f"{num_ranks}/{file}.npz")
        assert largest_difference(found, expected) < 1e-5, file
