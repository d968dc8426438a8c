"""What the services raise: HTTP errors, which FastAPI and Starlette answer rightly where nobody catches them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gatekeeper import messages
from gatekeeper.errors import GatekeeperError, Reason
from gatekeeper.models import EndReason, Problem
from gatekeeper.web.respond import challenge, problem_headers

_BAD_TOKEN: Final = Reason.TOKEN_INVALID


class Fault(HTTPException):
    """`str()` is the text to show, in the language of whoever asked; `code` names what happened and is never
    translated; `reason` says how a session ended, None where none did."""

    def __init__(
        self,
        detail: str,
        *,
        code: str,
        reason: EndReason | None = None,
        status_code: int,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, detail, headers)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.detail


class AuthenticationError(Fault):
    """Somebody is not signed in, or not any more: 401. Who has no room for one more session: 403; who asks too often:
    429."""

    def __init__(
        self,
        detail: str = _BAD_TOKEN.detail,
        *,
        code: str = _BAD_TOKEN.code,
        reason: EndReason | None = None,
        status_code: int = 401,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if headers is None and status_code == 401:
            headers = {"www-authenticate": "Bearer"}
        super().__init__(detail, code=code, reason=reason, status_code=status_code, headers=headers)


class ServiceUnavailable(Fault):
    """The store or the keys did not answer: 503. It may have happened or not; to ask again is safe."""


def refused(problem: Problem, language: str) -> AuthenticationError:
    """`problem` as the services raise it."""
    return AuthenticationError(
        messages.translate(problem.text, language),
        code=problem.reason.code,
        reason=problem.end_reason,
        status_code=problem.reason.status,
        headers=_headers(problem),
    )


def unavailable(error: GatekeeperError, language: str) -> ServiceUnavailable:
    """What the services raise where nothing could be found out."""
    problem = Problem(reason=error.reason)
    detail = messages.translate(problem.text, language)
    return ServiceUnavailable(
        detail, code=error.reason.code, status_code=error.reason.status, headers=_headers(problem)
    )


def unauthorized(text: str, language: str) -> HTTPException:
    """A token is good, and what it stands for is not."""
    told = challenge(Problem(reason=_BAD_TOKEN, detail=text), token_sent=True).decode()
    return HTTPException(401, messages.translate(text, language), {"www-authenticate": told})


def _headers(problem: Problem) -> dict[str, str]:
    token_sent = problem.reason is not Reason.TOKEN_MISSING
    return {name.decode(): value.decode() for name, value in problem_headers(problem, token_sent=token_sent)}


async def answer_fault(request: Request, error: Exception) -> Response:
    """The answer with `code` and `reason` beside `detail`, as Gatekeeper's own are:
    `app.add_exception_handler(Fault, answer_fault)`."""
    if not isinstance(error, Fault):
        raise error
    body = {"detail": error.detail, "code": error.code}
    if error.reason is not None:
        body["reason"] = error.reason.value
    return JSONResponse(body, error.status_code, {**(error.headers or {}), "cache-control": "no-store"})
