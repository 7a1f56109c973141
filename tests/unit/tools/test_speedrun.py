"""Tracks, records and their table: exact values and the errors of what does not fit."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.errors import UserError
from dist_bert.common.files import write_json
from dist_bert.common.settings import read_json
from dist_bert.tools.speedrun import run
from dist_bert.tools.speedrun.record import Attempt, Record, table, told
from dist_bert.tools.speedrun.track import Track, with_shards_in

ROOT = Path(__file__).parents[3]
TRACKS = sorted((ROOT / "configs/speedrun").glob("*.json"))
RECORDS = sorted((ROOT / "records").rglob("*.json"))


def attempt(seed: int, seconds: float, mlm_loss: float) -> Attempt:
    return Attempt(seed, seconds, mlm_loss, 0.375, None if seed == 2 else 0.75, 1_234_567)


def record(*losses: float, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "date": "2026-11-29",
        "track": "docs",
        "machine_class": "two_cores",
        "change": "rotary positions",
        "target_mlm_loss": 3.5,
        "validation_sha256": "ab",
        "attempts": [attempt(n, 60.0 * n, loss) for n, loss in enumerate(losses, start=1)],
        "recipe": {"phases": []},
        "model": {"hidden_size": 256},
        "deepspeed_config": {},
        "machine": {"cores": 2},
        "commit": None,
        "has_changes": False,
    }
    return Record(**{**values, **changes})


@pytest.mark.parametrize("path", TRACKS, ids=lambda path: path.stem)
def test_tracks_name_files_that_exist_and_data_sets_that_they_make(path: Path) -> None:
    track = Track.read(path)
    assert track.name == path.stem and track.held_out == track.data / (
        f"shards_{track.evaluation_length}"
    )
    read_json(track.model), read_json(track.deepspeed_config)
    recipe = with_shards_in(read_json(track.recipe), track.data)
    made = {str(track.data / f"shards_{length}") for length in track.sequence_lengths}
    used = {
        place
        for phase in recipe["phases"]
        for place in (phase["shards"] if isinstance(phase["shards"], dict) else [phase["shards"]])
    }
    assert used <= made


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"evaluation_length": 64}, "evaluation_length = 64: must be one of sequence_lengths"),
        ({"target_mlm_loss": 0.0}, "target_mlm_loss = 0.0: must be above 0"),
        ({"sequence_lengths": ["16"]}, "sequence_lengths = ['16']: must be integers"),
        ({"pace": 1}, "unknown key pace"),
        ({"recipe": None}, "recipe: is missing"),
    ],
)
def test_a_track_is_checked(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    values = {**read_json(TRACKS[0]), **changes}
    values = {name: value for name, value in values.items() if value is not None}
    write_json(tmp_path / "t.json", values)
    with pytest.raises(UserError) as raised:
        Track.read(tmp_path / "t.json")
    assert problem in str(raised.value) and "t.json" in str(raised.value)


def test_recipes_are_moved_to_the_data_of_the_track() -> None:
    recipe = {
        "warmup_steps": 5,
        "phases": [
            {"shards": "data/shards_16", "steps": 1},
            {"shards": {"data/shards_32": 0.25, "data/shards_128": 0.75}, "steps": 2},
        ],
    }
    assert with_shards_in(recipe, Path("there/t")) == {
        "warmup_steps": 5,
        "phases": [
            {"shards": "there/t/shards_16", "steps": 1},
            {"shards": {"there/t/shards_32": 0.25, "there/t/shards_128": 0.75}, "steps": 2},
        ],
    }
    for other in ("data/wiki", "data/shards", None, 3):
        with pytest.raises(UserError, match="must be data/shards_N"):
            with_shards_in({"phases": [{"shards": other}]}, Path("there"))


def test_the_commands_have_the_tracks_flags() -> None:
    track = dataclasses.replace(
        Track.read(ROOT / "configs/speedrun/docs.json"),
        name="x y",
        tokenizer={"vocab_size": 700, "lower_case": True},
        prepare={"masked_lm_prob": 0.15},
        sequence_lengths=[16, 32],
    )
    assert track.preparation() == [
        "python launch/train_tokenizer.py --vocab_size 700 --lower_case true --output_dir"
        " 'data/speedrun/x y/tokenizer'",
        "mpiexec -n 2 python -m mpi4py launch/prepare_shards.py --tokenizer"
        " 'data/speedrun/x y/tokenizer/tokenizer.model' --output_dir 'data/speedrun/x y/shards'"
        " --sequence_length 16,32 --masked_lm_prob 0.15",
    ]


def test_the_hash_is_of_held_out_samples_and_tokenizer(tmp_path: Path) -> None:
    def of(tokenizer: str, validation: list[str], train: str) -> str:
        splits = {
            "validation": [{"sha256": each} for each in validation],
            "train": [{"sha256": train}],
        }
        write_json(
            tmp_path / "manifest.json",
            {"tokenizer": {"fingerprint": tokenizer}, "splits": splits},
        )
        return run.validation_sha256(tmp_path)

    base = of("t", ["a", "b"], "c")
    assert base == of("t", ["a", "b"], "d") and len(base) == 64
    assert len({base, of("u", ["a", "b"], "c"), of("t", ["b", "a"], "c"), of("t", ["a"], "c")}) == 4


def test_a_record_is_a_mean_that_reaches_the_target() -> None:
    assert record(3.4, 3.5, 3.6).has_reached
    assert not record(3.4, 3.5, 3.61).has_reached
    assert record(3.4, 3.5, 3.6).mlm_loss == pytest.approx(3.5)
    assert record(3.4, 3.5, 3.6).seconds == 120.0


def test_the_table_has_means_with_intervals_in_the_order_of_track_class_and_date() -> None:
    records = [
        record(3.4, 3.5, 3.6),
        record(3.3, 3.3, 3.3, machine_class="one_core", change="Muon"),
        record(3.6, 3.6, 3.6, date="2026-11-01", change="BERT"),
    ]
    assert table(records).splitlines() == [
        "| track | class | date | change | seeds | minutes | MLM loss | target |  |",
        "|---|---|---|---|---|---|---|---|---|",
        "| docs | one core | 2026-11-29 | Muon | 3 | 2.0 | 3.300 ± 0.000 | 3.50 | reached |",
        "| docs | two cores | 2026-11-01 | BERT | 3 | 2.0 | 3.600 ± 0.000 | 3.50 | missed |",
        "| docs | two cores | 2026-11-29 | rotary positions | 3 | 2.0 | 3.500 ± 0.248 | 3.50"
        " | reached |",
    ]  # fmt: skip


def test_all_trainings_are_told() -> None:
    assert told(record(3.4, 3.5, 3.6)).splitlines() == [
        "seed  seconds  MLM loss  accuracy    NSP  million tokens",
        "1          60     3.400     37.5%  75.0%            1.23",
        "2         120     3.500     37.5%      -            1.23",
        "3         180     3.600     37.5%  75.0%            1.23",
        "mean 3.500 nats in 2.0 minutes: target 3.50 reached",
    ]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", record(3.4, 3.5).figures())
    assert Record.read(tmp_path / "r.json") == record(3.4, 3.5)
    write_json(tmp_path / "r.json", {**record(3.4).figures(), "pace": 1})
    with pytest.raises(UserError, match=r"r\.json: unknown key pace"):
        Record.read(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"attempts": None}, "attempts: must be a list of at least one training"),
        ({"attempts": []}, "attempts: must be a list of at least one training"),
        ({"attempts": [{"seed": 1}]}, "seconds: is missing, must be given; mlm_loss: is missing"),
        ({"machine": None}, "machine: is missing, must be given"),
    ],
)
def test_what_is_no_record_is_refused(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    values = {**record(3.4).figures(), **changes}
    values = {
        name: value for name, value in values.items() if value is not None or name == "commit"
    }
    write_json(tmp_path / "r.json", values)
    with pytest.raises(UserError, match=rf"r\.json.*: {problem}"):
        Record.read(tmp_path / "r.json")


def test_the_readme_has_the_table_of_all_records(tmp_path: Path) -> None:
    found = Record.read_all(ROOT / "records")
    assert [record.date for record in found] == [Record.read(path).date for path in RECORDS]
    assert table(found) in (ROOT / "records/README.md").read_text()
    with pytest.raises(UserError, match=f"{tmp_path}: has no records; run this in a checkout"):
        Record.read_all(tmp_path)


@pytest.mark.parametrize("seeds", ([1, 2], [1, 2, 2], [1, 2, 3, 3]))
def test_two_seeds_are_no_record_and_none_counts_twice(
    seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second training of a seed would find the first one's checkpoint, and end at once."""
    monkeypatch.setattr(run, "take", pytest.fail)
    given = " ".join(map(str, seeds))
    with pytest.raises(UserError, match=f"--seeds {given}: must be at least 3, all different"):
        run.run(Track.read(TRACKS[0]), "one_core", seeds, "")


