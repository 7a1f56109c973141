"""How ranks tell their own run's store from what else answers at a port."""

import datetime
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dist_bert.common.errors import NodeError, UserError
from dist_bert.distributed import rendezvous
from dist_bert.distributed.rendezvous import free_port, listen

LONG = datetime.timedelta(seconds=300)
NAMES = (
    *("RANK", "WORLD_SIZE", "CROSS_RANK", "SLURM_JOB_ID", "SLURM_STEP_ID"),
    "TORCHELASTIC_USE_AGENT_STORE",
)


@pytest.fixture(autouse=True)
def rank_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a rank of 3, started by nothing that is known; it gives up soon."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(rendezvous, "_PATIENCE_SECONDS", 2.0)


@pytest.fixture
def port() -> int:
    return free_port()


def test_a_store_of_the_same_run_is_joined(port: int) -> None:
    stores = [rendezvous._own_store(port, LONG)]
    stores += [rendezvous._store_of_rank_0("localhost", port, LONG) for _ in range(2)]
    others = [
        threading.Thread(target=rendezvous._join, args=(stores[rank], rank, 3, LONG))
        for rank in (1, 2)
    ]
    for thread in others:
        thread.start()
    rendezvous._join(stores[0], 0, 3, LONG)
    for thread in others:
        thread.join()


def test_a_rank_may_come_before_rank_0(port: int) -> None:
    made: list[TCPStore] = []
    later = threading.Timer(1.0, lambda: made.append(rendezvous._own_store(port, LONG)))
    later.start()
    rendezvous._store_of_rank_0("localhost", port, LONG).add("seen", 1)
    later.join()
    assert made[0].get("seen") == b"1"


@pytest.mark.parametrize(
    "theirs",
    [
        {"ranks": "4"},
        {"ranks": "3", "step": "7.2"},
        {"ranks": "3", "launcher": "17 started at tick 5"},
        None,  # a store of another program
    ],
)
def test_another_store_is_read_and_left(
    theirs: dict[str, str] | None, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    monkeypatch.setattr(rendezvous, "_launcher", lambda *_: "17 started at tick 4")
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    if theirs is not None:
        store.set("owner", json.dumps(theirs))
    before = store.num_keys()
    with pytest.raises(UserError, match=f"another program answers at port {port} of localhost"):
        rendezvous._store_of_rank_0("localhost", port, LONG)
    assert store.num_keys() == before, "nothing was written"


def test_what_is_not_known_is_not_held_against_a_store(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 may be the only one whose launcher is known, or one that is within a SLURM job."""
    monkeypatch.setattr(rendezvous, "_launcher", lambda *_: "17 started at tick 4")
    store = rendezvous._own_store(port, LONG)
    monkeypatch.setattr(rendezvous, "_launcher", lambda *_: None)
    rendezvous._store_of_rank_0("localhost", port, LONG).add("seen", 1)
    assert store.get("seen") == b"1"


@pytest.fixture
def silent() -> Iterator[int]:
    """A port at which something listens that never says a word."""
    with listen(0) as listening:
        yield int(listening.getsockname()[1])


def test_what_says_nothing_is_given_up(silent: int) -> None:
    """By a rank of an unknown launcher for all to see: nothing else may end it."""
    with pytest.raises(NodeError, match="another program answers"):
        rendezvous._store_of_rank_0("localhost", silent, LONG)


def test_nobody_answers(port: int) -> None:
    with pytest.raises(NodeError, match=f"rank 0 did not answer at port {port} of localhost"):
        rendezvous._store_of_rank_0("localhost", port, datetime.timedelta(seconds=1))


@pytest.mark.parametrize(
    ("variables", "remedy"),
    [
        ({"CROSS_RANK": "0"}, r"deepspeed --master_port \d+ launch"),
        ({"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7"}, r"export MASTER_PORT=\d+ before srun"),
        ({}, r"MASTER_PORT=\d+ for all ranks"),
    ],
)
def test_rank_0_finds_the_port_taken(
    variables: dict[str, str], remedy: str, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^MASTER_PORT = {silent}: is in use .*: {remedy}"):
        rendezvous._own_store(silent, LONG)


def test_a_place_is_taken_once(port: int) -> None:
    store = rendezvous._own_store(port, LONG)
    store.add("place of rank 1", 1)
    with pytest.raises(NodeError, match="another process has already joined as rank 1"):
        rendezvous._join(store, 1, 3, LONG)


def test_rank_0_names_those_that_do_not_come(port: int) -> None:
    store = rendezvous._own_store(port, LONG)
    store.add("place of rank 1", 1)
    with pytest.raises(UserError, match=r"1 of 3 ranks did not join within 1 s \(2\)"):
        rendezvous._join(store, 0, 3, datetime.timedelta(seconds=1))


@pytest.mark.parametrize(
    ("address", "port"), [("", "29500"), ("n1", ""), ("n1", "0"), ("n1", "65536"), ("n1", "-1")]
)
def test_an_address_that_is_none(address: str, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(UserError, match="unset RANK and WORLD_SIZE"):
        rendezvous.init_method()


@pytest.mark.parametrize("bind", [socket.create_server, lambda a: listen(a[1])])
def test_a_free_port_is_one_that_nobody_has(bind: Callable[..., socket.socket]) -> None:
    with bind(("", free_port())) as taken:
        port = taken.getsockname()[1]
        assert port < free_port(port) < port + 1_000
    assert free_port(port) == port, "given up"


def test_the_launcher_is_known_on_the_node_of_rank_0_alone() -> None:
    assert rendezvous._launcher({"CROSS_RANK": "1"}) is None
    assert rendezvous._launcher({"CROSS_RANK": "0"}) is None, "pytest's parent is no launcher"
