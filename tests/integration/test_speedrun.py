"""The speed run from text to a record, with real trainings."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.files import write_json
from dist_bert.tools.speedrun.record import Record
from tests.integration.conftest import ROOT, TINY_MODEL, run_script
from tests.support.corpus import write_text_files

pytestmark = pytest.mark.trains

PHASES = [
    {"shards": "data/shards_23", "samples": 48},
    {"shards": {"data/shards_53": 1.0}, "steps": 2, "train_batch_size": 12},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A track and its text, in a folder from which the commands are run."""
    folder = tmp_path_factory.mktemp("speedrun")
    write_text_files(folder / "text", count=211)
    for name in ("launch", "configs"):
        (folder / name).symlink_to(ROOT / name)
    write_json(folder / "recipe.json", {"warmup_steps": 1, "phases": PHASES})
    write_json(folder / "model.json", TINY_MODEL)
    write_json(
        folder / "deepspeed.json",
        {
            "train_batch_size": 24,
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": 1e-3, "torch_adam": True, "fused": True},
            },
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 1},
        },
    )
    track = {
        "input": ["text/*.txt"],
        "tokenizer": {"vocab_size": 701},
        "prepare": {"validation_share": 0.1},
        "sequence_lengths": [23, 53],
        "evaluation_length": 53,
        "validation_sha256": "",
        "target_mlm_loss": 100.0,
        "recipe": "recipe.json",
        "model": "model.json",
        "deepspeed_config": "deepspeed.json",
    }
    write_json(folder / "track.json", track)
    return folder


def speedrun(folder: Path, *flags: str) -> Any:
    return run_script(sys.executable, "launch/speedrun.py", *flags, cwd=folder)


def test_a_record_has_all_that_a_repetition_needs(folder: Path) -> None:
    (folder / "records").mkdir()
    flags = ("--track", "track.json", "--class", "one_core", "--change", "a first one")
    made = speedrun(folder, *flags, "--json", "records/r.json")
    assert made.returncode == 0, (made.stdout[-2000:], made.stderr)
    record = Record.read(folder / "records/r.json")
    assert (record.track, record.machine_class, record.change) == (
        "track", "one_core", "a first one",
    )  # fmt: skip
    assert record.has_reached and record.machine["cores"] == 1
    assert [attempt.seed for attempt in record.attempts] == [1, 2, 3]
    assert len({attempt.mlm_loss for attempt in record.attempts}) == 3, "seeds differ"
    assert len({attempt.tokens for attempt in record.attempts}) > 1, "in the order of samples too"
    assert record.model == TINY_MODEL and record.deepspeed_config["train_batch_size"] == 24
    moved = [phase["shards"] for phase in record.recipe["phases"]]
    assert moved == [
        "data/speedrun/track/shards_23", {"data/speedrun/track/shards_53": 1.0},
    ]  # fmt: skip
    for attempt in record.attempts:
        metrics = (folder / f"runs/speedrun/track/seed_{attempt.seed}/metrics.jsonl").read_text()
        last = [json.loads(line) for line in metrics.splitlines() if "train/loss" in line][-1]
        assert (last["step"], last["progress/tokens"]) == (4, attempt.tokens)
        assert 0 < attempt.seconds < 3_600 and 0 < attempt.mlm_loss < 8
    assert "target 100.00 reached" in made.stdout.splitlines()[-1]
    told = speedrun(folder, "--records")
    assert "| track | one core |" in told.stdout and "| a first one | 3 |" in told.stdout

    # Data of equal settings are not made again; those of other held-out samples are refused.
    track = json.loads((folder / "track.json").read_text())
    write_json(folder / "track.json", {**track, "validation_sha256": "0" * 64})
    refused = speedrun(folder, *flags)
    assert refused.returncode == 2 and refused.stdout == ""
    assert "data/speedrun/track/shards_53: its held-out samples are" in refused.stderr
