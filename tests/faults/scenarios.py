"""The faults of the store, each tried on a bed with traffic: `FAULTS` lists them for the suite and for the table of
docs/reliability.md."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import redis

from tests.faults.bed import Bed, Outcome, Trial
from tests.system.sidecar import eventually
from tests.waiting import HANG_SECONDS


class Fault(NamedTuple):
    """One fault: its id in the catalogue, what happens, and the trial of it."""

    id: str
    title: str
    run: Callable[[Bed], Outcome]


FAULTS: list[Fault] = []
# Keys that take a millisecond each to load.
_LOADED = 3000


def fault(name: str, title: str) -> Callable[[Callable[[Bed], Outcome]], Callable[[Bed], Outcome]]:
    def add(run: Callable[[Bed], Outcome]) -> Callable[[Bed], Outcome]:
        FAULTS.append(Fault(name, title, run))
        return run

    return add


@contextmanager
def repeated(action: Callable[[], object], *, every: float) -> Iterator[None]:
    """`action` over and over, in a thread."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(every):
            with suppress(redis.RedisError):
                action()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(HANG_SECONDS)


def _simple(
    bed: Bed, begin: Callable[[], object], heal: Callable[[], object], *, down: bool = True, for_all_of_it: bool = True
) -> Outcome:
    with Trial(bed, expect_down=down, for_all_of_it=for_all_of_it) as trial:
        begin()
        trial.begins()
        try:
            trial.lasts()
        finally:
            heal()
            trial.heals()
    return trial.outcome


@fault("R1", "killed, and started again with its data")
def killed(bed: Bed) -> Outcome:
    return _simple(bed, bed.store.kill, bed.store.start)


@fault("R1", "every connection cut within the first reply")
def cut(bed: Bed) -> Outcome:
    def begin() -> None:
        bed.proxy.cut_after = 7
        bed.proxy.reset_all()

    return _simple(bed, begin, bed.proxy.calm)


@fault("R2", "frozen (SIGSTOP)")
def frozen(bed: Bed) -> Outcome:
    return _simple(bed, lambda: bed.store.signal(signal.SIGSTOP), lambda: bed.store.signal(signal.SIGCONT))


@fault("R2", "all commands paused (CLIENT PAUSE)")
def paused(bed: Bed) -> Outcome:
    # It takes no UNPAUSE either: the answer to a PING is the end.
    client: Any = bed.store.client
    begin = lambda: client.execute_command("CLIENT", "PAUSE", "4000", "ALL")  # noqa: E731
    return _simple(bed, begin, client.ping, for_all_of_it=False)


@fault("R3", "writes paused")
def writes_paused(bed: Bed) -> Outcome:
    client: Any = bed.store.client
    return _simple(
        bed,
        lambda: client.execute_command("CLIENT", "PAUSE", "60000", "WRITE"),
        lambda: client.execute_command("CLIENT", "UNPAUSE"),
    )


@fault("R4", "replies 20 ms late")
def slow(bed: Bed) -> Outcome:
    return _simple(bed, lambda: setattr(bed.proxy, "latency", 0.02), bed.proxy.calm, down=False)


@fault("R4", "replies 1 s late, over the time-out")
def too_slow(bed: Bed) -> Outcome:
    return _simple(bed, lambda: setattr(bed.proxy, "latency", 1.0), bed.proxy.calm)


@fault("R5", "out of memory (`noeviction`)")
def full(bed: Bed) -> Outcome:
    set_: Any = bed.store.client.config_set
    return _simple(bed, lambda: set_("maxmemory", "1"), lambda: set_("maxmemory", "0"))


@fault("R7", "read-only: a replica")
def read_only(bed: Bed) -> Outcome:
    client: Any = bed.store.client
    return _simple(bed, lambda: client.replicaof("127.0.0.1", "1"), lambda: client.replicaof("NO", "ONE"))


@fault("R8", "a replica without its primary that serves nothing (MASTERDOWN)")
def no_primary(bed: Bed) -> Outcome:
    client: Any = bed.store.client

    def begin() -> None:
        client.config_set("replica-serve-stale-data", "no")
        client.replicaof("127.0.0.1", "1")

    def heal() -> None:
        client.replicaof("NO", "ONE")
        client.config_set("replica-serve-stale-data", "yes")

    return _simple(bed, begin, heal)


@fault("R8", "too few replicas (NOREPLICAS)")
def no_replicas(bed: Bed) -> Outcome:
    set_: Any = bed.store.client.config_set
    return _simple(bed, lambda: set_("min-replicas-to-write", "1"), lambda: set_("min-replicas-to-write", "0"))


@fault("R8", "the password changed (NOAUTH)")
def unauthenticated(bed: Bed) -> Outcome:
    client: Any = bed.store.client

    def begin() -> None:
        client.config_set("requirepass", "another")
        client.execute_command("AUTH", "another")
        bed.proxy.reset_all()

    return _simple(bed, begin, lambda: client.config_set("requirepass", ""))


