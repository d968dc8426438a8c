"""Hooks for schemathesis: every request comes from a caller of its own, an administrator with two live sessions.

A call that ends sessions would otherwise leave nobody to make the next one. Every other call on one session names the
caller's; the rest keep what schemathesis makes up.
"""

from __future__ import annotations

import itertools
import os
from typing import Any, NamedTuple

import schemathesis

from tests.contracts.dialect import admin
from tests.system.sidecar import World, someone

_turns = itertools.count()


class Caller(NamedTuple):
    """`other` is a second session of the user: nobody reports their own."""

    user: str
    token: str
    session: int
    other: int


@schemathesis.auth(refresh_interval=None)
class Callers:
    def get(self, case: Any, context: Any) -> Caller:
        user = someone()
        token = admin(user)
        world = World(os.environ["GATE_URL"], list)
        (session,) = world.session_ids(token)
        _, other = sorted(world.session_ids(admin(user)), key=lambda each: each != session)
        return Caller(user, token, session, other)

    def set(self, case: Any, data: Caller, context: Any) -> None:
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data.token}"}
        if next(_turns) % 2 and case.path_parameters:
            own = str(data.other if case.path.endswith("/report") else data.session)
            real = {"user_id": data.user, "id": own, "session_id": own}
            case.path_parameters = {name: real[name] for name in case.path_parameters}
