"""`compile_layers auto`: where layers are compiled, and what happens when a compiler fails."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dist_bert.model.bert import BertForPreTraining
from dist_bert.pretraining import trial
from dist_bert.pretraining.job import PretrainingJob
from tests.support.synthetic import TINY_MODEL, write_data_set
from tests.unit.pretraining.test_job import make_job

Layer = Callable[..., Any]


@pytest.mark.parametrize(
    ("setting", "stage", "has_gpu", "expected"),
    [
        ("auto", 0, True, True),
        ("auto", 2, True, True),
        ("auto", 3, True, False),
        ("auto", 2, False, False),
        ("true", 1, True, True),
        ("false", 1, True, False),
    ],
)
def test_auto_compiles_on_gpus_below_zero_3(
    tmp_path: Path, setting: str, stage: int, has_gpu: bool, expected: bool
) -> None:
    write_data_set(tmp_path / "shards")
    zero = {"zero_optimization": {"stage": stage}}
    job = make_job(tmp_path, "--compile_layers", setting, deepspeed=zero)
    assert job.compiles_layers(has_gpu) is expected
    job.check_device(has_gpu)


class Compiler:
    """In place of torch's: counts the calls of what it has compiled, or fails in the first."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.num_calls = 0

    def __call__(self, layer: Layer, **options: Any) -> Layer:
        def compiled(*arguments: Any, **named: Any) -> Any:
            self.num_calls += 1
            if self.error is not None:
                raise self.error
            return layer(*arguments, **named)

        assert options == {"dynamic": True}
        return compiled


@pytest.fixture
def job(tmp_path: Path) -> PretrainingJob:
    write_data_set(tmp_path / "shards")
    return make_job(tmp_path)


def try_out(
    job: PretrainingJob, compiler: Compiler, of_other_ranks: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[str]]:
    """An engine whose layers were compiled and tried, and what is said of it."""
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(trial, "first_problem", lambda problem: problem or of_other_ranks)
    engine = SimpleNamespace(module=BertForPreTraining(TINY_MODEL), device=torch.device("cpu"))
    engine.train = engine.module.train
    engine.module.encoder.compile_layers()
    said: list[str] = []
    assert trial.settled(job, engine, said.append, lambda doing: None) is job
    assert all(parameter.grad is None for parameter in engine.module.parameters())
    return engine, said


def test_layers_that_compile_stay_compiled(
    job: PretrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler()
    engine, said = try_out(job, compiler, "", monkeypatch)
    assert compiler.num_calls == 2 and not said and engine.module.encoder.are_layers_compiled


@pytest.mark.parametrize("is_own", [True, False])
def test_a_compiler_that_fails_on_any_rank_is_left_out(
    job: PretrainingJob, is_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler(RuntimeError("no C compiler\nfound") if is_own else None)
    other = "" if is_own else "RuntimeError: no C compiler found"
    engine, said = try_out(job, compiler, other, monkeypatch)
    assert said == [
        "compile_layers auto: the layers run uncompiled, because compiling fails"
        " (RuntimeError: no C compiler found)"
    ]
    assert not engine.module.encoder.are_layers_compiled
    num_calls = compiler.num_calls
    trial._pass_over(engine, trial._micro_batch(job.timeline.phases, 62))
    assert compiler.num_calls == num_calls, "the compiled layers are not called any more"


def test_an_error_of_the_layers_is_not_the_compiler_s(
    job: PretrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise ValueError("a fault of the model")

    monkeypatch.setattr(BertForPreTraining, "mlm_decoder_inputs", broken)
    with pytest.raises(ValueError, match="a fault of the model"):
        try_out(job, Compiler(), "", monkeypatch)


def test_a_device_without_memory_is_not_the_compiler_s_fault(
    job: PretrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        try_out(job, Compiler(torch.OutOfMemoryError("CUDA out of memory.")), "", monkeypatch)


def test_only_auto_is_tried(
    tmp_path: Path, job: PretrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, "--compile_layers", "true")
    compiler = Compiler(RuntimeError("no C compiler"))
    try_out(job, compiler, "", monkeypatch)
    assert compiler.num_calls == 0, "it fails in the first step, as it would without a trial"


def test_a_trial_is_needed_for_what_is_auto(
    tmp_path: Path, job: PretrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_tokens = make_job(tmp_path, "--micro_batch_tokens", "auto", "--compile_layers", "false")
    fixed = make_job(tmp_path, "--compile_layers", "true")
    for has_gpu, expected in ((False, [False, True, False]), (True, [True, True, False])):
        monkeypatch.setattr(trial, "has_gpu", lambda has_gpu=has_gpu: has_gpu)
        assert [trial.needs_trial(each) for each in (job, by_tokens, fixed)] == expected
