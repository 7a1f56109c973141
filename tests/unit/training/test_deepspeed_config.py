"""The DeepSpeed JSON: batch sizes solved, wrong training refused, all problems at once."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.constants import GRADIENT_CLIPPING_DEFAULT

from dist_bert.common.errors import UserError
from dist_bert.data.batches import TO_BE_FOUND, BatchShape
from dist_bert.training.deepspeed_config import DeepSpeedConfig

TOTAL, MICRO = "train_batch_size", "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"
ADAMW = {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.01}}
LAMB = {"type": "Lamb", "params": {"lr": 1e-4}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deepspeed.json"


def load(path: Path, world_size: int = 1, **values: Any) -> DeepSpeedConfig:
    """A config with a valid optimizer and batch size unless `values` has others; None removes."""
    values = {TOTAL: 24, "optimizer": ADAMW, **values}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return DeepSpeedConfig.load(path, world_size)


def problem(path: Path, world_size: int = 1, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(path, world_size, **values)
    message = str(caught.value)
    assert message.startswith(f"{path} configuration: ") and "\n" not in message
    return message.removeprefix(f"{path} configuration: ")


@pytest.mark.parametrize(
    "sizes,world_size,expected",  # (accumulation, world size, micro-batch)
    [
        ({TOTAL: 24}, 1, (1, 1, 24)),
        ({TOTAL: 24}, 3, (1, 3, 8)),
        ({TOTAL: 24, MICRO: 4}, 3, (2, 3, 4)),
        ({TOTAL: 24, MICRO: 24}, 1, (1, 1, 24)),
        ({TOTAL: 24, ACCUMULATION: 4}, 3, (4, 3, 2)),
        ({TOTAL: 24, ACCUMULATION: 4}, 1, (4, 1, 6)),
        ({TOTAL: 24, MICRO: 4, ACCUMULATION: 2}, 3, (2, 3, 4)),
        ({TOTAL: None, MICRO: 4}, 3, (1, 3, 4)),
        ({TOTAL: None, MICRO: 4, ACCUMULATION: 5}, 3, (5, 3, 4)),
    ],
)
def test_batch_sizes_are_solved(
    path: Path, sizes: dict[str, Any], world_size: int, expected: tuple[int, int, int]
) -> None:
    config = load(path, world_size, **sizes)
    shape = config.batch_shape
    assert (shape.accumulation_steps, shape.world_size, shape.micro_batch_size) == expected
    accumulation, _, micro = expected
    filled = {TOTAL: accumulation * world_size * micro, MICRO: micro, ACCUMULATION: accumulation}
    assert {key: config.values[key] for key in filled} == filled
    assert config.values["optimizer"] == ADAMW


@pytest.mark.parametrize(
    "sizes,world_size,message",
    [
        ({TOTAL: 25, MICRO: 4}, 3, f"{MICRO} = 4 x 3 ranks = 12: set it to 24 or 36,"),
        ({TOTAL: 5, MICRO: 4}, 3, f"{MICRO} = 4 x 3 ranks = 12: set it to 12,"),
        ({TOTAL: 25, ACCUMULATION: 4}, 2, f"2 ranks x {ACCUMULATION} = 4 = 8: set it to 24 or 32,"),
        ({TOTAL: 10}, 3, "3 ranks = 3: set it to 9 or 12,"),
        ({TOTAL: 2}, 3, "3 ranks = 3: set it to 3,"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused_with_the_nearest_that_can(
    path: Path, sizes: dict[str, Any], world_size: int, message: str
) -> None:
    found = problem(path, world_size, **sizes)
    assert found == (
        f"{TOTAL} = {sizes[TOTAL]} is not a multiple of {message} or change the others"
    )


def test_three_sizes_that_disagree_are_refused(path: Path) -> None:
    found = problem(path, 3, **{TOTAL: 48, MICRO: 4, ACCUMULATION: 2})
    assert found == (
        f"{TOTAL} = 48 is not {MICRO} = 4 x 3 ranks x {ACCUMULATION} = 2 = 24: set it to 24,"
        " or change the others"
    )


def test_every_remedy_works(path: Path) -> None:
    num_refused = 0
    for total, micro, accumulation, world_size in itertools.product(
        (1, 2, 5, 12, 17, 30), (None, 1, 3, 4), (None, 1, 2, 3), (1, 2, 3)
    ):
        sizes = {TOTAL: total, MICRO: micro, ACCUMULATION: accumulation}
        product = (micro or 1) * (accumulation or 1) * world_size
        is_fixed = micro is not None and accumulation is not None
        if total == product if is_fixed else total % product == 0:
            assert load(path, world_size, **sizes).batch_shape.global_batch_size == total
            continue
        num_refused += 1
        remedies = re.search(r"set it to (\d+)(?: or (\d+))?,", problem(path, world_size, **sizes))
        assert remedies is not None
        for remedy in filter(None, remedies.groups()):
            load(path, world_size, **{**sizes, TOTAL: int(remedy)})
    assert num_refused > 100


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_a_micro_batch_of_auto_is_a_number_of_tokens_to_be_found(
    path: Path, world_size: int
) -> None:
    config = load(path, world_size, **{MICRO: "auto"})
    assert config.batch_shape == BatchShape(24 // world_size, world_size, 1, TO_BE_FOUND)
    filled = {TOTAL: 24, MICRO: 1, ACCUMULATION: 24 // world_size}
    assert {key: config.values[key] for key in filled} == filled, "DeepSpeed takes numbers alone"


def test_a_micro_batch_of_auto_leaves_no_accumulation_to_be_given(path: Path) -> None:
    found = problem(path, 1, **{MICRO: "auto", ACCUMULATION: 2})
    assert found == f"{ACCUMULATION} = 2: does nothing where {MICRO} = auto; remove it"
    found = problem(path, 5, **{MICRO: "auto"})
    assert found == (
        f"{TOTAL} = 24 is not a multiple of 5 ranks = 5: set it to 20 or 25, or change the others"
    )
    found = problem(path, 1, **{MICRO: "auto", TOTAL: None})
    assert found == f"{TOTAL}: must be given, in samples over all ranks"


@pytest.mark.parametrize(
    "key,value",
    [
        *itertools.product((TOTAL, MICRO, ACCUMULATION), (0, -3, 2.0, "8", True)),
        (TOTAL, "auto"),
        (ACCUMULATION, "auto"),
    ],
)
def test_sizes_that_are_no_counts_are_refused(path: Path, key: str, value: Any) -> None:
    assert problem(path, **{key: value}).startswith(f"{key} = {value!r}: must be a whole number")


def test_a_batch_size_must_be_given(path: Path) -> None:
    for sizes in ({TOTAL: None}, {TOTAL: None, ACCUMULATION: 2}):
        found = problem(path, 1, **sizes)
        assert found == f"{TOTAL}: must be given, in samples over all ranks"


def test_an_unknown_key_lists_the_known_ones(path: Path) -> None:
    found = problem(path, gradient_clip=1.0, train_batch=8)
    assert found.startswith("unknown key gradient_clip, train_batch; known: train_batch_size, ")
    assert " gradient_clipping, " in found and " zero_optimization, " in found


@pytest.mark.parametrize(
    "key,reason",
    [
        ("scheduler", "the learning rate is a run setting: schedule, warmup_steps"),
        ("tensorboard", "TensorBoard is always written, to OUTPUT_DIR/tensorboard"),
        ("steps_per_print", "the console's interval is the run setting log_interval"),
    ],
)
def test_what_has_its_home_elsewhere_is_refused_with_the_place(
    path: Path, key: str, reason: str
) -> None:
    found = problem(path, 1, **{key: {}})
    assert found.startswith(f"{key}: {reason}") and found.endswith("; remove it")
    assert "unknown" not in found


@pytest.mark.parametrize("kind", ["Lamb", "LAMB"])
def test_an_optimizer_of_ours_needs_whole_parameters(path: Path, kind: str) -> None:
    optimizer = {**LAMB, "type": kind}
    found = problem(path, optimizer=optimizer, zero_optimization={"stage": 3})
    assert found.startswith("optimizer type Lamb with ZeRO 3 would train wrongly: it needs whole")
    assert found.endswith("use ZeRO 0, 1, 2, or AdamW")
    for stage, precision in itertools.product(range(3), ("bf16", "fp16")):
        zero = {"stage": stage}
        for is_on in (False, True):
            values: dict[str, Any] = {precision: {"enabled": is_on}}
            assert load(path, optimizer=optimizer, zero_optimization=zero, **values).peak_lr == 1e-4
    offload = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    found = problem(path, optimizer=optimizer, zero_optimization=offload)
    assert found.startswith("optimizer type Lamb with offload_optimizer: is not supported")
    found = problem(path, optimizer=optimizer, torch_autocast={"enabled": True, "dtype": "float16"})
    assert found.startswith("optimizer type Lamb with torch_autocast in float16: its loss scale")
    assert load(path, zero_optimization=offload).zero_stage == 2  # AdamW may


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"max_coeff": 10},
            "optimizer type Lamb: unknown params max_coeff; known: lr, weight_deca",
        ),
        ({"betas": [0.9]}, "optimizer params betas = [0.9]: must be two numbers from 0 to below 1"),
        ({"betas": [0.9, 1]}, "optimizer params betas = [0.9, 1]: must be two numbers from 0 to"),
        ({"eps": "1e-6"}, "optimizer params eps = '1e-6': must be a number of at least 0"),
        ({"eps": -1}, "optimizer params eps = -1: must be a number of at least 0"),
        ({"max_trust_ratio": True}, "optimizer params max_trust_ratio = True: must be a number"),
        ({"bias_correction": 1}, "optimizer params bias_correction = 1: must be true or false"),
        (
            {"newton_schulz_steps": 0},
            "optimizer params newton_schulz_steps = 0: must be a whole num",
        ),
        (
            {"matrix_weight_decay": None, "momentum": "x"},
            "optimizer params momentum = 'x': must be",
        ),
    ],
)
def test_settings_of_our_optimizers_are_checked(
    path: Path, params: dict[str, Any], message: str
) -> None:
    kind = "Muon" if "newton_schulz_steps" in params or "momentum" in params else "Lamb"
    optimizer = {"type": kind, "params": {"lr": 1e-3, **params}}
    assert problem(path, optimizer=optimizer).startswith(message)


@pytest.mark.parametrize("value", [-1e-4, float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", [ADAMW, LAMB])
def test_a_learning_rate_is_finite_and_not_negative(
    path: Path, optimizer: dict[str, Any], value: float
) -> None:
    params = {**optimizer["params"], "lr": value}
    found = problem(path, optimizer={**optimizer, "params": params})
    assert found == f"optimizer params lr = {value!r}: must be a finite number of at least 0"


@pytest.mark.parametrize("value", [-1.0, float("inf"), "0.1", None, True])
def test_numbers_that_are_computed_with_here_are_checked(path: Path, value: Any) -> None:
    params = {**ADAMW["params"], "weight_decay": value}  # type: ignore[dict-item]
    values = {TOTAL: 24, "optimizer": {**ADAMW, "params": params}, "gradient_clipping": value}
    with pytest.raises(UserError) as caught:
        DeepSpeedConfig.from_values(values, "case", 1)
    rule = f"{value!r}: must be a finite number of at least 0"
    expected = f"optimizer params weight_decay = {rule}; gradient_clipping = {rule}"
    assert str(caught.value) == f"case configuration: {expected}"


@pytest.mark.parametrize("stage", [-1, 4, "two", 2.0, True, None])
def test_a_stage_is_one_of_four(path: Path, stage: Any) -> None:
    found = problem(path, zero_optimization={"stage": stage})
    assert found == f"zero_optimization stage = {stage!r}: must be 0, 1, 2 or 3"


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Lion", "DeepSpeed has it for GPUs alone"),
        ("OneBitAdam", "DeepSpeed 0.19 has it no longer"),
        ("OneBitLamb", "DeepSpeed 0.19 has it no longer"),
        ("ZeroOneAdam", "DeepSpeed 0.19 has it no longer"),
        ("SGD", "is not known here; use AdamW (known, too: Adam, Lamb, StableAdamW, Muon)"),
    ],
)
def test_optimizers_that_cannot_work_are_refused_with_the_reason(
    path: Path, kind: str, reason: str, stage: int
) -> None:
    optimizer = {"type": kind, "params": {"lr": 1e-4}}
    found = problem(path, optimizer=optimizer, zero_optimization={"stage": stage})
    assert found.startswith(f"optimizer type {kind}: {reason}") and found.count("; use AdamW") == 1


def test_fp16_is_refused_without_a_gpu(path: Path) -> None:
    config = load(path, fp16={"enabled": True})
    with pytest.raises(UserError) as caught:
        config.check_device(has_gpu=False)
    assert "fp16 is enabled, which needs a GPU, and there is none here" in str(caught.value)
    assert "\n" not in str(caught.value)
    config.check_device(has_gpu=True)
    load(path, bf16={"enabled": True}).check_device(has_gpu=False)
    load(path, optimizer=LAMB).check_device(has_gpu=False)


SHIPPED = sorted((Path(__file__).parents[3] / "configs").glob("*.json"))


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_configurations_are_accepted(shipped: Path) -> None:
    config = DeepSpeedConfig.load(shipped, 4)
    stage, _, rest = shipped.stem.split("zero")[1].partition("_")
    assert config.zero_stage == int(stage)
    assert config.precision == (rest if rest in ("fp16", "fp32") else "bf16")
    assert ("offload_optimizer" in config.values["zero_optimization"]) == (rest == "offload")
    assert config.values["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    "optimizer",
    [
        None,
        {},
        {"type": "AdamW"},
        {"type": "AdamW", "params": {}},
        {"type": "AdamW", "params": {"lr": "1e-4"}},
        {"type": "AdamW", "params": {"lr": True}},
        {"params": {"lr": 1e-4}},
    ],
)
def test_an_optimizer_needs_type_and_lr(path: Path, optimizer: Any) -> None:
    found = problem(path, optimizer=optimizer)
    assert found.startswith("optimizer: must be given with its type and peak lr, as {")


@pytest.mark.parametrize(
    "values,message",
    [
        ({"optimizer": "AdamW"}, "optimizer = 'AdamW': must be a JSON object"),
        ({"optimizer": {"params": 3}}, "optimizer params = 3: must be a JSON object"),
        ({"bf16": True}, "bf16 = True: must be a JSON object"),
        ({"fp16": [], "zero_optimization": 2}, "fp16 = []: must be a JSON object; zero_opt"),
    ],
)
def test_a_section_that_is_no_object_is_named(
    path: Path, values: dict[str, Any], message: str
) -> None:
    assert problem(path, **values).startswith(message)


def test_precision_is_one_of_three(path: Path) -> None:
    on, off = {"enabled": True}, {"enabled": False}
    assert load(path).precision == "fp32"
    assert load(path, bf16=off, fp16=off).precision == "fp32"
    assert load(path, bf16=on).precision == "bf16"
    assert load(path, bf16=off, fp16=on).precision == "fp16"
    assert problem(path, bf16=on, fp16=on) == "bf16 and fp16 are both enabled: choose one"


def test_facts_of_the_optimizer(path: Path) -> None:
    config = load(path)
    assert (config.peak_lr, config.weight_decay) == (1e-4, 0.01)
    assert load(path, optimizer={"type": "Adam", "params": {"lr": 1}}).weight_decay == 0.0


def test_all_problems_come_at_once(path: Path) -> None:
    on = {"enabled": True}
    found = problem(
        path, 2, **{TOTAL: 7}, optimizer={"type": "Lamb"}, bf16=on, fp16=on, scheduler={}, typo=1,
        zero_optimization={"stage": 3},
    )  # fmt: skip
    parts = ("scheduler: ", "unknown key typo", "optimizer: must", "type Lamb with ZeRO 3", "both")
    for part in (*parts, f"{TOTAL} = 7 is not a multiple of 2 ranks"):
        assert part in found


def test_a_missing_or_broken_file_is_named(path: Path) -> None:
    with pytest.raises(UserError, match=r"deepspeed\.json: cannot be read"):
        DeepSpeedConfig.load(path, 1)
    path.write_text("{")
    with pytest.raises(UserError, match=r"deepspeed\.json: is not valid JSON"):
        DeepSpeedConfig.load(path, 1)


def test_clipping_that_is_not_given_is_deepspeeds(path: Path) -> None:
    assert load(path).gradient_clipping == GRADIENT_CLIPPING_DEFAULT
    assert load(path, gradient_clipping=0).gradient_clipping == 0.0
