"""Where the time of a training step goes, by parts of the model and the engine.

By torch's profiler: the parts of the forward pass are marked by wrapping the methods that compute
them, and an operation of the backward pass belongs where the forward operation was whose sequence
number it has. Not for: speed (profiling costs some itself), compiled layers.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from dist_bert.model.bert import BertEncoder, BertForPreTraining, BertLayer

_PARTS = {
    "embedding": (BertEncoder, "embed"),
    "attention": (BertLayer, "attend"),
    "feed_forward": (BertLayer, "transform"),
    "heads": (BertForPreTraining, "forward"),  # what is not in the parts above
}
_COLLECTIVES = (
    "all_reduce",
    "reduce",
    "reduce_scatter_tensor",
    "all_gather_into_tensor",
    "all_gather",
    "broadcast",
    "barrier",
)
_OPTIMIZER, _COMMUNICATION, _GRADIENTS, _REST = "optimizer", "communication", "gradients", "rest"
_BACKWARD = "autograd::engine::evaluate_function: "


def shares_of_parts(step: Callable[[], None], engine: Any) -> dict[str, float]:
    """Profiles an optimizer step; returns part -> share of its time.

    Of the device's busy time on CUDA, of this process's time elsewhere. `gradients` is their
    accumulation and DeepSpeed's hooks on them, `rest` what belongs to no part.

    Args:
        step: an optimizer step of the engine.
        engine: DeepSpeed's, around `BertForPreTraining`.
    """
    is_cuda = engine.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with _marked_parts(engine), profile(activities=activities) as profiler:
        begin = time.perf_counter()
        step()
        if is_cuda:
            torch.cuda.synchronize(engine.device)
        seconds = time.perf_counter() - begin
    events = [event for event in profiler.events() if event.device_type.name == "CPU"]
    part_of_sequence: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and not _is_backward(event):
            part_of_sequence.setdefault(event.sequence_nr, _part(event, {}))
    times: dict[str, float] = defaultdict(float)
    main_thread = next(event.thread for event in events if event.name in _PARTS)
    for event in events:
        if is_cuda:
            times[_part(event, part_of_sequence)] += event.self_device_time_total
        elif event.thread == main_thread:
            times[_part(event, part_of_sequence)] += event.self_cpu_time_total
    total = sum(times.values())
    if not is_cuda:
        times[_REST] += max(0.0, seconds * 1e6 - total)
        total = max(total, seconds * 1e6)
    names = (*_PARTS, _GRADIENTS, _OPTIMIZER, _COMMUNICATION, _REST)
    return {name: times[name] / total for name in names}


def _is_backward(event: Any) -> bool:
    while event is not None:
        if event.name.startswith(_BACKWARD):
            return True
        event = event.cpu_parent
    return False


def _part(event: Any, part_of_sequence: dict[int, str]) -> str:
    """The innermost marked part around an event."""
    marks = (*_PARTS, _OPTIMIZER, _COMMUNICATION)
    while event is not None:
        if event.name in marks:
            return str(event.name)
        if event.name.startswith(_BACKWARD):
            if event.name.endswith("AccumulateGrad"):
                return _GRADIENTS
            return part_of_sequence.get(event.sequence_nr, _REST)
        event = event.cpu_parent
    return _REST


@contextlib.contextmanager
def _marked_parts(engine: Any) -> Iterator[None]:
    """Wraps the methods of the model, the engine's step and the collectives."""
    with contextlib.ExitStack() as stack:

        def mark(owner: Any, method: str, name: str) -> None:
            inner = getattr(owner, method)

            def marked(*args: Any, **kwargs: Any) -> Any:
                with record_function(name):
                    return inner(*args, **kwargs)

            setattr(owner, method, marked)
            stack.callback(setattr, owner, method, inner)

        for name, (owner, method) in _PARTS.items():
            mark(owner, method, name)
        mark(type(engine), "step", _OPTIMIZER)
        for collective in _COLLECTIVES:
            mark(dist, collective, _COMMUNICATION)
        yield
