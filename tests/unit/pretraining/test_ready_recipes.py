"""The recipes of configs/recipes: read as they are shipped, and what they make of a run."""

from pathlib import Path

import pytest

from data_prep.prepare_config import resolve_data_sets
from dist_bert.data.batches import TO_BE_FOUND, BatchShape
from dist_bert.data.shard_format import BlockRecord, Manifest, ShardRecord
from dist_bert.data.shard_source import ShardSource
from dist_bert.pretraining.recipe import Phase, resolve_run
from dist_bert.pretraining.timeline import Corpus, Timeline, make_timeline
from dist_bert.tools.quickstart.steps import PHASES, recipe_of

NAMES = sorted(path.name for path in (Path(__file__).parents[3] / "configs/recipes").glob("*"))


def phases_of(name: str) -> tuple[Phase, ...]:
    return resolve_run(None, {"recipe": f"configs/recipes/{name}"})[1]


def timeline_of(name: str, world_size: int = 8) -> Timeline:
    """Of data sets that exist only here; their lengths are those of their names."""
    run, phases = resolve_run(None, {"recipe": f"configs/recipes/{name}"})
    corpora = {}
    for place in (place for phase in phases for place in phase.shards):
        length = place.rpartition("_")[2]
        record = ShardRecord("train-00000.tar", 9, place, 900_000, (BlockRecord(0, 9, 9, 2, 7),))
        manifest = Manifest(
            config={
                "sequence_length": int(length) if length.isdecimal() else 128,
                "masked_lm_prob": 0.15,
            },
            tokenizer={},
            inputs=[],
            totals={},
            statistics={},
            splits={"train": (record,), "validation": ()},
        )
        corpora[place] = Corpus(place, ShardSource(place), manifest)
    return make_timeline(run, phases, corpora, BatchShape(1, world_size, 32))


def rates(timeline: Timeline, *steps: int) -> list[float]:
    return [round(timeline.lr_share(step), 6) for step in steps]


def test_bert_is_as_published() -> None:
    """Devlin et al. 2019, A.2."""
    timeline = timeline_of("bert.json")
    assert timeline.num_steps == 1_000_000
    assert [p.sequence_length for p in timeline.phases] == [128, 512]
    assert [p.num_steps for p in timeline.phases] == [900_000, 100_000]
    assert {s.shape.global_batch_size for p in timeline.phases for s in p.stages} == {256}
    steps = (5_000, 10_000, 505_000, 900_000, 900_001, 1_000_000)
    assert rates(timeline, *steps) == [0.5, 1.0, 0.5, 0.10101, 0.101009, 0.0]


def test_short_first_is_the_example_run() -> None:
    timeline = timeline_of("short_first.json")
    assert [(p.sequence_length, p.num_steps) for p in timeline.phases] == [
        (32, 2_000), (128, 5_400), (256, 2_200),
    ]  # fmt: skip
    batches = [p.stages[0].shape.global_batch_size for p in timeline.phases]
    assert batches == [128, 32, 16]
    tokens = [p.sequence_length * batch for p, batch in zip(timeline.phases, batches, strict=True)]
    assert len(set(tokens)) == 1
    assert rates(timeline, 250, 500, 7_400, 8_500, 9_600) == [0.5, 1.0, 1.0, 0.5, 0.0]


def test_the_small_budget_is_the_quickstart_with_all_its_steps() -> None:
    quickstart = recipe_of([phase.most_steps for phase in PHASES])["phases"]
    own = phases_of("small_budget.json")
    for phase, wanted in zip(own, quickstart, strict=True):
        assert (phase.name, phase.steps) == (wanted["name"], wanted["steps"])
        assert phase.train_batch_size == wanted["train_batch_size"]
        assert phase.masked_lm_prob == wanted["masked_lm_prob"] == 0.3
        assert phase.final_masked_lm_prob == wanted.get("final_masked_lm_prob", 0.0)
        (place,) = phase.shards
        assert wanted["shards"] == place.replace("data/", "data/quickstart/")
    assert own[-1].final_masked_lm_prob == 0.15
    assert rates(timeline_of("small_budget.json"), 50, 100, 800, 2_800, 4_800) == [
        0.5, 1.0, 1.0, 0.5, 0.0,
    ]  # fmt: skip


