"""Recipes: what a file of phases means, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.errors import UserError
from dist_bert.pretraining.recipe import Phase, resolve_run


def write(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def recipe(tmp_path: Path, phases: Any, **settings: Any) -> str:
    return write(tmp_path / "recipe.json", {"phases": phases, **settings})


def test_a_run_without_a_recipe_has_one_phase_of_its_settings() -> None:
    run, phases = resolve_run(None, {"shards": "data/a", "num_train_steps": 70_000, "seed": None})
    assert run.seed == 42
    assert phases == (Phase({"data/a": 1.0}, steps=70_000),)


def test_settings_come_from_recipe_then_run_json_then_flags(tmp_path: Path) -> None:
    place = recipe(
        tmp_path,
        [
            {"shards": "data/a", "samples": 100, "masked_lm_prob": 0.2},
            {"name": "end", "shards": {"data/b": 3, "data/c": 1}, "tokens": 9, "warmup_steps": 2,
             "schedule": "constant", "weights_by": "tokens"},
        ],
        seed=1, log_interval=2, validation_interval=3, masked_lm_prob=0.3,
    )  # fmt: skip
    config = write(tmp_path / "run.json", {"log_interval": 4, "validation_interval": 5})
    run, phases = resolve_run(config, {"recipe": place, "validation_interval": 6, "shards": None})
    assert (run.seed, run.log_interval, run.validation_interval) == (1, 4, 6)
    assert phases == (
        Phase({"data/a": 1.0}, "1", samples=100, masked_lm_prob=0.2),
        Phase(
            {"data/b": 3, "data/c": 1}, "end", "tokens", tokens=9, masked_lm_prob=0.3,
            schedule="constant", warmup_steps=2,
        ),
    )  # fmt: skip
    assert resolve_run(write(tmp_path / "r.json", {"recipe": place}), {})[1] == phases


def test_a_decay_longer_than_the_usual_run_is_the_phases_matter(tmp_path: Path) -> None:
    """Their steps are added up later, and checked then."""
    phases = [{"shards": "data/a", "steps": 3_000_000}]
    place = recipe(tmp_path, phases, schedule="wsd", warmup_steps=4, decay_steps=2_000_000)
    run, _ = resolve_run(None, {"recipe": place})
    assert run.decay_steps == 2_000_000


PHASE = {"shards": "data/a", "steps": 5}


@pytest.mark.parametrize(
    "phases,flags,message",
    [
        ([], {}, "recipe.json: phases: must be a list of at least one phase"),
        ({}, {}, "phases: must be a list"),
        (["x"], {}, "phase 1: must be a JSON object"),
        ([PHASE, {**PHASE, "step": 4}], {}, "phase 2: unknown key step; known: shards, name,"),
        ([{"shards": "a"}], {}, "phase 1 configuration: give its length once, as one of steps,"),
        ([{**PHASE, "tokens": 4}], {}, "give its length once"),
        ([{"steps": 5}], {}, "shards: must be a folder, or weights of folders"),
        ([{**PHASE, "shards": {"a": 0}}], {}, "shards: the weight of a is 0, must be above 0"),
        ([{**PHASE, "shards": {"a": "1"}}], {}, "the weight of a is '1'"),
        ([{**PHASE, "shards": {"a": float("inf")}}], {}, "the weight of a is inf"),
        ([{**PHASE, "shards": ["a"]}], {}, "shards = ['a']: must be dict"),
        ([{**PHASE, "lr_share": 0}], {}, "lr_share = 0.0: must be above 0 and at most 1"),
        ([{**PHASE, "warmup_steps": 3}], {}, "do nothing without a schedule of the phase's own"),
        ([{**PHASE, "schedule": "cosin"}], {}, "schedule = 'cosin': must be one of run, linear"),
        ([{**PHASE, "masked_lm_prob": 0.6}], {}, "masked_lm_prob = 0.6: must be 0 to 0.5"),
        ([{**PHASE, "final_masked_lm_prob": 0.1}], {}, "does nothing without masked_lm_prob"),
        ([{**PHASE, "masked_lm_prob": 0.1}], {"masks": "static"}, "needs fresh masks"),
        ([{**PHASE, "micro_batch_tokens": 9, "train_micro_batch_size_per_gpu": 2}], {}, "give one"),
        ([{**PHASE, "initial_batch_size": -4}], {}, "initial_batch_size = -4: must be at least 0"),
        ([{**PHASE, "train_batch_size": -1}], {}, "train_batch_size = -1: must be at least 0"),
        ([{**PHASE, "name": "2"}, PHASE], {}, "phase 2: name = '2': an earlier phase has it"),
        ([PHASE], {"shards": "data/x"}, "shards: is a matter of the phases; remove it"),
        ([PHASE], {"num_train_steps": 5}, "num_train_steps: is a matter of the phases"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, phases: Any, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        resolve_run(None, {"recipe": recipe(tmp_path, phases), **flags})
    assert message in str(caught.value) and "recipe.json" in str(caught.value)


def test_a_recipe_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recipe = 3: must be the path of a JSON file"):
        resolve_run(write(tmp_path / "run.json", {"recipe": 3}), {})
    with pytest.raises(UserError, match=r"missing\.json: cannot be read"):
        resolve_run(None, {"recipe": str(tmp_path / "missing.json")})
