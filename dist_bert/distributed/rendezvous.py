"""Rendezvous of the ranks of one run, and no others, through rank 0's store at MASTER_PORT.

torch's own rendezvous (`env://`) joins any store that answers there. If another run uses the port,
rank 0 fails, but the other ranks join that run's store and overwrite the addresses of its ranks.
Here, rank 0 first binds the port, or fails with a one-line error; the others write nothing to a
store before they have verified that it is their run's. Under torchrun, whose agent runs the store,
torch's rendezvous is used. No torch at import.
"""

import contextlib
import datetime
import errno
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_bert.common.errors import NodeError, UserError

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

_SCHEME = "dist-bert"
_OWNER, _JOINED, _COMPLETE = "owner", "joined", "complete"  # keys of the store
# How long a rank waits for its own rank 0 while another program answers at the port. Rank 0 reports
# the reason, and a launcher ends the other ranks when it exits.
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.5
_LISTEN_BACKLOG = 4_096  # ranks that connect at the same time
_LAUNCHER = b"deepspeed.launcher.launch"


def init_method() -> str:
    """The `init_method` of `init_process_group` for the ranks in the environment variables.

    A process without a launcher becomes the only rank, at a free port.

    Raises:
        UserError: RANK is set, but MASTER_ADDR or MASTER_PORT is not set or invalid.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return "env://"
    from torch.distributed.rendezvous import register_rendezvous_handler

    with contextlib.suppress(RuntimeError):  # already registered in this process
        register_rendezvous_handler(_SCHEME, _rendezvous)
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
        os.environ.update(alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    _address()  # here: if a variable is missing, DeepSpeed asks MPI, which reports one rank
    return f"{_SCHEME}://"


def free_port(first: int = 0) -> int:
    """A free port of this host.

    Args:
        first: the lowest port to try; 0 = any port that the system selects.

    Raises:
        UserError: no port from `first` on is free.
    """
    for port in range(first, 65_536):
        try:
            with listen(port) as listening:
                return int(listening.getsockname()[1])
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise UserError(f"no port from {first} on is free on {socket.gethostname()}")


def listen(port: int) -> socket.socket:
    """Binds a port on all addresses of this host, IPv6 and IPv4, as torch's store does.

    Raises:
        OSError: the port is in use, or this user may not bind it.
    """
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be disabled; IPv4 reports the error
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_LISTEN_BACKLOG
            )
    return socket.create_server(("", port), backlog=_LISTEN_BACKLOG)


def _rendezvous(
    url: str, *, timeout: datetime.timedelta, **_: Any
) -> "Iterator[tuple[TCPStore, int, int]]":
    """Yields to torch the store, rank and number of ranks, once all ranks have joined."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = _address()
    store = _own_store(port, timeout) if rank == 0 else _store_of_rank_0(address, port, timeout)
    _join(store, rank, world_size, timeout)
    yield store, rank, world_size


def _address() -> tuple[str, int]:
    """MASTER_ADDR and MASTER_PORT.

    Raises:
        UserError: one of them is missing or invalid.
    """
    address, text = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if not address or not text.isdecimal() or not 0 < int(text) < 65_536:
        raise UserError(
            f"MASTER_ADDR = {address or 'not set'}, MASTER_PORT = {text or 'not set'}: if RANK is"
            " set, they must be the host of rank 0 and a port from 1 to 65535: start the ranks with"
            " deepspeed, torchrun or srun, or unset RANK and WORLD_SIZE for a single process"
        )
    return address, int(text)