@fault("R8", "loading its data after a restart (LOADING)")
def loading(bed: Bed) -> Outcome:
    client: Any = bed.store.client
    together = client.pipeline(transaction=False)
    for number in range(_LOADED):
        together.set(f"filler:{number}", "x")
    together.execute()
    client.execute_command("BGREWRITEAOF")
    eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    with Trial(bed, for_all_of_it=False) as trial:
        bed.store.kill()
        trial.begins()
        bed.store.start("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024", wait=False)
        trial.lasts(0.2)
        eventually(bed.store.answers)
        trial.heals()
        bed.store.client.config_set("key-load-delay", "0")
    bed.store.client.delete(*(f"filler:{number}" for number in range(_LOADED)))
    return trial.outcome


@fault("R9", "scripts forgotten, a hundred times a second (SCRIPT FLUSH)")
def scripts_flushed(bed: Bed) -> Outcome:
    with Trial(bed, expect_down=False) as trial:
        trial.begins()
        with repeated(bed.store.client.script_flush, every=0.01):
            trial.lasts()
        trial.heals()
    # Nobody notices, if not that the machine is slow.
    assert set(trial.outcome.kinds) <= {"timeout", "open"}
    assert trial.outcome.kinds or {status for counts in trial.outcome.during.values() for status in counts} == {200}
    return trial.outcome


@fault("R10", "busy with an endless script (BUSY), which is killed")
def busy(bed: Bed) -> Outcome:
    client: Any = bed.store.client
    client.config_set("busy-reply-threshold", "50")
    other = redis.Redis(unix_socket_path=str(bed.store.path))

    def endless() -> None:
        with suppress(redis.RedisError):
            other.eval("while true do end", 0)

    thread = threading.Thread(target=endless, daemon=True)

    def begin() -> None:
        thread.start()
        eventually(lambda: not bed.store.answers())

    def heal() -> None:
        client.execute_command("SCRIPT", "KILL")
        thread.join(HANG_SECONDS)

    try:
        return _simple(bed, begin, heal)
    finally:
        client.config_set("busy-reply-threshold", "5000")
        other.close()


@fault("R15", "all data deleted (FLUSHALL)")
def flushed(bed: Bed) -> Outcome:
    with Trial(bed, expect_down=False, forgets=True) as trial:
        trial.begins()
        bed.store.client.flushall()
        trial.lasts(0.3)
        trial.heals()
    return trial.outcome


@fault("R15", "killed, and started again without its data")
def emptied(bed: Bed) -> Outcome:
    with Trial(bed, forgets=True) as trial:
        bed.store.kill()
        trial.begins()
        shutil.rmtree(bed.store.directory / "appendonlydir")
        trial.lasts()
        bed.store.start()
        trial.heals()
    return trial.outcome


def _beats(bed: Bed) -> int:
    return int(bed.store.client.hget("gk:epoch", "beats"))  # type: ignore[arg-type]


@fault("R16", "an old copy of its data restored")
def restored(bed: Bed) -> Outcome:
    data, copy = bed.store.directory / "appendonlydir", bed.store.directory / "copy"
    shutil.copytree(data, copy)
    # Each process must have asked since, to know that the copy lacks something: each does twice a second.
    asked = _beats(bed)
    eventually(lambda: _beats(bed) >= asked + 8)
    with Trial(bed, forgets=True) as trial:
        bed.store.kill()
        trial.begins()
        shutil.rmtree(data)
        copy.rename(data)
        trial.lasts()
        bed.store.start()
        trial.heals()
    return trial.outcome


@fault("R17", "cut off: replies are lost")
def replies_lost(bed: Bed) -> Outcome:
    return _simple(bed, lambda: setattr(bed.proxy, "drop", True), lambda: _reconnect(bed))


@fault("R17", "cut off: requests are lost")
def requests_lost(bed: Bed) -> Outcome:
    return _simple(bed, lambda: setattr(bed.proxy, "drop_requests", True), lambda: _reconnect(bed))


def _reconnect(bed: Bed) -> None:
    """What was lost on the way stays lost: that connection is over."""
    bed.proxy.calm()
    bed.proxy.reset_all()


@fault("R18", "every tenth reply resets its connection")
def resets(bed: Bed) -> Outcome:
    return _simple(bed, lambda: setattr(bed.proxy, "reset_every", 10), bed.proxy.calm, down=False)


@fault("R18", "all connections killed ten times a second (CLIENT KILL)")
def kills(bed: Bed) -> Outcome:
    client: Any = bed.store.client
    with Trial(bed, expect_down=False) as trial:
        trial.begins()
        with repeated(lambda: client.execute_command("CLIENT", "KILL", "TYPE", "normal"), every=0.1):
            trial.lasts()
        trial.heals()
    return trial.outcome


@fault("R19", "every fifth reply garbled")
def garbled(bed: Bed) -> Outcome:
    return _simple(bed, lambda: setattr(bed.proxy, "flip", 5), lambda: _reconnect(bed), down=False)


@fault("R19", "unrequested messages among the replies")
def pushed(bed: Bed) -> Outcome:
    return _simple(bed, lambda: setattr(bed.proxy, "push", True), lambda: _reconnect(bed), down=False)


@fault("R21", "no more connections (maxclients)")
def too_many_clients(bed: Bed) -> Outcome:
    client: Any = bed.store.client
    before = client.config_get("maxclients")["maxclients"]

    def begin() -> None:
        client.config_set("maxclients", "1")
        bed.proxy.reset_all()

    return _simple(bed, begin, lambda: client.config_set("maxclients", before))
