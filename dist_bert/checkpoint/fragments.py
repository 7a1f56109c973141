"""Finds the float32 weights and the optimizer's state of every parameter in this rank's memory.

ZeRO cuts the parameters into flat pieces that depend on stage and number of ranks. Here a piece is
identified by the parameter's name and its place in it, so that a checkpoint of named pieces
(fragments) has no layout: it can be read by any number of ranks at any stage
(`dist_bert.checkpoint.checkpoint`).

This is the one module that knows how DeepSpeed's optimizers keep their flat tensors.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from dist_bert.checkpoint.format import AVERAGE, WEIGHT, Fragment
from dist_bert.checkpoint.places import Place

# Of a loss scaler whose scale moves; what else it keeps are settings of the JSON, also at a resume.
_SCALE_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def fragments(engine: Any) -> list[Fragment]:
    """All fragments that this rank holds, as views of what the optimizer works on.

    With the state that the optimizer has for them by now: see `create_states`.
    """
    states, own_averages = engine.basic_optimizer.state, averages(engine)
    found = []
    for place in places(engine):
        tensors = {WEIGHT: place.owner.data}
        if place.owner in own_averages:
            tensors[AVERAGE] = own_averages[place.owner]
        for key, value in states.get(place.owner, {}).items():
            if torch.is_tensor(value) and value.shape == place.owner.shape:
                tensors[key] = value.data
        views = {k: t.view(-1).narrow(0, place.offset, place.size) for k, t in tensors.items()}
        found.append(Fragment(place.name, place.start, views))
    return found


def averages(engine: Any) -> dict[Tensor, Tensor]:
    """The averages of what the optimizer works on (`dist_bert.training.weight_average`)."""
    found: dict[Tensor, Tensor] = getattr(engine, "weight_averages", {})
    return found


def places(engine: Any) -> Iterator[Place]:
    """The place of every fragment that this rank holds, in the order of the model's parameters."""
    wrapper = engine.optimizer
    flat = _flat_places(wrapper)
    cut = _cut_places(wrapper)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if isinstance(wrapper, DeepSpeedZeroOptimizer_Stage3):
            group, offset, size = wrapper.grad_position[wrapper.get_param_id(parameter)]
            start = size * dist.get_rank()  # equal parts, the last ones padded
            size = max(0, min(size, parameter.ds_numel - start))
            owner = wrapper.fp32_partitioned_groups_flat[group]
        elif isinstance(wrapper, DeepSpeedZeroOptimizer):
            start, owner, offset, size = cut[parameter]
        elif isinstance(wrapper, BF16_Optimizer):
            mapping = parameter._hp_mapping
            if mapping is None:  # all of it is on other ranks
                continue
            start, size = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            owners = engine.basic_optimizer.param_groups[mapping.param_group_index]["params"]
            owner, offset = owners[0], mapping.hp_fragment_address.start
        else:
            start, size = 0, parameter.numel()
            owner, offset = flat.get(parameter, (parameter, 0))
        if size:
            yield Place(name, int(start), owner, int(offset), int(size))


def is_replicated(engine: Any) -> bool:
    """Whether every rank holds all fragments: without ZeRO."""
    sharding = (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3, BF16_Optimizer)
    return not isinstance(engine.optimizer, sharding)


def create_states(engine: Any) -> None:
    """Makes the inner optimizer allocate its state now, which it does at its first step.

    By a step with gradients and learning rate of zero, which changes no weight.
    """
    inner, wrapper = engine.basic_optimizer, engine.optimizer
    rates = [group["lr"] for group in inner.param_groups]
    for group in inner.param_groups:
        group["lr"] = 0.0
    owners = _owners(engine)
    gradients = [owner.grad for owner in owners]
    for owner in owners:
        owner.grad = torch.zeros_like(owner)
    if isinstance(wrapper, DeepSpeedZeroOptimizer_Stage3):
        for index in range(len(owners)):
            wrapper._optimizer_step(index)
    else:
        inner.step()
    for owner, gradient in zip(owners, gradients, strict=True):
        owner.grad = gradient
    for group, rate in zip(inner.param_groups, rates, strict=True):
        group["lr"] = rate


def refresh_weights(engine: Any) -> None:
    """Gives the model the float32 weights of the fragments, in its precision, on all ranks."""
    wrapper = engine.optimizer
    if isinstance(wrapper, DeepSpeedZeroOptimizer_Stage3):
        for index in range(len(_owners(engine))):
            wrapper._reassign_or_swap_out_partitioned_parameters(index)
    elif isinstance(wrapper, DeepSpeedZeroOptimizer | BF16_Optimizer):
        wrapper.update_lp_params()
    elif wrapper is not engine.basic_optimizer:
        for fragment in fragments(engine):
            parameter = engine.module.get_parameter(fragment.name)
            parameter.data.copy_(fragment.tensors[WEIGHT].view(parameter.shape))


