"""Reports that ranks exchange: their environment, their speed and their warnings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_bert.checkpoint.run_dir import ENVIRONMENT_NAME
from dist_bert.common import files
from dist_bert.distributed import rank_log
from dist_bert.distributed.device_timer import total_seconds
from dist_bert.distributed.environment import Facts, differences, facts, nodes
from dist_bert.distributed.stragglers import Interval, Stragglers
from dist_bert.model.flops import peak_flops
from dist_bert.training.console import Console
from dist_bert.training.loop import StepRecord


def gather_environment() -> list[Facts]:
    """The facts of all ranks, by rank; called by all together."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, facts())
    return gathered


def gather_warnings(console: Console) -> None:
    """Lets rank 0 show what other ranks have warned of; called by all ranks together."""
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(console.take_unshared(), gathered)
    if gathered is not None:
        console.hear(gathered)


def total_peak_flops(device: torch.device, precision: str) -> float:
    """Peak operations per second of all ranks' devices; called by all ranks together.

    They measure at the same time, as they will compute at the same time, and nothing else runs.
    """
    dist.barrier()
    total = torch.tensor(peak_flops(device, precision), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


class Ranks:
    """The ranks of a run and how they keep up; every method is called by all of them together."""

    def __init__(self, run_dir: str | Path, console: Console) -> None:
        """Rank 0 keeps the environment, and warns where nodes differ.

        Args:
            run_dir: of the run.
            console: of this rank.
        """
        self._console = console
        environment = gather_environment()
        self._stragglers = Stragglers([own["host"] for own in environment])
        if dist.get_rank() == 0:
            of_nodes = nodes(environment)
            found = {"time": rank_log.now(), "nodes": of_nodes}
            try:
                files.write_json(Path(run_dir) / ENVIRONMENT_NAME, found)
            except OSError as error:  # of a full disk: it is not worth the run
                console.warn(f"{error.filename}: cannot be written ({error.strerror})")
            if problems := differences(of_nodes):
                console.warn(f"nodes differ: {'; '.join(problems)}")
        gather_warnings(console)

    def compare(self, records: Sequence[StepRecord], seconds: float) -> dict[str, float]:
        """The metrics of a log interval whose steps the device has done; warns of a straggler.

        Args:
            records: of the interval's steps.
            seconds: that they took.
        """
        if dist.get_world_size() == 1:
            return {}
        own = (
            sum(total_seconds(record.forward_spans) for record in records),
            sum(record.data_wait_seconds for record in records),
            self._console.num_unshared,
        )
        device = records[0].metrics.device
        table = torch.zeros(dist.get_world_size(), len(own), dtype=torch.float64, device=device)
        dist.all_gather_into_tensor(table, torch.tensor([own], dtype=torch.float64, device=device))
        compute, wait, num_unshared = table.T.tolist()
        if any(num_unshared):
            gather_warnings(self._console)
        interval = Interval(compute, wait, len(records), seconds)
        for text in self._stragglers.named(interval):
            self._console.say(f"warning: {text}")  # of the run, not of rank 0
        return interval.metrics()