def test_the_quickstart_changes_only_its_last_phase_after_the_kill() -> None:
    before, after = recipe_of([60, 61, 40]), recipe_of([60, 61, 800])
    assert before.pop("decay_steps") == 40 and after.pop("decay_steps") == 800
    assert before.pop("phases")[:-1] == after.pop("phases")[:-1]
    assert before == after and before["warmup_steps"] == 15


def test_the_speed_run_ends_with_the_masks_of_the_held_out_samples() -> None:
    timeline = timeline_of("speedrun.json")
    assert [p.sequence_length for p in timeline.phases] == [16, 32, 128]
    assert [p.masked_lm_prob(1) for p in timeline.phases[:2]] == [0.3, 0.3]
    assert [p.masked_lm_prob(p.num_steps) for p in timeline.phases] == [0.3, 0.3, 0.15]
    assert rates(timeline, 100, 1_200, 1_700, 2_200) == [1.0, 1.0, 0.5, 0.0]


def test_the_english_speed_run_ends_with_the_longest_samples() -> None:
    timeline = timeline_of("speedrun_english.json")
    assert [p.sequence_length for p in timeline.phases] == [16, 32, 128, 256]
    assert [p.masked_lm_prob(p.num_steps) for p in timeline.phases] == [0.3, 0.3, 0.2, 0.15]
    assert rates(timeline, 100, 5_400, 9_400, 13_400) == [1.0, 1.0, 0.5, 0.0]


def test_one_gpu_has_half_a_million_tokens_a_step() -> None:
    timeline = timeline_of("one_gpu.json", 1)
    assert [(p.sequence_length, p.num_steps) for p in timeline.phases] == [
        (32, 1_000), (128, 17_000), (512, 2_000),
    ]  # fmt: skip
    batches = [p.stages[0].shape.global_batch_size for p in timeline.phases]
    assert batches == [8_192, 4_096, 1_024]
    assert [p.masked_lm_prob(p.num_steps) for p in timeline.phases] == [0.3, 0.15, 0.0]
    assert {s.shape.micro_batch_tokens for p in timeline.phases for s in p.stages} == {TO_BE_FOUND}
    assert rates(timeline, 250, 500, 14_000, 17_000, 20_000) == [0.5, 1.0, 1.0, 0.5, 0.0]


def test_the_decay_is_on_better_data() -> None:
    timeline = timeline_of("decay_on_better_data.json")
    long, decay = timeline.phases
    assert long.settings.shards.keys() == decay.settings.shards.keys()
    web = next(iter(long.settings.shards))
    assert sum(long.settings.shards.values()) == pytest.approx(1)
    assert sum(decay.settings.shards.values()) == pytest.approx(1)
    assert decay.settings.shards[web] < 0.5 < long.settings.shards[web]
    assert decay.num_steps == timeline.num_steps // 10
    steps = (1_000, 2_000, 180_000, 185_000, 200_000)
    assert rates(timeline, *steps) == [0.5, 1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_folders_are_those_that_prepare_shards_makes(name: str) -> None:
    """From one command each: of all lengths, or of a corpus with the usual length."""
    places = list(dict.fromkeys(place for phase in phases_of(name) for place in phase.shards))
    parts = [place.rpartition("_") for place in places]
    if parts[0][2].isdecimal():
        lengths = [int(length) for _, _, length in parts]
        made = resolve_data_sets(Path(parts[0][0]), None, {"sequence_length": lengths})
        assert places == [str(folder) for folder in made]
    else:
        for place in places:
            assert list(resolve_data_sets(Path(place), None, {})) == [Path(place)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [1, 2, 16])
def test_batches_fit_usual_numbers_of_ranks(name: str, world_size: int) -> None:
    if name == "speedrun_english.json":  # made for a core: its last batches have 8 samples
        world_size = min(world_size, 8)
    assert timeline_of(name, world_size).num_steps > 0


def test_all_are_tested() -> None:
    assert NAMES == [
        "bert.json", "decay_on_better_data.json", "one_gpu.json", "short_first.json",
        "small_budget.json", "speedrun.json", "speedrun_english.json",
    ]  # fmt: skip
