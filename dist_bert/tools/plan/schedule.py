"""The schedule of a whole run as a picture: what every step is, before there is any."""

from collections.abc import Sequence

import numpy as np

from dist_bert.common.pictures import Curve, write_curves
from dist_bert.pretraining.timeline import Timeline
from dist_bert.tools.plan.workload import Part

_MAX_POINTS = 500  # of the lr of a phase; warm-ups and decays are curves


def draw_schedule(timeline: Timeline, parts: Sequence[Part], peak_lr: float, path: str) -> None:
    """Draws learning rate, batch, masks and longest samples over the steps, by phase.

    Args:
        timeline: the phases.
        parts: their stages, in the same order.
        peak_lr: the DeepSpeed JSON's.
        path: of the PNG file.
    """
    lr, batch, masks, longest = (
        Curve(title, [], [])
        for title in (
            "learning rate",
            "samples of a step",
            "share of masks",
            "longest sample (tokens)",
        )
    )
    workloads = iter(part.workload for part in parts)
    for phase in timeline.phases:
        first, last = phase.first_step + 1, phase.last_step
        steps = np.unique(np.linspace(first, last, _MAX_POINTS).round().astype(int)).tolist()
        lr.add(steps, [peak_lr * timeline.lr_share(step) for step in steps])
        for stage in phase.stages:
            begin = phase.first_step + stage.first_step
            ends = [begin + 1, begin + stage.num_steps]
            workload = next(workloads)
            batch.add(ends, [stage.shape.global_batch_size] * 2)
            shares = [phase.masked_lm_prob(step - phase.first_step) for step in ends]
            masks.add(ends, [share or workload.masked_share for share in shares])
            longest.add(ends, [workload.sequence_length] * 2)
    marks = {p.first_step + 1: p.settings.name for p in timeline.phases if p.settings.name}
    write_curves(path, "optimizer step", (lr, batch, masks, longest), marks)
