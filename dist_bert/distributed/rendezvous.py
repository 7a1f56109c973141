"""How the ranks of one run find each other, and nobody else: rank 0's store at MASTER_PORT.

torch's own rendezvous (`env://`) joins whatever store answers there. With the port taken by another
run, rank 0 fails, but the other ranks join that run's store and write their addresses over those of
its ranks. Here rank 0 takes the port first, or says in one line that it cannot; the others write
nothing to a store before it has shown them that it is theirs. Under torchrun, whose agent keeps the
store, torch's way is used. No torch at import.
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
# How long a rank waits for its own rank 0 while somebody else answers at the port. Rank 0 tells the
# reason, and its end is the end of the others where a launcher sees to that.
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.5
_LISTEN_BACKLOG = 4_096  # ranks that connect at the same moment
_LAUNCHER = b"deepspeed.launcher.launch"


def init_method() -> str:
    """What `init_process_group` takes as `init_method`, for the ranks that the environment names.

    A process that nothing has launched becomes the only rank, at a free port.

    Raises:
        UserError: RANK is set, and MASTER_ADDR or MASTER_PORT is not, or is no port.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return "env://"
    from torch.distributed.rendezvous import register_rendezvous_handler

    with contextlib.suppress(RuntimeError):  # registered before, in this process
        register_rendezvous_handler(_SCHEME, _rendezvous)
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
        os.environ.update(alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    _address()  # here: where a variable is missing, DeepSpeed asks MPI, which knows of one rank
    return f"{_SCHEME}://"


def free_port(first: int = 0) -> int:
    """A port at which nothing of this host listens.

    Args:
        first: the lowest to take, and then the next free one; 0 = any that the system gives.

    Raises:
        UserError: there is none from `first` on.
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
    """Takes a port on all addresses of this host, IPv6 and IPv4, as torch's store does.

    Raises:
        OSError: somebody else listens there, or this user may not.
    """
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be switched off; IPv4 tells what is wrong
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
        UserError: one of them is missing, or no port.
    """
    address, text = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if not address or not text.isdecimal() or not 0 < int(text) < 65_536:
        raise UserError(
            f"MASTER_ADDR = {address or 'not set'}, MASTER_PORT = {text or 'not set'}: where RANK"
            " is set they must name the host of rank 0 and a port from 1 to 65535: start the ranks"
            " with deepspeed, torchrun or srun, or unset RANK and WORLD_SIZE for a single process"
        )
    return address, int(text)


def _own_store(port: int, timeout: datetime.timedelta) -> "TCPStore":
    """Rank 0's store, with a note of whose it is."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        listening = listen(port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            problem = f"this host does not give it ({error.strerror})"
        else:
            problem = "another program on this host, perhaps another run, listens there"
        raise UserError(f"port {port} of the ranks: {problem}: {_remedy(free_port())}") from None
    store = TCPStore(
        # Not by MASTER_ADDR, which may lead elsewhere by mistake.
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
        NodeError: nobody, or somebody else, answers at the port.
        UserError: somebody else does, which rank 0 tells.
    """
    give_up_at = time.monotonic() + timeout.total_seconds()
    is_met = False  # whether something answers at the port
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
            f" {timeout.total_seconds():,.0f} s: see its output; firewalls; MASTER_ADDR"
        )
    problem = (
        f"another program answers at port {port} of {address}, perhaps another run, and not rank 0"
        f" of this one: {_remedy(None)}"
    )
    raise NodeError(problem) if _launcher() is None else UserError(problem)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A rank that waits for rank 0 has nothing to save: SIGTERM ends it at once."""
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_PATIENCE_SECONDS).close()
    except OSError:  # nobody listens yet, or the name is not known yet
        return False
    return True


def _connect(
    address: str, port: int, timeout: datetime.timedelta, patience: float
) -> "TCPStore | None":
    """A connection to a store; None where what answers is none.

    torch waits without a limit for the first answer of one that says nothing: hence the thread.
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
    """Whether a store is that of this rank's run; only reads."""
    from torch.distributed import DistError

    try:
        if not store.check([_OWNER]):  # not yet, or a store of another program
            return False
        theirs = json.loads(store.get(_OWNER))
    except (DistError, ValueError):
        return False
    ours = _facts()
    return all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())


def _facts(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What ranks of one run have in common, as far as this one knows it."""
    facts = {"ranks": environment["WORLD_SIZE"]}
    if "SLURM_STEP_ID" in environment:
        facts["step"] = f"{environment.get('SLURM_JOB_ID')}.{environment['SLURM_STEP_ID']}"
    launcher = _launcher(environment)
    if launcher is not None:
        facts["launcher"] = launcher
    return facts


def _launcher(environment: Mapping[str, str] = os.environ) -> str | None:
    """The deepspeed launcher that this process and rank 0 are children of; None = not known.

    By number and start: numbers are given again, and may be the same in two containers.
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
    """Takes this rank's place and waits until all places are taken.

    Raises:
        NodeError: another process has this place, or a rank did not come.
    """
    from torch.distributed import DistError

    try:
        if store.add(_place(rank), 1) > 1:
            raise NodeError(
                f"another process has joined as rank {rank} before this one: two runs with the"
                f" same port: {_remedy(None)}"
            )
        if store.add(_JOINED, 1) == world_size:
            store.set(_COMPLETE, "")
        store.wait([_COMPLETE], timeout)
    except DistError as error:
        if rank:
            raise NodeError(f"rank 0 is gone before all ranks had joined ({error})") from None
        absent = [str(r) for r in range(world_size) if not store.check([_place(r)])]
        few = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
        raise UserError(
            f"{len(absent)} of {world_size} ranks did not come within"
            f" {timeout.total_seconds():,.0f} s ({few}): see their output; a single process needs"
            " unset RANK WORLD_SIZE"
        ) from None


def _place(rank: int) -> str:
    return f"place of rank {rank}"


def _remedy(port: int | None) -> str:
    """How this run gets a port of its own; that one, if given."""
    text = "N" if port is None else str(port)
    if "SLURM_STEP_ID" in os.environ:
        return f"export MASTER_PORT={text} before srun"
    if "CROSS_RANK" in os.environ:
        return f"deepspeed --master_port {text} launch/..."
    return f"MASTER_PORT={text} for all ranks"
