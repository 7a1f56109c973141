"""The facts of all ranks, folded into nodes; what differs that should not; nothing secret."""

from typing import Any

import pytest

from dist_bert.common.machine import relevant_variables
from dist_bert.distributed.environment import Facts, differences, facts, kinds, nodes

NODE = {
    "python": "3.12.3",
    "torch": "2.13.0",
    "deepspeed": "0.19.8",
    "numpy": "2.4",
    "sentencepiece": "0.2",
    "cuda": "12.8",
    "nccl": "2.27.5",
    "driver": "570.1",
    "gpus": ["NVIDIA H100 80GB HBM3"] * 2,
    "cpu": "a processor",
    "kernel": "6.8",
    "commit": "0123",
    "code": "abcdef012345",
}


def ranks_of(host: str, num_ranks: int = 2, **changes: Any) -> list[Facts]:
    """Ranks of one host, each with a variable of its own."""
    return [
        {
            "host": host,
            **NODE,
            **changes,
            "variables": {"OMP_NUM_THREADS": "7", "HOST": host, "LOCAL_RANK": str(rank)},
        }
        for rank in range(num_ranks)
    ]


def test_ranks_are_folded_into_nodes() -> None:
    # As some launchers do: ranks are dealt to the hosts in turns.
    first, second = ranks_of("node1", 3), ranks_of("node2", 2)
    of_nodes = nodes([first[0], second[0], first[1], second[1], first[2]])
    assert [(node["host"], node["ranks"]) for node in of_nodes] == [
        ("node1", [0, 2, 4]),
        ("node2", [1, 3]),
    ]
    assert of_nodes[1] == {
        "host": "node2",
        "ranks": [1, 3],
        **NODE,
        "variables": {"OMP_NUM_THREADS": "7", "HOST": "node2"},
    }
    (kind,) = kinds(of_nodes)
    assert kind == {
        "hosts": ["node1", "node2"],
        "ranks": [0, 1, 2, 3, 4],
        **NODE,
        "variables": {"OMP_NUM_THREADS": "7"},
    }
    assert differences(of_nodes) == []


def test_differences_name_nodes_and_versions() -> None:
    of_nodes = nodes(
        [
            *ranks_of("node1"),
            *ranks_of("node2", torch="2.12.0"),
            *ranks_of("node3"),
            *ranks_of("node4", code="543210fedcba", driver=None),
            *ranks_of("node5", code="543210fedcba", kernel="6.9", gpus=["another"]),
            *ranks_of("node6"),
        ]
    )
    assert differences(of_nodes) == [
        "node2: torch 2.12.0, others 2.13.0",
        "node4: driver none, others 570.1",
        "node4 and 1 more: code 543210fedcba, others abcdef012345",
    ]
    assert [kind["hosts"] for kind in kinds(of_nodes)] == [
        ["node1", "node3", "node6"],
        ["node2"],
        ["node4"],
        ["node5"],
    ]


def test_of_two_nodes_the_second_is_the_other_one() -> None:
    of_nodes = nodes([*ranks_of("node1"), *ranks_of("node2", python="3.11.9")])
    assert differences(of_nodes) == ["node2: python 3.11.9, others 3.12.3"]


def test_ranks_of_one_host_that_differ_are_two_nodes() -> None:
    of_nodes = nodes([*ranks_of("node1"), *ranks_of("node1", numpy="2.3")])
    assert [node["ranks"] for node in of_nodes] == [[0, 1], [2, 3]]
    assert differences(of_nodes) == ["node1: numpy 2.3, others 2.4"]


def test_own_facts_fold_and_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("SLURM_JWT", "NCCL_API_KEY", "WANDB_API_KEY", "PASSWORD", "SLURM_JOB_COMMENT"),
        *("UCX_AUTH", "MPI_PASSWD", "OMPI_DB_PWD", "TORCH_PASS", "FI_CREDENTIALS", "PMI_COOKIE"),
        *("CUDA_MIRROR_SECRET", "DS_TOKEN", "SLURM_my_passphrase"),
    ):
        monkeypatch.setenv(name, "geheim")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("TORCH_HOME", "https://me:geheim@host/hub?sig=geheim")
    own = facts()
    assert "geheim" not in str(own)
    assert own["variables"] == relevant_variables() and "GLOO_SOCKET_IFNAME" in own["variables"]
    assert own["variables"]["TORCH_HOME"] == "https://***@host/hub?***"
    (node,) = nodes([own, own])
    assert node["ranks"] == [0, 1] and node["torch"] and NODE.keys() <= node.keys()
    assert node["gpus"] == [] or node["driver"]
