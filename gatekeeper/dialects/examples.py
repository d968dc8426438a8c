"""The examples of the OpenAPI document: the responses that a sample caller gets.

The handlers that serve requests make them too, so an example always has the shape of the real response.
"""

from __future__ import annotations

import re
from collections.abc import Coroutine
from typing import Any, Final, cast

import msgspec

from gatekeeper.dialects.base import Answer, Call, Dialect, Operation, Wording
from gatekeeper.errors import Reason
from gatekeeper.models import Claims, Client, Device, EndReason, Location, Policy, Problem, Session

_SECOND: Final = 1_000_000
_SIGNED_IN: Final = 1_736_845_200 * _SECOND
_NOW: Final = _SIGNED_IN + 5_400 * _SECOND
_REQUEST_ID: Final = "550e8400-e29b-41d4-a716-446655440000"
_USER: Final = "74"
_END_REASONS: Final = {
    Reason.ACCESS_TOKEN_BLACKLISTED: EndReason.LOGGED_OUT,
    Reason.SESSION_REVOKED_OR_INVALID: EndReason.REVOKED_BY_USER,
    Reason.SESSION_INACTIVITY_TIMEOUT: EndReason.IDLE,
    Reason.SESSION_EXPIRED: EndReason.EXPIRED,
}


def _session(number: int, *, user_agent: str, device: Device, silent_seconds: int) -> Session:
    return Session(
        id=number,
        user=_USER,
        reference=f"0b2c6f1e-{number % 10_000:04}",
        jti=f"0b2c6f1e-{number % 10_000:04}",
        ip_address="192.0.2.1",
        user_agent=user_agent,
        device=device,
        location=Location("New York", "US"),
        login_method="password",
        created_at=_SIGNED_IN,
        last_activity=_NOW - silent_seconds * _SECOND,
        expires_at=_SIGNED_IN + 86_400 * _SECOND,
        ended_at=None,
        end_reason=None,
    )


_LAPTOP: Final = _session(
    2_140_199_109_004_637,
    user_agent="Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 "
    "Safari/537.36",
    device=Device(
        browser="Chrome",
        os="Windows",
        os_version="10",
        form="Desktop",
        type="web",
        name="Chrome on Windows",
        name_with_version="Chrome on Windows 10",
    ),
    silent_seconds=0,
)
_PHONE: Final = _session(
    6_317_025_481_990_028,
    user_agent="Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.2 Mobile/15E148 Safari/604.1",
    device=Device(
        browser="Safari",
        os="iOS",
        os_version="17.2",
        form="Mobile",
        type="web",
        name="Safari on iOS",
        name_with_version="Safari on iOS 17.2",
    ),
    silent_seconds=900,
)


def _ended(reason: EndReason) -> Session:
    return msgspec.structs.replace(_PHONE, ended_at=_NOW, end_reason=reason)


class _SampleSessions:
    """The sessions of a user with a laptop, which sends the request, and a phone. No call changes them."""

    async def sessions(self, user: str, *, include_inactive: bool = False) -> list[Session]:
        return [_LAPTOP, _PHONE]

    async def history(self, user: str, *, include_ended: bool) -> list[Session]:
        return [_LAPTOP, _PHONE]

    async def get(self, user: str, session_id: int | None) -> Session | None:
        return _PHONE

    async def rename(self, user: str, session_id: int | None, name: str) -> Session | None:
        return msgspec.structs.replace(_PHONE, given_name=name)

    async def report(self, user: str, session_id: int | None) -> Session | None:
        return _ended(EndReason.REPORTED)

    async def revoke(
        self, user: str, session_id: int | None, *, by_admin: bool = False, only_live: bool = False
    ) -> Session | None:
        return _ended(EndReason.REVOKED_BY_USER) if only_live else _PHONE

    async def deactivate(self, user: str, session_id: int | None) -> Session | None:
        return _PHONE

    async def revoke_all(self, user: str, *, spare: int | None = None, by_admin: bool = False) -> int:
        return 2 if spare is None else 1

    async def log_out(self, claims: Claims, client: Client) -> int | None:
        return None

    async def clean_up(self) -> int:
        return 2


def example(operation: Operation) -> Any:
    """Returns the response body of `operation` for the sample caller, as plain JSON values."""
    call = Call(
        manager=_SampleSessions(),
        claims=Claims(
            user=_USER,
            reference=_LAPTOP.reference,
            jti=_LAPTOP.jti,
            roles=(),
            is_admin=False,
            issued_at=_SIGNED_IN / _SECOND,
            expires_at=_NOW / _SECOND + 900,
            claims={},
        ),
        session_id=_LAPTOP.id,
        client=Client(ip_address=_LAPTOP.ip_address, user_agent=_LAPTOP.user_agent),
        parameters={
            name: _USER if name == "user_id" else str(_PHONE.id) for name in re.findall(r"\{(\w+)\}", operation.path)
        },
        flags=operation.flags,
        texts={},
        members=dict.fromkeys(operation.accepts, "Phone"),
        policy=Policy(device_limit=3, device_limit_policy="evict_idle", idle_seconds=1800, session_seconds=86_400),
        change_password_url="/account/password",  # noqa: S106 - a path
        request_id=_REQUEST_ID,
        now=_NOW,
        language="en",
    )
    # The sample sessions never wait, so the coroutine ends at its first step and needs no event loop.
    handling = cast(Coroutine[Any, Any, Answer | Problem], operation.handler(call))
    try:
        handling.send(None)
    except StopIteration as done:
        return msgspec.to_builtins(done.value.body)
    handling.close()
    raise RuntimeError(f"{operation.method} {operation.path} awaited something other than call.manager")


def error_example(dialect: Dialect, operation: Operation, reason: Reason) -> Any:
    """Returns the error body of `dialect` for `reason`, as plain JSON values, for a request of `operation`."""
    detail = "The body must be a JSON object" if reason is Reason.BAD_REQUEST else ""
    problem = Problem(reason=reason, detail=detail, end_reason=_END_REASONS.get(reason))
    wording = Wording(request_id=_REQUEST_ID, now=_NOW, language="en", operation=operation)
    return msgspec.to_builtins(dialect.word(problem, wording))
