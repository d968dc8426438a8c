"""Errors that the services raise: HTTP exceptions, so FastAPI and Starlette respond correctly if none catches them."""

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
    """An error of a service.

    `detail`, which is also `str(error)`, is the text for the user, in the language of the request. `code` identifies
    the error and is never translated. `reason` says why a session ended, None if none has.
    """

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
    """A user who is not, or no longer, signed in (401), has reached the device limit (403), or made too many attempts
    (429)."""

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
    """The store or the keys did not answer (503). The operation may have taken effect or not; a retry is safe."""


def refused(problem: Problem, language: str) -> AuthenticationError:
    """Return `problem` as the error that a service raises."""
    return AuthenticationError(
        messages.translate(problem.text, language),
        code=problem.reason.code,
        reason=problem.end_reason,
        status_code=problem.reason.status,
        headers=_headers(problem),
    )


def unavailable(error: GatekeeperError, language: str) -> ServiceUnavailable:
    """Return a failure of the store or of the keys as the error that a service raises."""
    problem = Problem(reason=error.reason)
    detail = messages.translate(problem.text, language)
    return ServiceUnavailable(
        detail, code=error.reason.code, status_code=error.reason.status, headers=_headers(problem)
    )


def unauthorized(text: str, language: str) -> HTTPException:
    """Return a 401 for a valid token whose user is not accepted."""
    header = challenge(Problem(reason=_BAD_TOKEN, detail=text), token_sent=True).decode()
    return HTTPException(401, messages.translate(text, language), {"www-authenticate": header})


def _headers(problem: Problem) -> dict[str, str]:
    token_sent = problem.reason is not Reason.TOKEN_MISSING
    return {name.decode(): value.decode() for name, value in problem_headers(problem, token_sent=token_sent)}


async def answer_fault(request: Request, error: Exception) -> Response:
    """Exception handler that adds `code` and `reason` to the body, as in Gatekeeper's own responses:
    `app.add_exception_handler(Fault, answer_fault)`."""
    if not isinstance(error, Fault):
        raise error
    body = {"detail": error.detail, "code": error.code}
    if error.reason is not None:
        body["reason"] = error.reason.value
    return JSONResponse(body, error.status_code, {**(error.headers or {}), "cache-control": "no-store"})
