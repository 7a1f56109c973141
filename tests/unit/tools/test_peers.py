"""transformers' Trainer on our samples: what it trains on, how it is scored, and for how long."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dist_bert.data.reader import SampleReader
from dist_bert.model.config import ModelConfig
from dist_bert.tools.benchmark import peers
from dist_bert.tools.benchmark.training import padded_inputs, transformers_model
from tests.support.synthetic import MODERN_PARTS, TINY_MODEL, write_data_set

MODEL = dataclasses.replace(TINY_MODEL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
MODERN = dataclasses.replace(MODEL, **MODERN_PARTS)


@pytest.fixture
def readers(tmp_path: Path) -> tuple[SampleReader, SampleReader]:
    manifest = write_data_set(tmp_path / "shards").manifest
    train, validation = (
        SampleReader(tmp_path / "shards", manifest, split) for split in ("train", "validation")
    )
    return train, validation


def test_the_score_is_that_of_all_samples_at_once(
    readers: tuple[SampleReader, SampleReader],
) -> None:
    reader = readers[1]
    network = transformers_model(MODEL).eval()
    blocks = np.repeat(np.arange(reader.block_sizes.size), reader.block_sizes)
    rows = np.concatenate([np.arange(size) for size in reader.block_sizes])
    batch = {k: torch.from_numpy(v) for k, v in padded_inputs(reader.gather(blocks, rows)).items()}
    labels = batch.pop("labels")
    del batch["next_sentence_label"]
    with torch.no_grad():
        logits = network(**batch).prediction_logits
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    hits = (logits.argmax(-1) == labels)[labels != -100]
    found = peers.masked_lm_scores(network, reader, 1_000, batch_size=4)
    assert found == pytest.approx((float(loss), float(hits.float().mean())), rel=1e-5)
    fewer = peers.masked_lm_scores(network, reader, 3, batch_size=4)
    assert fewer == peers.masked_lm_scores(network, reader, 3, batch_size=3) != found


@pytest.mark.trains
@pytest.mark.parametrize("model", [MODEL, MODERN], ids=["bert", "modern"])
def test_the_trainer_learns_the_samples_and_is_scored_on_the_way(
    readers: tuple[SampleReader, SampleReader],
    model: ModelConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = readers[0]
    seen: list[int] = []
    gather = reader.gather

    def noting(blocks: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        seen.extend(reader.sample_numbers(blocks, rows).tolist())
        return gather(blocks, rows)

    peer = peers._Peer(model, reader, learning_rate=1e-2, batch_size=4, seed=1)
    told: list[tuple[int, int, float]] = []

    def score(network: torch.nn.Module, step: int, num_tokens: int) -> bool:
        monkeypatch.setattr(reader, "gather", gather)
        told.append((step, num_tokens, peers.masked_lm_scores(network, reader, 1_000, 8)[0]))
        monkeypatch.setattr(reader, "gather", noting)
        return step == 50

    monkeypatch.setattr(reader, "gather", noting)
    peer.train(60, 10, score)
    assert [step for step, _, _ in told] == [10, 20, 30, 40, 50], "it was told to stop"
    assert told[-1][2] < 0.9 * told[0][2], "it learns them by heart"
    first = reader.num_samples // 4 * 4
    assert len(set(seen[:first])) == first, "every sample once an epoch"
    assert told[0][1] > 40 * 3 and told[4][1] > told[0][1], "tokens are counted"


def test_the_schedule_ends_inside_an_epoch(readers: tuple[SampleReader, SampleReader]) -> None:
    """The last call says that training may go on, as all before it do."""
    steps: list[int] = []

    def score(network: torch.nn.Module, step: int, num_tokens: int) -> bool:
        steps.append(step)
        return False

    peer = peers._Peer(MODEL, readers[0], learning_rate=1e-3, batch_size=2, seed=1)
    assert readers[0].num_samples > 2 * 3
    peer.train(3, 2, score)
    assert steps == [2, 3]


def test_minutes_are_kept_and_scores_counted(
    readers: tuple[SampleReader, SampleReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock of 0.1 s for each call until the 20 steps of the trial are over, then of a second."""
    ticks = [0.1] * 20 + [1.0] * 100
    now = iter(np.cumsum(ticks))
    clock = SimpleNamespace(perf_counter=lambda: float(next(now)))
    monkeypatch.setattr("dist_bert.tools.benchmark.peers.time", clock)
    lines: list[str] = []
    rows = peers.train_peer(
        MODEL, *readers, minutes=0.1, learning_rate=1e-3, batch_size=4, num_scored=8, num_scores=3,
        seed=1, report=lines.append,
    )  # fmt: skip
    assert lines[0] == "60 steps of 0.100 s fit into 0.1 minutes"
    assert list(rows) == ["step 20", "step 40", "step 60"] and len(lines) == 4
    # Scores begin 1, 3 and 5 seconds after the start, and each stops the clock for a second.
    assert [row["minutes"] for row in rows.values()] == pytest.approx([1 / 60, 2 / 60, 3 / 60])
