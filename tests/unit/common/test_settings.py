"""Configuration: default < file < flag; every mistake is one line with all that is wrong."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from dist_bert.common.cli import Parser
from dist_bert.common.errors import UserError
from dist_bert.common.settings import (
    add_flags,
    flags_of,
    from_dict,
    raise_all,
    read_json,
    resolve,
    setting,
)
from dist_bert.model.config import ModelConfig
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.recipe import resolve_run
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.deepspeed_flags import add_deepspeed_flags, deepspeed_flags, with_values

CONFIGS = Path(__file__).parents[3] / "configs"


@dataclasses.dataclass(frozen=True)
class Oven:
    """A config with a field of every kind."""

    degrees: int = setting(180, "heat in degrees")
    hours: float = setting(0.5, "time, 100% of it")
    mode: str = setting("top", "where the heat comes from", ("top", "bottom"))
    fan: bool = setting(False, "whether air moves")
    max_loaves: int | None = setting(None, "null = as many as fit")
    minutes: int | Literal["auto"] = setting(0, "auto = until it is done")
    lamp: bool | Literal["auto"] = setting("auto", "auto = while the door is open")


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def parse(*flags: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_flags(parser, Oven)
    return flags_of(Oven, parser.parse_args(flags))


def test_a_flag_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    file = write(tmp_path / "oven.json", {"degrees": 200, "mode": "bottom"})
    assert resolve(Oven) == Oven()
    assert resolve(Oven, file) == Oven(degrees=200, mode="bottom")
    flags = parse("--degrees", "220", "--fan", "true")
    assert resolve(Oven, file, flags) == Oven(degrees=220, mode="bottom", fan=True)
    assert resolve(Oven, None, flags) == Oven(degrees=220, fan=True)


def test_a_flag_may_be_read_in_a_way_of_its_own() -> None:
    @dataclasses.dataclass(frozen=True)
    class Cake:
        layers: int = setting(2, "how many", parse=lambda text: len(text.split("+")))

    parser = argparse.ArgumentParser()
    add_flags(parser, Cake)
    assert flags_of(Cake, parser.parse_args([])) == {"layers": None}
    assert flags_of(Cake, parser.parse_args(["--layers", "nut+plum+nut"])) == {"layers": 3}


def test_a_flag_can_set_what_is_false_or_zero(tmp_path: Path) -> None:
    file = write(tmp_path / "oven.json", {"fan": True, "degrees": 200, "hours": 2.5})
    flags = parse("--fan", "false", "--degrees", "0", "--hours", "0")
    assert resolve(Oven, file, flags) == Oven(fan=False, degrees=0, hours=0.0)


def test_a_boolean_flag_alone_is_true() -> None:
    assert parse("--fan")["fan"] is True
    assert parse("--fan", "--degrees", "7")["fan"] is True
    assert parse("--fan", "FALSE")["fan"] is False


def test_a_setting_may_be_a_word_or_a_value(tmp_path: Path) -> None:
    assert (
        parse("--minutes", "auto")["minutes"] == "auto" and parse("--minutes", "7")["minutes"] == 7
    )
    for given, value in (("auto", "auto"), ("true", True), ("FALSE", False)):
        assert parse("--lamp", given)["lamp"] == value
    assert parse("--lamp", "--fan")["lamp"] is True
    file = write(tmp_path / "oven.json", {"minutes": "auto", "lamp": False})
    assert resolve(Oven, file) == Oven(minutes="auto", lamp=False)
    scripts = Parser()
    add_flags(scripts, Oven)
    assert scripts.parse_args(["--lamp", "auto"]).lamp == "auto"


def test_flags_have_the_types_of_their_fields(capsys: pytest.CaptureFixture[str]) -> None:
    given = parse("--degrees", "7", "--hours", "2", "--mode", "bottom", "--max_loaves", "3")
    expected = {"degrees": 7, "hours": 2.0, "mode": "bottom", "fan": None, "max_loaves": 3}
    assert given == {**expected, "minutes": None, "lamp": None}
    for wrong in (
        ("--degrees", "7.5"), ("--fan", "maybe"), ("--mode", "side"), ("--fan", "auto"),
        ("--minutes", "automatic"), ("--lamp", "dim"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            parse(*wrong)
        assert wrong[0] in capsys.readouterr().err


def test_help_shows_meaning_and_default_of_every_field() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Oven)
    text = " ".join(parser.format_help().split())
    assert "--hours HOURS time, 100% of it (default: 0.5)" in text
    assert "--mode {top,bottom} where the heat comes from (default: top)" in text
    assert "--fan [true|false] whether air moves (default: False)" in text
    assert "--lamp [auto|true|false] auto = while the door is open (default: auto)" in text


def test_an_unknown_key_lists_the_known_ones(tmp_path: Path) -> None:
    file = write(tmp_path / "oven.json", {"zeal": 1, "degree": 200})
    with pytest.raises(UserError) as caught:
        resolve(Oven, file)
    known = "degrees, hours, mode, fan, max_loaves, minutes, lamp"
    assert str(caught.value) == f"{file}: unknown key degree, zeal; known: {known}"


@pytest.mark.parametrize(
    "key,value,rule",
    [
        ("degrees", True, "must be int"),  # a bool is no int
        ("degrees", 7.0, "must be int"),
        ("degrees", "7", "must be int"),
        ("degrees", None, "must be int"),
        ("hours", "2", "must be float"),
        ("hours", False, "must be float"),
        ("mode", 1, "must be str"),
        ("mode", "side", "must be one of top, bottom"),
        ("fan", 1, "must be bool"),
        ("max_loaves", 2.5, "must be int or null"),
        ("minutes", "7", "must be int or auto"),
        ("minutes", None, "must be int or auto"),
        ("lamp", "true", "must be bool or auto"),
    ],
)
def test_a_value_of_a_wrong_kind_is_refused(
    tmp_path: Path, key: str, value: Any, rule: str
) -> None:
    file = write(tmp_path / "oven.json", {key: value})
    with pytest.raises(UserError) as caught:
        resolve(Oven, file)
    assert str(caught.value) == f"{file} configuration: {key} = {value!r}: {rule}"


def test_an_int_is_a_float_and_null_is_a_value_where_it_is_allowed(tmp_path: Path) -> None:
    oven = resolve(Oven, write(tmp_path / "oven.json", {"hours": 2, "max_loaves": None}))
    assert type(oven.hours) is float and oven.hours == 2.0 and oven.max_loaves is None


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "oven.json", {"degrees": "hot", "fan": 3, "mode": "side", "hours": 1})
    with pytest.raises(UserError) as caught:
        resolve(Oven, file)
    assert str(caught.value).count(": must be ") == 3
    with pytest.raises(UserError, match=r"^oven configuration: too hot; too long$"):
        raise_all("oven", ["too hot", "too long"])
    raise_all("oven", [])


def test_files_that_are_no_json_object_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json: cannot be read \(No such file"):
        read_json(tmp_path / "nowhere.json")
    path = tmp_path / "config.json"
    path.write_text('{"a": 1,}')
    with pytest.raises(UserError, match=r"config\.json: is not valid JSON \(.*line 1 column 9"):
        read_json(path)
    with pytest.raises(UserError, match=r"config\.json: holds a list, must hold a JSON object"):
        read_json(write(path, [1]))
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_json(path)


@pytest.mark.parametrize(
    "changes,messages",
    [
        ({"vocab_size": 0, "num_hidden_layers": -1}, ["vocab_size = 0: must", "layers = -1: must"]),
        ({"num_attention_heads": 7}, ["hidden_size = 768 is not divisible by", "heads = 7"]),
        ({"num_attention_heads": 0}, ["num_attention_heads = 0: must be at least 1"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers = 1000000000: must", "at most 1,024"]),
        ({"hidden_size": 10**9, "vocab_size": 10**9}, ["at most 131,072", "at most 16,777,216"]),
        ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob = 1.0: must be at least 0 and below"]),
        ({"attention_probs_dropout_prob": -0.1}, ["attention_probs_dropout_prob = -0.1: must"]),
        ({"hidden_dropout_prob": float("nan")}, ["hidden_dropout_prob = nan"]),
    ],
)
def test_models_that_cannot_be_are_refused(changes: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(UserError, match=r"^model configuration: ") as caught:
        ModelConfig(**changes)
    for message in messages:
        assert message in str(caught.value)


DEEP: Any = json.loads("[" * 800 + "]" * 800)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": DEEP}, r"seed = \[\[\[.*\.\.\.\]+: must be int$"),
        ({"shards": {"a" * 10**6: 1}}, "shards = .{1,250}: must be str$"),
        ({"schedule": "x" * 10**6}, "schedule = .{1,250}: must be one of linear, "),
        ({"a\nb": 1}, r"unknown key 'a\\nb'; known: "),
        ({"max_minutes": float("nan")}, "max_minutes = nan: must be a finite number"),
        ({"max_minutes": float("inf")}, "max_minutes = inf: must be a finite number"),
        ({"max_minutes": 10**400}, "max_minutes = inf: must be a finite number"),
        ([1], r"a\.json: holds \[1\], must hold a JSON object"),
    ],
)
def test_strange_values_are_refused_in_a_short_line(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        from_dict(PretrainingConfig, values, "a.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2_000


def test_json_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for begin, end in (("[", "]"), ('{"a":', "}")):
        path.write_text(f'{{"a": {begin * 100_000}1{end * 100_000}}}')
        with pytest.raises(UserError, match=r"config\.json: is not valid JSON \(.*recursion"):
            read_json(path)


@pytest.mark.parametrize(
    "changes,messages",
    [
        ({"num_train_steps": 0, "warmup_steps": 0}, ["num_train_steps = 0: must be at least 1"]),
        ({"warmup_steps": -1, "keep_checkpoints": 0}, ["warmup_steps = -1", "checkpoints = 0"]),
        ({"num_train_steps": 9}, ["warmup_steps = 10000 is above num_train_steps = 9"]),
        ({"min_lr_ratio": 1.5}, ["min_lr_ratio = 1.5: must be 0 to 1"]),
        ({"average_decay": 1.0}, ["average_decay = 1.0: must be 0 to below 1"]),
        ({"init_average": True}, ["init_average = True: does nothing without init_from"]),
        ({"schedule": "wsd"}, ["decay_steps = 0: wsd needs"]),
        ({"schedule": "wsd", "decay_steps": 990_001}, ["decay_steps = 990001: wsd needs"]),
        (
            {"schedule": "cosine", "decay_steps": 9},
            ["decay_steps = 9: does nothing with schedule = cosine, only with wsd and wsd_sqrt"],
        ),
        (
            {"schedule": "constant", "min_lr_ratio": 0.1},
            ["min_lr_ratio = 0.1: does nothing with schedule = constant"],
        ),
        ({"log_interval": 0}, ["log_interval = 0"]),
        ({"checkpoint_interval": 0}, ["checkpoint_interval = 0"]),
        ({"validation_interval": -1, "validation_samples": -1}, ["interval = -1", "samples = -1"]),
        ({"output_dir": "s3://bucket/run"}, ["output_dir = s3://bucket/run: is a URL"]),
    ],
)
def test_runs_that_cannot_be_are_refused(changes: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(UserError, match=r"^run configuration: ") as caught:
        PretrainingConfig(**changes)
    for message in messages:
        assert message in str(caught.value)


def test_the_limits_themselves_are_allowed() -> None:
    PretrainingConfig(num_train_steps=7, warmup_steps=7, validation_interval=0, min_lr_ratio=1.0)
    PretrainingConfig(num_train_steps=7, warmup_steps=3, schedule="wsd", decay_steps=4)
    ModelConfig(hidden_dropout_prob=0.0, vocab_size=1, hidden_size=12)


def test_derived_sizes() -> None:
    sizes = {n: ModelConfig(vocab_size=n).padded_vocab_size for n in (1, 64, 65, 30_522, 32_000)}
    assert sizes == {1: 64, 64: 64, 65: 128, 30_522: 30_528, 32_000: 32_000}
    assert ModelConfig(hidden_size=24, num_attention_heads=4).head_size == 6


# Layers, hidden size, heads: Devlin et al. 2019 and, below base, Turc et al. 2019, "Well-read
# students learn better"; feed-forward layers 4 times the hidden size, heads of 64.
PUBLISHED = {
    "bert_tiny": (2, 128, 2),
    "bert_mini": (4, 256, 4),
    "bert_small": (4, 512, 8),
    "bert_medium": (8, 512, 8),
    "bert_base": (12, 768, 12),
    "bert_large": (24, 1_024, 16),
}


@pytest.mark.parametrize("name", [path.stem for path in (CONFIGS / "model").glob("*.json")])
def test_model_files_are_complete_and_resolve(name: str) -> None:
    model = resolve(ModelConfig, CONFIGS / "model" / f"{name}.json")
    assert model.num_hidden_layers > 0
    if name in PUBLISHED:
        sizes = (model.num_hidden_layers, model.hidden_size, model.num_attention_heads)
        assert sizes == PUBLISHED[name]
        assert model.intermediate_size == 4 * model.hidden_size
        assert model.max_position_embeddings == 512
        assert model.vocab_size == 30_522


def test_the_textbooks_model_is_base_with_relu_in_the_mlm_head() -> None:
    model = resolve(ModelConfig, CONFIGS / "model" / "bert_textbook.json")
    assert model == ModelConfig(hidden_act="gelu", mlm_hidden_act="relu")


def test_every_published_size_has_its_file_and_base_is_the_default() -> None:
    assert {path.stem for path in (CONFIGS / "model").glob("*.json")} >= PUBLISHED.keys()
    assert resolve(ModelConfig, CONFIGS / "model" / "bert_base.json") == ModelConfig()


@pytest.mark.parametrize("stage", range(4))
def test_deepspeed_files_load_with_the_stage_of_their_name(stage: int) -> None:
    config = DeepSpeedConfig.load(CONFIGS / f"zero{stage}.json", world_size=4)
    assert config.zero_stage == stage
    assert config.batch_shape.global_batch_size == 256


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("zero*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_every_deepspeed_file_loads(path: Path, world_size: int) -> None:
    assert DeepSpeedConfig.load(path, world_size).batch_shape.world_size == world_size


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "recipes").glob("*.json")), ids=lambda path: path.stem
)
def test_every_recipe_resolves(path: Path) -> None:
    resolve_run(None, {"recipe": str(path)})


def deepspeed_values(*flags: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_deepspeed_flags(parser, "configs/zero2.json")
    return deepspeed_flags(parser.parse_args(flags))


def test_flags_replace_values_of_the_deepspeed_json() -> None:
    assert deepspeed_values() == {}
    values = deepspeed_values(
        "--lr", "3e-4", "--train_batch_size", "48", "--train_micro_batch_size_per_gpu", "6",
        "--deepspeed", "zero_optimization.stage=3", "--deepspeed", "bf16.enabled=true",
        "--deepspeed", "optimizer.type=Adam", "--deepspeed", "optimizer.params.betas=[0.9, 0.98]",
        "--deepspeed", "optimizer.params.text=a=b",
    )  # fmt: skip
    given: dict[str, Any] = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "eps": 1e-6}}}
    before = json.dumps(given)
    assert with_values(given, values) == {
        "optimizer": {
            "type": "Adam",
            "params": {"lr": 3e-4, "eps": 1e-6, "betas": [0.9, 0.98], "text": "a=b"},
        },
        "train_batch_size": 48,
        "train_micro_batch_size_per_gpu": 6,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": True},
    }
    assert json.dumps(given) == before


def test_values_that_cannot_be_set_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, message in (
        ("stage", "must be KEY=VALUE, such as optimizer.params.lr=1e-4"),
        ("=3", "must be KEY=VALUE"),
        ("optimizer..lr=3", "must be KEY=VALUE"),
        ("bf16.enabled=False", "JSON has true, false and null"),
    ):
        with pytest.raises(SystemExit):
            deepspeed_values("--deepspeed", wrong)
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match=r"optimizer\.params\.lr: is given twice"):
        deepspeed_values("--lr", "1e-3", "--deepspeed", "optimizer.params.lr=1e-4")
    with pytest.raises(UserError, match=r"optimizer\.type is 'AdamW', no JSON object"):
        with_values({"optimizer": {"type": "AdamW"}}, {"optimizer.type.name": 1})