def numbers(engine: Any) -> dict[str, dict[str, float]]:
    """What optimizer and loss scaler keep besides tensors: counts of steps, the scale."""
    found: dict[str, dict[str, float]] = {"state": {}, "group": {}, "loss_scaler": {}}
    inner = engine.basic_optimizer
    # Alike for all, but DeepSpeed's FusedAdam without ZeRO counts in a group's last one alone.
    for state in list(inner.state.values())[-1:]:
        found["state"] = {k: float(v) for k, v in state.items() if _is_number(v)}
    if "step" in inner.param_groups[0]:  # DeepSpeed's own Adam counts there
        found["group"] = {"step": float(inner.param_groups[0]["step"])}
    found["loss_scaler"] = {k: v for k, v in _loss_scaler(engine).items() if k in _SCALE_STATE}
    return found


def set_numbers(engine: Any, saved: dict[str, dict[str, float]]) -> None:
    """Puts back what `numbers` gave; called when the optimizer has its states."""
    inner = engine.basic_optimizer
    for state in inner.state.values():
        for key, value in saved["state"].items():
            if torch.is_tensor(state[key]):
                state[key].fill_(value)
            else:
                state[key] = type(state[key])(value)
    for group in inner.param_groups:
        group.update({key: int(value) for key, value in saved["group"].items()})
    scaler = _loss_scaler(engine)
    known = scaler.keys() & _SCALE_STATE  # earlier versions have saved the settings, too
    scaler.update({k: v for k, v in saved["loss_scaler"].items() if k in known})


def _is_number(value: Any) -> bool:
    if torch.is_tensor(value):
        return value.ndim == 0
    return isinstance(value, int | float) and not isinstance(value, bool)


def _loss_scaler(engine: Any) -> dict[str, Any]:
    """The attributes of the loss scaler; none where nothing is scaled, or by a fixed scale."""
    if not engine.fp16_enabled():
        return {}
    wrapper = engine.optimizer
    scaler = getattr(wrapper, "loss_scaler", None) or getattr(wrapper, "loss_scale_config", None)
    is_moving = getattr(scaler, "dynamic", False) or getattr(scaler, "dynamic_loss_scale", False)
    return vars(scaler) if is_moving else {}


def _owners(engine: Any) -> list[Tensor]:
    """The tensors that the inner optimizer works on, in DeepSpeed's order."""
    wrapper = engine.optimizer
    if isinstance(wrapper, DeepSpeedZeroOptimizer_Stage3):
        return list(wrapper.fp32_partitioned_groups_flat)
    return [p for group in engine.basic_optimizer.param_groups for p in group["params"]]


def _cut_places(wrapper: Any) -> dict[Tensor, tuple[int, Tensor, int, int]]:
    """At ZeRO 1 and 2: parameter -> first element, owner, place in it, elements on this rank.

    Not from DeepSpeed's own map, which forgets that `round_robin_gradients` reorders parameters.
    """
    places: dict[Tensor, tuple[int, Tensor, int, int]] = {}
    if isinstance(wrapper, DeepSpeedZeroOptimizer):
        for group, owner in enumerate(wrapper.single_partition_of_fp32_groups):
            begin = dist.get_rank() * wrapper.partition_size[group]
            end = begin + wrapper.partition_size[group]
            for parameter, first in zip(
                wrapper.round_robin_bit16_groups[group],
                wrapper.round_robin_bit16_offsets[group],
                strict=True,
            ):
                start = max(begin - first, 0)
                size = max(min(end - first, parameter.numel()) - start, 0)
                places[parameter] = (start, owner, first + start - begin, size)
    return places


def _flat_places(wrapper: Any) -> dict[Tensor, tuple[Tensor, int]]:
    """Without ZeRO, in 16 bits: parameter -> its float32 copy and the place in it."""
    places: dict[Tensor, tuple[Tensor, int]] = {}
    if isinstance(wrapper, FP16_UnfusedOptimizer):
        for own, copies in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            places.update({p: (copy, 0) for p, copy in zip(own, copies, strict=True)})
    elif isinstance(wrapper, FP16_Optimizer):
        for own, flat in zip(wrapper.fp16_groups, wrapper.fp32_groups_flat, strict=True):
            offset = 0
            for parameter in own:
                places[parameter] = (flat, offset)
                offset += parameter.numel()
    return places
