"""Environment of a run: hosts, versions, GPUs and variables of all nodes, and their differences.

Each rank reports its facts (`dist_bert.training.rank_reports` gathers them); rank 0 stores them in
RUN/environment.json.
"""

import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dist_bert.common.code_version import ROOT, code_fingerprint, commit_of
from dist_bert.common.machine import cpu_model, driver_version, relevant_variables

Facts = dict[str, Any]

_PACKAGES = ("torch", "deepspeed", "numpy", "sentencepiece")
# Must be equal on all nodes of a run: otherwise results, or the code, may differ.
_ALIKE = ("python", *_PACKAGES, "cuda", "nccl", "driver", "code")
_OWN = ("host", "ranks", "variables")  # of each node


def facts() -> Facts:
    """Facts that this process sees; None = not available."""
    import torch  # for CUDA's versions; reading facts does not need it

    has_gpu = torch.cuda.is_available()
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_gpu else None,
        "driver": driver_version() or None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpu": cpu_model(),
        "kernel": platform.release(),
        "commit": commit_of(ROOT),
        "code": code_fingerprint(),
        "variables": relevant_variables(),
    }


def nodes(facts_of_ranks: Sequence[Facts]) -> list[Facts]:
    """Facts by node: ranks of one host with the same facts are one entry, with their `ranks`.

    Keeps only variables that are the same on all of these ranks.
    """
    groups: dict[str, list[int]] = {}
    for rank, own in enumerate(facts_of_ranks):
        key = json.dumps({name: value for name, value in own.items() if name != "variables"})
        groups.setdefault(key, []).append(rank)
    return [
        {
            "host": facts_of_ranks[ranks[0]]["host"],
            "ranks": ranks,  # here, before the long fields
            **facts_of_ranks[ranks[0]],
            "variables": _common(facts_of_ranks[rank]["variables"] for rank in ranks),
        }
        for ranks in groups.values()
    ]


def differences(of_nodes: Sequence[Facts]) -> list[str]:
    """Facts that should be equal on all nodes but differ: "node2: torch 2.12.0, others 2.13.0"."""
    found = []
    for name in _ALIKE:
        values = [node[name] for node in of_nodes]
        usual = Counter(values).most_common(1)[0][0]  # in a tie, the first node's
        for value in dict.fromkeys(values):
            if value != usual:
                hosts = [node["host"] for node in of_nodes if node[name] == value]
                found.append(f"{_some(hosts)}: {name} {value or 'none'}, others {usual or 'none'}")
    return found


def kinds(of_nodes: Sequence[Facts]) -> list[Facts]:
    """Merges nodes that differ only in their names: `hosts` instead of `host`."""
    groups: dict[str, list[Facts]] = {}
    for node in of_nodes:
        own = {name: value for name, value in node.items() if name not in _OWN}
        groups.setdefault(json.dumps(own), []).append(node)
    return [
        {
            "hosts": [node["host"] for node in group],
            "ranks": sorted(rank for node in group for rank in node["ranks"]),
            **{name: value for name, value in group[0].items() if name not in _OWN},
            "variables": _common(node["variables"] for node in group),
        }
        for group in groups.values()
    ]


def _common(variables: Iterable[Mapping[str, str]]) -> dict[str, str]:
    first, *others = variables
    return {n: v for n, v in first.items() if all(other.get(n) == v for other in others)}


def _some(hosts: Sequence[str]) -> str:
    return hosts[0] if len(hosts) == 1 else f"{hosts[0]} and {len(hosts) - 1} more"
