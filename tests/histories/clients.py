"""Clients that sign in, ask, refresh, list and end, all at once, and write down what they saw."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from tests.histories.checker import Kind, Operation, Result
from tests.servers import ClientResponse, fetch

_TIMEOUT_SECONDS = 30.0
_PAUSE_SECONDS = 0.02


class Device:
    """One signed-in device: its session (the `sid`), its public id once a list has told it, and its tokens."""

    def __init__(self, user: str, tokens: dict[str, Any]) -> None:
        self.user = user
        self.number = ""
        self.take(tokens)
        self.session: str = json.loads(_decoded(self.access.split(".")[1]))["sid"]

    def take(self, tokens: dict[str, Any]) -> None:
        self.access: str = tokens["access_token"]
        self.refresh: str = tokens["refresh_token"]


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


class Clients:
    """Several threads, each with a seed of its own, on the gates whose URLs `gates` gives at the moment."""

    def __init__(self, gates: Callable[[], list[str]], users: list[str], *, threads: int, seed: int) -> None:
        self.history: list[Operation] = []
        self._gates = gates
        self._users = users
        self._over = threading.Event()
        self._devices: dict[str, list[Device]] = {user: [] for user in users}
        # By public id, which lists show, to the `sid`, which tokens name.
        self._sessions: dict[str, str] = {}
        seeds = [random.Random(seed * 1000 + number) for number in range(threads)]
        self._threads = [threading.Thread(target=self._live, args=(chance,), daemon=True) for chance in seeds]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * _TIMEOUT_SECONDS)
            assert not thread.is_alive(), "a client was never answered"

    def names(self) -> list[Operation]:
        """The history, with the names of the sessions that lists showed by their ids."""

        def named(listed: frozenset[str]) -> frozenset[str]:
            return frozenset(self._sessions.get(number, "?") for number in listed)

        return [msgspec.structs.replace(each, listed=named(each.listed)) for each in self.history]

    def _live(self, chance: random.Random) -> None:
        while not self._over.is_set():
            user = chance.choice(self._users)
            devices = self._devices[user][-6:]
            if not devices or chance.random() < 0.12:
                self._log_in(chance, user)
            else:
                self._act(chance, chance.choice(devices), devices)
            time.sleep(_PAUSE_SECONDS)

    def _act(self, chance: random.Random, device: Device, others: list[Device]) -> None:
        number = chance.random()
        if number < 0.5:
            self._record(chance, "request", device, "GET", "/")
        elif number < 0.7:
            self._list(chance, device)
        elif number < 0.85:
            self._refresh(chance, device)
        elif number < 0.91:
            self._record(chance, "end", device, "DELETE", "/sessions/logout", of=device.session)
        elif number < 0.98:
            other = chance.choice(others)
            if other.number:
                self._record(chance, "end", device, "DELETE", f"/sessions/{other.number}", of=other.session)
        else:
            self._record(chance, "end_all", device, "DELETE", "/sessions/all")

    def _ask(
        self, chance: random.Random, method: str, target: str, token: str | None, body: Any = None
    ) -> tuple[float, float, ClientResponse | None]:
        headers = [] if token is None else [("Authorization", f"Bearer {token}")]
        sent = None
        if body is not None:
            headers.append(("Content-Type", "application/json"))
            sent = json.dumps(body).encode()
        url = chance.choice(self._gates())
        began = time.monotonic()
        response = None
        try:
            response = fetch(url, method, target, headers, sent, timeout=_TIMEOUT_SECONDS)
        except (OSError, http.client.HTTPException):
            # A sidecar that was killed: nothing is known about the request.
            response = None
        return began, time.monotonic(), response

    def _record(
        self, chance: random.Random, kind: Kind, device: Device, method: str, target: str, of: str = ""
    ) -> None:
        began, ended, response = self._ask(chance, method, target, device.access)
        self.history.append(
            Operation(
                kind=kind,
                user=device.user,
                began=began,
                ended=ended,
                result=_result(response),
                session=device.session,
                of=of,
            )
        )

    def _new_device(self, user: str, tokens: dict[str, Any]) -> Device:
        return Device(user, tokens)

    def _log_in(self, chance: random.Random, user: str) -> None:
        body = {"username": user, "password": "right", "browser": chance.randrange(2)}
        began, ended, response = self._ask(chance, "POST", "/auth/login", None, body)
        if response is None or response.status != 200:
            return
        device = self._new_device(user, json.loads(response.body))
        self.history.append(
            Operation(kind="login", user=user, began=began, ended=ended, result="done", session=device.session)
        )
        self._devices[user].append(device)

    def _list(self, chance: random.Random, device: Device) -> None:
        began, ended, response = self._ask(chance, "GET", "/api/users/me/sessions", device.access)
        listed: frozenset[str] = frozenset()
        if response is not None and response.status == 200:
            rows = json.loads(response.body)
            for row in rows:
                if row["is_current"]:
                    device.number = str(row["id"])
                    self._sessions[device.number] = device.session
            listed = frozenset(str(row["id"]) for row in rows)
        result = _result(response)
        self.history.append(
            Operation(
                kind="list",
                user=device.user,
                began=began,
                ended=ended,
                result=result,
                session=device.session,
                listed=listed,
            )
        )

    def _refresh(self, chance: random.Random, device: Device) -> None:
        presented = device.refresh
        began, ended, response = self._ask(chance, "POST", "/auth/refresh", None, {"refresh_token": presented})
        successor = ""
        if response is not None and response.status == 200:
            tokens = json.loads(response.body)
            successor = tokens["refresh_token"]
            device.take(tokens)
        self.history.append(
            Operation(
                kind="refresh",
                user=device.user,
                began=began,
                ended=ended,
                # A refusal may be about the token alone, which another thread has used meanwhile.
                result="done" if successor else "unknown",
                session=device.session,
                presented=presented,
                successor=successor,
            )
        )


class ReturningClients(Clients):
    """Clients of a provider that remembers their browsers: every login of one browser has the same `sid` and
    `auth_time`. What counts as a session here is one token, so that an old one that lives again is seen."""

    def _new_device(self, user: str, tokens: dict[str, Any]) -> Device:
        device = Device(user, tokens | {"refresh_token": ""})
        device.session = hashlib.sha256(device.access.encode()).hexdigest()
        return device

    def _act(self, chance: random.Random, device: Device, others: list[Device]) -> None:
        number = chance.random()
        if number < 0.55:
            self._record(chance, "request", device, "GET", "/")
        elif number < 0.7:
            self._record(chance, "end", device, "DELETE", "/sessions/logout", of=device.session)
        elif number < 0.8:
            self._record(chance, "end", device, "POST", "/auth/logout", of=device.session)
        elif number < 0.85:
            self._record(chance, "end_all", device, "DELETE", "/sessions/all")
        else:
            self._log_in(chance, device.user)


def _result(response: ClientResponse | None) -> Result:
    if response is not None and response.status == 200:
        return "done"
    if response is not None and response.status == 401:
        return "refused"
    return "unknown"
