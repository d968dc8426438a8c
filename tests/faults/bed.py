"""Where faults are tried: a store, a fault proxy before it, two sidecars on it (`deny` and `allow_verified`), traffic
on both, and what must hold whatever happens.

The invariants are those of the catalogue of faults: (a) no ended session reaches the backend, nobody is taken for
somebody else; (b) an error tells nothing; (c) every request is answered; (d) the process lives and its
connections and memory go back; (e) service is back soon; (f) health follows; (g) an acknowledged end stays; (h) metrics
name it.
"""

from __future__ import annotations

import base64
import json
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from tests.contracts.responses import error_body
from tests.faults.proxy import FaultProxy
from tests.servers import fetch
from tests.system.sidecar import (
    Backend,
    Reached,
    Sidecar,
    Store,
    bearer,
    eventually,
    external_store,
    metrics,
    sidecar,
    someone,
)
from tests.system.sidecar import token as make_token
from tests.waiting import HANG_SECONDS

_PAUSE_SECONDS = 0.01
# What a trial may leave behind, caches that fill included.
_MEMORY_BYTES = 32 * 2**20
# What was acknowledged is on the disk.
_STORE_OPTIONS = ("--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "yes")
UNAVAILABLE = error_body("store_unavailable")
Mode = Literal["deny", "allow_verified"]
MODES: tuple[Mode, ...] = ("deny", "allow_verified")


class Seen(NamedTuple):
    """One answer to a client: what was asked, when it came (seconds, monotonic), and what it was."""

    ask: str
    at: float
    took: float
    status: int
    body: bytes


class Clients:
    """Traffic through one sidecar: a live session, an ended one, nobody, and a public path, over and over."""

    def __init__(self, gate: Sidecar, mode: Mode) -> None:
        self.gate, self.mode = gate, mode
        self.user = self.live = self.ended = self.also_live = ""
        self.seen: list[Seen] = []
        self.failures: list[Exception] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self) -> None:
        self.user = someone()
        self.live, self.ended, self.also_live = (make_token(self.user) for _ in range(3))
        # On a slow machine a call may take longer than the store's time-out.
        eventually(partial(self.is_admitted, "live"))
        eventually(partial(self.is_admitted, "also_live"))
        eventually(self._logs_out)
        self.seen.clear()
        for ask in ("live", "ended", "nobody"):
            thread = threading.Thread(target=self._keep_asking, args=(ask,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * HANG_SECONDS)
            assert not thread.is_alive(), "a request was never answered"
        assert self.failures == []

    def ask(self, ask: str) -> Seen:
        """One request, kept. That it is answered in time is for `fetch` to say: its deadline only stops a hang."""
        target = "/public/x" if ask == "nobody" else "/"
        headers = [bearer(getattr(self, ask))] if ask != "nobody" else []
        began = time.monotonic()
        answer = fetch(self.gate.url, "GET", target, headers, timeout=HANG_SECONDS)
        seen = Seen(ask, began, time.monotonic() - began, answer.status, answer.body)
        self.seen.append(seen)
        return seen

    def _logs_out(self) -> bool:
        # Again, where the first try was carried out and took too long, it is 401.
        return fetch(self.gate.url, "DELETE", "/sessions/logout", [bearer(self.ended)]).status in {200, 401}

    def is_out(self, ask: str) -> bool:
        return self.ask(ask).status == 401

    def is_admitted(self, ask: str) -> bool:
        seen = self.ask(ask)
        assert seen.status in {200, 503}, seen
        return seen.status == 200

    def _keep_asking(self, ask: str) -> None:
        try:
            while not self._over.wait(_PAUSE_SECONDS):
                self.ask(ask)
        except Exception as error:  # A thread has nobody else to tell.
            self.failures.append(error)


class Outcome(msgspec.Struct):
    """What one fault did: answers by status while it lasted, for a live session, and how long until service (seconds
    after it ended), for each mode; the kinds of fault that the metrics named."""

    during: dict[Mode, dict[int, int]]
    service_seconds: dict[Mode, float]
    kinds: list[str]


class Bed:
    """All of it, running."""

    def __init__(self, store: Store, proxy: FaultProxy, backend: Backend, gates: dict[Mode, Sidecar]) -> None:
        self.store, self.proxy, self.backend, self.gates = store, proxy, backend, gates

    @property
    def reached(self) -> list[Reached]:
        return self.backend.reached

    def errors(self, mode: Mode) -> dict[str, float]:
        """The store's faults by kind, as the metrics have them."""
        found = metrics(self.gates[mode].ops)
        return {dict(labels)["kind"]: n for (name, labels), n in found.items() if name.endswith("store_errors_total")}

    def service(self) -> None:
        """Waits until both admit and are ready."""
        for gate in self.gates.values():
            eventually(partial(_admits, gate))
            eventually(partial(_is_ready, gate))


@contextmanager
def bed(*, degraded_max: str = "5m", store_timeout: str = "800ms") -> Iterator[Bed]:
    with ExitStack() as stack:
        store = stack.enter_context(external_store(*_STORE_OPTIONS))
        proxy = stack.enter_context(FaultProxy(store.path))
        backend = stack.enter_context(Backend())
        gates: dict[Mode, Sidecar] = {
            mode: stack.enter_context(
                sidecar(
                    backend.url,
                    redis_url=proxy.url,
                    store_timeout=store_timeout,
                    on_store_failure=mode,
                    degraded_max=degraded_max,
                    public_paths="/public/*",
                    rate_limit="off",
                    device_limit="off",
                )
            )
            for mode in MODES
        }
        made = Bed(store, proxy, backend, gates)
        made.service()
        yield made


class Trial:
    """One fault on a bed: traffic from the beginning to the end, the fault in between.

        with Trial(bed) as trial:
            bed.store.kill()
            trial.begins()
            trial.lasts()
            bed.store.start()
            trial.heals()
        trial.outcome

    At the end, everything that must hold is asserted.
    """

    def __init__(
        self, bed: Bed, *, expect_down: bool = True, for_all_of_it: bool = True, forgets: bool = False
    ) -> None:
        self._bed = bed
        self._expect_down = expect_down
        # Down from `begins` to the end of `lasts`: nobody is served then under `deny`.
        self._for_all_of_it = expect_down and for_all_of_it
        # The store loses its data: live sessions too are refused afterwards.
        self._forgets = forgets
        self.clients = {mode: Clients(gate, mode) for mode, gate in bed.gates.items()}
        self.outcome = Outcome({}, {}, [])

    def __enter__(self) -> Trial:
        bed = self._bed
        bed.service()
        self._reached_before = len(bed.reached)
        self._fds = {mode: fds(gate) for mode, gate in bed.gates.items()}
        self._memory = {mode: memory(gate) for mode, gate in bed.gates.items()}
        self._lines = {mode: len(gate.log) for mode, gate in bed.gates.items()}
        self._errors = {mode: bed.errors(mode) for mode in MODES}
        try:
            for clients in self.clients.values():
                clients.begin()
        except BaseException:
            self._end()
            raise
        return self

    def _end(self) -> None:
        for clients in self.clients.values():
            clients.end()

    def begins(self) -> None:
        """From now on something is wrong: not before it has taken effect."""
        self._began_at = time.monotonic()

    def lasts(self, seconds: float = 0.6) -> None:
        """While it lasts, health is looked at."""
        deadline = time.monotonic() + seconds
        for gate in self._bed.gates.values():
            assert fetch(gate.ops, "GET", "/livez").status == 200
            if self._expect_down:
                eventually(partial(_is_unready, gate))
                eventually(partial(_says, gate, 0.0))
        time.sleep(max(0.0, deadline - time.monotonic()))
        for clients in self.clients.values():
            # On a slow machine none may have asked yet.
            eventually(partial(self._has_asked, clients))
        self._lasted_until = time.monotonic()

    def _has_asked(self, clients: Clients) -> bool:
        return any(s.ask == "live" and s.at >= self._began_at for s in list(clients.seen))

    def heals(self) -> None:
        """From now on all is well again."""
        self._healed_at = time.monotonic()

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._wait_for_service()
        finally:
            self._end()
        if kind is None:
            self._assert_invariants()

    def _wait_for_service(self) -> None:
        for mode, clients in self.clients.items():
            if self._forgets:
                # Tokens of before are refused; who signs in is served.
                eventually(partial(clients.is_out, "live"))
            self._served(mode)
            eventually(partial(_is_ready, clients.gate))
            eventually(partial(_says, clients.gate, 1.0))

    def _served(self, mode: Mode) -> None:
        clients = self.clients[mode]
        answers = {200, 401} if self._forgets else {200}

        def first() -> float | None:
            found = (s.at + s.took for s in list(clients.seen) if s.ask == "live" and s.status in answers)
            return next((at for at in found if at >= self._healed_at), None)

        self.outcome.service_seconds[mode] = eventually(first) - self._healed_at

    def _assert_invariants(self) -> None:
        kinds: set[str] = set()
        for mode, clients in self.clients.items():
            gate = self._bed.gates[mode]
            assert gate.process.poll() is None
            assert fetch(gate.ops, "GET", "/livez").status == 200  # (f)
            during = [s for s in clients.seen if s.ask == "live" and self._fell_in(s)]
            assert not (self._for_all_of_it and mode == "deny") or {s.status for s in during} == {503}
            self.outcome.during[mode] = dict(sorted(Counter(s.status for s in during).items()))
            for seen in clients.seen:
                _assert_answer(seen)
            # (g), and over the whole time: an end that was acknowledged holds.
            assert {s.status for s in clients.seen if s.ask == "ended"} <= {401, 503}
            eventually(partial(clients.is_out, "ended"))
            if not self._forgets:
                assert {s.status for s in clients.seen if s.ask == "live"} <= {200, 503}
                for ask in ("live", "also_live"):
                    eventually(partial(clients.is_admitted, ask))
            assert {s.status for s in clients.seen if s.ask == "nobody"} == {200}
            eventually(partial(_has_few_fds, gate, self._fds[mode] + 8))  # (d)
            assert memory(gate) < self._memory[mode] + _MEMORY_BYTES
            _assert_one_line_a_transition(gate, self._lines[mode])
            now, before = self._bed.errors(mode), self._errors[mode]
            kinds |= {each for each, n in now.items() if n > before.get(each, 0)}
        self._assert_nobody_is_somebody_else()
        self.outcome.kinds = sorted(kinds)

    def _fell_in(self, seen: Seen) -> bool:
        return seen.at >= self._began_at and seen.at + seen.took <= self._lasted_until

    def _assert_nobody_is_somebody_else(self) -> None:  # (a)
        over = {clients.ended for clients in self.clients.values()}
        for request in self._bed.reached[self._reached_before :]:
            sent = [value.removeprefix("Bearer ") for value in request.get_all("authorization")]
            assert not over & set(sent), "a session that had ended was admitted"
            if not sent:
                assert request.get_all("x-user-id") == []
                continue
            assert request.get_all("x-user-id") == [subject_of(sent[0])]
            assert len(request.get_all("x-session-id")) <= 1


def _admits(gate: Sidecar) -> bool:
    return fetch(gate.url, "GET", "/", [bearer(make_token(someone()))]).status == 200


def _is_ready(gate: Sidecar) -> bool:
    return gate.ready().status == 200


def _is_unready(gate: Sidecar) -> bool:
    return gate.ready().status == 503


def _says(gate: Sidecar, up: float) -> bool:
    return gate.metric("gatekeeper_store_up") == up


def _has_few_fds(gate: Sidecar, most: int) -> bool:
    return fds(gate) <= most


def _assert_answer(seen: Seen) -> None:
    assert seen.status in {200, 401, 503}, seen
    if seen.status == 503:
        assert seen.body == UNAVAILABLE  # (b)
    elif seen.status == 401:
        assert set(json.loads(seen.body)) <= {"detail", "code", "reason"}


def _assert_one_line_a_transition(gate: Sidecar, since: int) -> None:
    """Down and up take turns, and each is said once."""
    events = [line["event"] for line in gate.log[since:]]
    told = [event for event in events if "until a probe succeeds" in event or "works again" in event]
    assert all(("again" in first) != ("again" in second) for first, second in pairwise(told)), told


def subject_of(token: str) -> str:
    """The user of a token."""
    payload = token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"])


def fds(gate: Sidecar) -> int:
    """Open files of the process."""
    return len(list(Path(f"/proc/{gate.process.pid}/fd").iterdir()))


def memory(gate: Sidecar) -> int:
    """Resident bytes of the process."""
    return int(Path(f"/proc/{gate.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()