def test_a_wrong_recipe_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "take", lambda machine_class: 1)
    monkeypatch.setattr(run, "call", pytest.fail)
    track = dataclasses.replace(Track.read(TRACKS[0]), recipe=str(tmp_path / "r.json"))
    for phases in ({"a": 1}, [1], [{"shards": "data/shards_16"}]):
        write_json(tmp_path / "r.json", {"phases": phases})
        with pytest.raises(UserError, match=r"r\.json: phase"):
            run.run(track, "one_core", [1, 2, 3], "")


def test_a_class_takes_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[int]] = []
    monkeypatch.setattr(run, "num_wanted_gpus", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 2, 7})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: kept.append(cores))
    monkeypatch.setattr(os, "environ", {})
    assert (run.take("one_core"), run.take("two_cores")) == (1, 2)
    assert kept == [[2], [2, 5]]
    assert os.environ["OMP_NUM_THREADS"] == "1" and os.environ["DS_ACCELERATOR"] == "cpu"
    for name in ("one_gpu", "node"):
        with pytest.raises(UserError, match=f"--class {name}: this machine has 3 cores and 0 GPUs"):
            run.take(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    with pytest.raises(UserError, match="--class two_cores: this machine has 1 cores"):
        run.take("two_cores")


def test_classes_with_gpus_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "num_wanted_gpus", lambda: 8)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pytest.fail("cores"))
    assert (run.take("one_gpu"), run.take("node")) == (1, 8)


def test_data_are_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    track = dataclasses.replace(Track.read(TRACKS[0]), input=["a b/*.txt"])
    calls: list[str] = []
    monkeypatch.setattr(run, "call", calls.append)
    run.prepare(track)
    assert calls == [f"{command} --input 'a b/*.txt'" for command in track.preparation()]
    run.prepare(track)
    assert len(calls) == 2
    (track.data / "left").write_text("old")
    run.prepare(dataclasses.replace(track, prepare={"copies": 2}))
    assert len(calls) == 4 and not (track.data / "left").exists()
    assert json.loads((track.data / "prepared_by.json").read_text())["input"] == ["a b/*.txt"]