def _own_store(port: int, timeout: datetime.timedelta) -> "TCPStore":
    """Rank 0's store, marked with its run."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        listening = listen(port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            problem = f"cannot be used on this host ({error.strerror})"
        else:
            problem = "is in use by another program on this host, perhaps another run"
        raise UserError(f"MASTER_PORT = {port}: {problem}: {_remedy(free_port())}") from None
    store = TCPStore(
        # Not MASTER_ADDR, which may name another host by mistake.
        "127.0.0.1",
        port,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )
    store.set(_OWNER, json.dumps(_facts()))
    return store


def _store_of_rank_0(address: str, port: int, timeout: datetime.timedelta) -> "TCPStore":
    """A connection to the store of this rank's own run.

    Raises:
        NodeError: no program, or another one, answers at the port.
        UserError: another program answers, and rank 0 reports it.
    """
    give_up_at = time.monotonic() + timeout.total_seconds()
    is_met = False  # whether a program answers at the port
    with _ended_by_sigterm():
        while time.monotonic() < give_up_at:
            if _answers(address, port):
                if not is_met:
                    is_met, give_up_at = True, time.monotonic() + _PATIENCE_SECONDS
                store = _connect(address, port, timeout, give_up_at - time.monotonic())
                if store is not None and _is_ours(store):
                    return store
            time.sleep(_POLL_SECONDS)
    if not is_met:
        raise NodeError(
            f"rank 0 did not answer at port {port} of {address} within"
            f" {timeout.total_seconds():,.0f} s: check its output, firewalls and MASTER_ADDR"
        )
    problem = (
        f"another program answers at port {port} of {address}, perhaps another run, instead of rank"
        f" 0 of this one: {_remedy(None)}"
    )
    raise NodeError(problem) if _launcher() is None else UserError(problem)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end a rank that waits for rank 0 at once: it has nothing to save."""
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_PATIENCE_SECONDS).close()
    except OSError:  # no program listens yet, or the name cannot be resolved yet
        return False
    return True


def _connect(
    address: str, port: int, timeout: datetime.timedelta, patience: float
) -> "TCPStore | None":
    """A connection to a store; None if the program that answers is not a store.

    torch waits without a limit for the first answer, so a thread connects.
    """
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    made: list[TCPStore] = []

    def connect() -> None:
        with contextlib.suppress(DistError):
            made.append(TCPStore(address, port, timeout=timeout, wait_for_workers=False))

    thread = threading.Thread(target=connect, name="rendezvous", daemon=True)
    thread.start()
    thread.join(patience)
    return made[0] if made else None


def _is_ours(store: "TCPStore") -> bool:
    """Whether a store belongs to this rank's run; only reads."""
    from torch.distributed import DistError

    try:
        if not store.check([_OWNER]):  # not yet set, or a store of another program
            return False
        theirs = json.loads(store.get(_OWNER))
    except (DistError, ValueError):
        return False
    ours = _facts()
    return all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())


def _facts(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Facts that all ranks of a run share, as far as this rank knows them."""
    facts = {"ranks": environment["WORLD_SIZE"]}
    if "SLURM_STEP_ID" in environment:
        facts["step"] = f"{environment.get('SLURM_JOB_ID')}.{environment['SLURM_STEP_ID']}"
    launcher = _launcher(environment)
    if launcher is not None:
        facts["launcher"] = launcher
    return facts


def _launcher(environment: Mapping[str, str] = os.environ) -> str | None:
    """The deepspeed launcher that is the parent of this process and rank 0; None = unknown.

    Identified by process id and start time: ids are reused, and may be equal in two containers.
    """
    parent = Path(f"/proc/{os.getppid()}")
    if environment.get("CROSS_RANK") != "0":  # not on the node of rank 0
        return None
    try:
        if _LAUNCHER not in (parent / "cmdline").read_bytes():
            return None
        started = (parent / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
    return f"{parent.name} started at tick {started}"


def _join(store: "TCPStore", rank: int, world_size: int, timeout: datetime.timedelta) -> None:
    """Registers this rank and waits until all ranks are registered.

    Raises:
        NodeError: another process is registered as this rank, or a rank did not join.
    """
    from torch.distributed import DistError

    try:
        if store.add(_place(rank), 1) > 1:
            raise NodeError(
                f"another process has already joined as rank {rank}: two runs use the same port:"
                f" {_remedy(None)}"
            )
        if store.add(_JOINED, 1) == world_size:
            store.set(_COMPLETE, "")
        store.wait([_COMPLETE], timeout)
    except DistError as error:
        if rank:
            raise NodeError(f"rank 0 exited before all ranks had joined ({error})") from None
        absent = [str(r) for r in range(world_size) if not store.check([_place(r)])]
        few = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
        raise UserError(
            f"{len(absent)} of {world_size} ranks did not join within"
            f" {timeout.total_seconds():,.0f} s ({few}): check their output; for a single process,"
            " unset RANK WORLD_SIZE"
        ) from None


def _place(rank: int) -> str:
    return f"place of rank {rank}"


def _remedy(port: int | None) -> str:
    """How to give this run its own port: the one given, if any."""
    text = "N" if port is None else str(port)
    if "SLURM_STEP_ID" in os.environ:
        return f"export MASTER_PORT={text} before srun"
    if "CROSS_RANK" in os.environ:
        return f"deepspeed --master_port {text} launch/..."
    return f"MASTER_PORT={text} for all ranks"
