"""DeepSpeed's engine around a model, and the mean of its metrics over held-out batches."""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from dist_bert.checkpoint import fragments
from dist_bert.checkpoint.format import WEIGHT
from dist_bert.common.device import set_up_products
from dist_bert.common.errors import UserError
from dist_bert.data.batches import MicroBatch
from dist_bert.model.micro_batches import sum_of_shares
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.half_precision import step_plainly
from dist_bert.training.optimizer import parameter_groups
from dist_bert.training.optimizers.build import own_optimizer
from dist_bert.training.skipped_steps import judge_by_norm, skip_plain_updates


def build_engine(model: nn.Module, config: DeepSpeedConfig) -> Any:
    """DeepSpeed's engine around a model on the CPU in float32; called by all ranks together.

    Raises:
        UserError: DeepSpeed or its optimizer refuses a value of the JSON, on all ranks alike.
    """
    _import_muon()
    set_up_products(config.precision)
    values = {**config.values, "steps_per_print": 1 << 62}  # its console lines are ours to write
    own = own_optimizer(model, config)
    initial = {name: parameter.data for name, parameter in model.named_parameters()}  # float32
    if own is not None:
        del values["optimizer"]  # DeepSpeed has another one of this name
        values["zero_allow_untested_optimizer"] = True  # by DeepSpeed: tested here
    try:
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=own,
            model_parameters=None if own else parameter_groups(model, config.weight_decay),
            config=values,
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"DeepSpeed configuration: {' '.join(str(error).split())}") from None
    if own is not None:
        own.bind(list(fragments.places(engine)), not fragments.is_replicated(engine))
    if config.zero_stage == 0 and config.precision == "fp32":
        skip_plain_updates(engine)
    elif config.zero_stage == 0:
        step_plainly(engine)
    elif isinstance(engine.optimizer, DeepSpeedZeroOptimizer):
        judge_by_norm(engine)  # that of `data_types` grad_accum_dtype fp32 does it by itself
    if config.precision != "fp32":
        _start_exactly(engine, initial)
    return engine


def _start_exactly(engine: Any, initial: Mapping[str, Tensor]) -> None:
    """Undoes what DeepSpeed does to the float32 weights of a model in 16 bits.

    It makes them of weights that it has rounded. Without ZeRO it also takes a step to make the
    optimizer's state, at the peak learning rate, which applies the weight decay and is counted: the
    first update would be three quarters of its size.

    Args:
        engine: new.
        initial: name of a parameter -> its float32 weights.
    """
    for fragment in fragments.fragments(engine):
        whole = initial[fragment.name].view(-1)
        fragment.tensors[WEIGHT].copy_(whole.narrow(0, fragment.start, fragment.size))
    for state in engine.basic_optimizer.state.values():
        state.update({k: v.zero_() if torch.is_tensor(v) else 0 for k, v in state.items()})


def _import_muon() -> None:
    """Imports the optimizer that ZeRO compares with ours, without compiling its kernels.

    They are never run here, and torch's compiler takes a second or two of every start to import.
    """
    compile_kernel = compiler.compile
    compiler.compile = lambda: lambda kernel: kernel
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_kernel


def validate(engine: Any, batches: Iterable[MicroBatch]) -> dict[str, float]:
    """Mean metrics over the validation samples; every rank gets the same result."""
    engine.eval()
    total = sum_of_shares(engine, batches, engine.device)
    engine.train()
    dist.all_reduce(total)
    return dict(zip(engine.module.metric_names, total.tolist(), strict=True))
