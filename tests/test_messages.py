"""What people read has a translation, all of it; what programs read has none (C-39, U14)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.dialects import DIALECTS, base
from gatekeeper.dialects.base import Answer, Operation, Wording
from gatekeeper.dialects.router import Bound, Router
from gatekeeper.errors import Reason
from gatekeeper.http.paths import PathTable
from gatekeeper.messages import CATALOGUES, LANGUAGES, preferred_language, supported_language, translate
from gatekeeper.models import Claims, Client, Device, EndReason, Location, Policy, Problem, Session
from tests.contracts.responses import TABLE

ROOT = Path(__file__).parent.parent
FRENCH = CATALOGUES["fr"]

# The demands and the texts of rule 6.1, byte for byte.
SEEDS = {
    *("Session not found or already terminated", "Session terminated successfully"),
    "All sessions terminated successfully",
    *(
        "Sessions retrieved successfully",
        "Session deleted successfully",
        "All sessions deleted successfully",
    ),  # B-01…B-03
    *("Session deactivated successfully", "Unauthorized", "Invalid or missing authentication token"),  # B-04, B-08
    "Session not found or unauthorized",  # B-09
    "The requested session does not exist or you don't have permission to delete it",  # B-09
    "Current session closed successfully",  # D-03
    *("Session closed successfully", "All sessions closed successfully"),  # rule 7.3
    *("Session revoked", "All other sessions revoked"),
    *(detail for _, detail in TABLE.values()),
    "Too many requests, try again later",
}


# Every text that there is


class Everything:
    """A manager for whom everything works, or nothing is there; not a store in sight."""

    def __init__(self, *, found: bool) -> None:
        self.found = found

    def by(self, _: Any) -> Everything:
        return self

    async def record_admin_action(self, *_: Any) -> None: ...

    async def sessions(self, user: str, **_: Any) -> list[Session]:
        return [session(user)]

    async def revoke(self, user: str, *_: Any, **__: Any) -> Session | None:
        return session(user) if self.found else None

    deactivate = get = rename = report = revoke

    async def history(self, user: str, **_: Any) -> list[Session]:
        return [session(user)]

    async def revoke_all(self, *_: Any, **__: Any) -> int:
        return 3

    clean_up = revoke_all

    async def log_out(self, *_: Any) -> None: ...


def session(user: str) -> Session:
    device = Device(
        browser="Chrome", os="Windows", os_version="10", form="Desktop", type="web", name="Chrome on Windows",
        name_with_version="Chrome on Windows 10",
    )  # fmt: skip
    return Session(
        id=7, user=user, reference="a", jti=None, ip_address="203.0.113.9", user_agent="", device=device,
        location=Location(), login_method="token", created_at=1, last_activity=1, expires_at=1, ended_at=None,
        end_reason=None,
    )  # fmt: skip


POLICY = Policy(device_limit=3, device_limit_policy="evict_idle", idle_seconds=1800, session_seconds=86_400)
CLAIMS = Claims(
    user="74", reference="a", jti=None, roles=("admin",), is_admin=True, issued_at=None, expires_at=1.0, claims={}
)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every text that is given to be translated."""
    texts: list[str] = []

    def note(text: str, language: str) -> str:
        texts.append(text)
        return translate(text, language)

    monkeypatch.setattr(base, "translate", note)
    yield texts
    assert texts


def wording(language: str = "fr", operation: Operation | None = None) -> Wording:
    return Wording(request_id="x", now=0, language=language, operation=operation)


def bounds() -> list[Bound]:
    return [Bound(dialect, operation) for dialect in DIALECTS.values() for operation in dialect.operations]


def named(bound: Bound) -> str:
    return f"{bound.operation.method} {bound.operation.path}"


async def served(bound: Bound, *, found: bool, query: bytes = b"", language: str = "fr") -> Answer | Problem:
    manager: Any = Everything(found=found)
    router = Router(manager, dialects=list(DIALECTS), error_dialect="fastapi", policy=POLICY, debug_for_everybody=True)
    return await router.serve(
        bound,
        claims=CLAIMS,
        session_id=7,
        client=Client(ip_address="203.0.113.9", user_agent=""),
        parameters={"id": "7", "session_id": "7", "user_id": "74"},
        query=query,
        members={"name": "Phone"} if bound.operation.accepts else {},
        wording=wording(language, bound.operation),
    )


@pytest.mark.slow
@pytest.mark.parametrize("bound", bounds(), ids=named)
async def test_everything_that_an_operation_says_is_translated(bound: Bound, said: list[str]) -> None:
    flags = [b"exclude_current=maybe", b"include_inactive=", b"user_id=1&user_id=2"]
    for found in (True, False):
        for query in (b"", *flags):
            answer = await served(bound, found=found, query=query)
            if isinstance(answer, Problem):
                bound.dialect.word(answer, wording(operation=bound.operation))
    bound.dialect.word(Problem(reason=Reason.TOKEN_MISSING), wording(operation=bound.operation))
    assert set(said) <= set(FRENCH), set(said) - set(FRENCH)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
def test_everything_that_an_error_says_is_translated(dialect: base.Dialect, reason: Reason, said: list[str]) -> None:
    problem = Problem(reason=reason, detail="" if reason.detail else "The body must be a JSON object")
    for operation in (None, *dialect.operations):
        dialect.word(problem, wording(operation=operation))
    assert set(said) <= set(FRENCH), set(said) - set(FRENCH)


# What raises or makes these is told what is wrong with a request.
_TELLERS = {"BadPath", "RequestNotForwardable"}


def _details() -> set[str]:
    """Every text in the source that says what is wrong with a request: of exceptions, and of `Problem(detail=…)`."""
    said: list[ast.expr] = []
    for path in (path for folder in ("gatekeeper", "middleware") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                said += [keyword.value for keyword in node.keywords if keyword.arg == "detail"]
                said += node.args if isinstance(node.func, ast.Name) and node.func.id in _TELLERS else []
    return {str(text.value) for text in said if isinstance(text, ast.Constant)} - {""}


def test_whatever_is_told_of_a_bad_request_is_translated() -> None:
    details = _details()
    assert {"The path holds a NUL", "This method is not allowed"} <= details
    assert details <= set(FRENCH), details - set(FRENCH)


HOSTILE_PATHS = [
    b"", b"x", b"*", b"/" + b"x" * 20_000, b"/\xff", b"/#", b"/ ", b"/%", b"/%zz", b"/%00", b"/%c0%ae", b"/A%PI",
    b"/API/sessions", b"//api/sessions",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_what_a_bad_path_is_told_is_translated(path: bytes) -> None:
    router = Router(Everything(found=True), dialects=["express"], error_dialect="express", policy=POLICY)
    table = PathTable(router.routes(), [])
    with pytest.raises(ValueError) as caught:
        table.classify("GET", path)
    assert str(caught.value) in FRENCH


def test_every_status_has_a_translated_phrase() -> None:
    # B-05: `express` gives the phrase of HTTP as its message, in the words of whichever Python this is.
    phrases = {HTTPStatus(reason.status).phrase for reason in Reason}
    renamed = {"Request Entity Too Large", "Content Too Large"}
    assert phrases | renamed <= set(FRENCH), phrases - set(FRENCH)


def test_every_detail_of_a_reason_is_translated() -> None:
    assert {reason.detail for reason in Reason} - {""} <= set(FRENCH)


# The catalogues


def test_the_english_texts_are_those_of_the_seeds_byte_for_byte() -> None:
    assert set(FRENCH) >= SEEDS, SEEDS - set(FRENCH)
    assert {reason.code: (reason.status, reason.detail) for reason in Reason}.items() >= TABLE.items()


@pytest.mark.parametrize("bound", bounds(), ids=named)
async def test_english_is_the_text_in_the_code(bound: Bound, said: list[str]) -> None:
    answer = await served(bound, found=True, language="en")
    message = getattr(getattr(answer, "body", None), "message", None)
    assert message is None or message in said
    said.append("")


def test_english_is_never_touched() -> None:
    for text in FRENCH:
        assert translate(text, "en") is text
        assert text.isascii()


def test_a_translation_says_something_else_and_holds_nothing_to_fill_in() -> None:
    for english, french in FRENCH.items():
        assert french != english
        assert french == french.strip()
        assert not re.search(r"[{}%<>]", french), french
        # The names of parameters and media types stay as they are.
        assert re.findall(r"\b\w+_\w+\b|application/json", english) == re.findall(
            r"\b\w+_\w+\b|application/json", french
        )


def test_every_language_is_the_whole_of_what_there_is() -> None:
    assert ("en", *CATALOGUES) == LANGUAGES
    assert all(set(catalogue) == set(FRENCH) for catalogue in CATALOGUES.values())


def test_what_has_no_translation_stays_as_it_is() -> None:
    assert translate("never written", "fr") == "never written"
    assert translate("Not found", "xx") == "Not found"


def test_codes_and_end_reasons_are_never_translated() -> None:
    codes = {reason.code for reason in Reason} | {reason.code.upper() for reason in Reason} | set(EndReason)
    assert not codes & set(FRENCH)
    for dialect in DIALECTS.values():
        for reason in Reason:
            problem = Problem(reason=reason, detail=reason.detail or "x", end_reason=EndReason.IDLE)
            english, french = (dialect.word(problem, wording(language)) for language in ("en", "fr"))
            assert _code(english) == _code(french) != ""
            assert getattr(english, "reason", None) is getattr(french, "reason", None)


def _code(body: Any) -> str:
    return str(getattr(body, "error", body).code)


# Which language


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("fr", "fr"),
        ("FR", "fr"),
        ("fr-CA", "fr"),
        ("fr-Latn-CA-x-private", "fr"),
        ("en-GB,fr", "en"),
        ("fr, en", "fr"),
        ("en;q=0.8, fr;q=0.9", "fr"),
        ("en;q=0.9, fr;q=0.8", "en"),
        ("de, fr;q=0.1", "fr"),
        ("de-DE, *;q=0.5, fr;q=0.001", "fr"),
        ("fr;q=0, en;q=0.1", "en"),
        ("fr;Q=0.5,en;q=0.4", "fr"),
        ("fr ; q=0.5 , en;q=0.4", "fr"),
        ("\tfr", "fr"),
        ("fr;q=1.000", "fr"),
        ("x, fr, !!!", "fr"),
    ],
)
def test_the_best_known_language_of_the_header_is_chosen(header: str, language: str) -> None:
    for fallback in LANGUAGES:
        assert preferred_language(header, fallback) == language


# Not one of these names a language that there is (U14).
NOBODYS = [
    *("", " ", "*", "*;q=1", "de", "de-FR", "frfr", "french", "x-fr", "f", "fr_CA", "fr-", "fr--CA", "fr-toolongtag"),
    *("fr;q=0", "fr;q=0.000", "fr;q=2", "fr;q=1.5", "fr;q=-1", "fr;q=0.0001", "fr;q=", "fr;q=a", "fr;level=1", "q=fr"),
    *("../../etc/passwd", "fr/../../etc/passwd", "{0.__class__}", "{fr}", "%s", "fr\x00", "fr\n", "\u0192r", "ｆｒ"),
    *(
        "en\r\nX-Evil: 1",
        "<script>fr</script>",
        "fr" * 5_000,
        "fr," * 4_000,
        "," * 10_000,
        "-" * 10_000,
        "fr" + "-a" * 5_000,
    ),
]


@pytest.mark.parametrize("header", NOBODYS)
def test_anything_else_is_the_fallback(header: str) -> None:
    for fallback in LANGUAGES:
        assert preferred_language(header, fallback) == fallback


@pytest.mark.parametrize("tag", [*NOBODYS, "fr, en", "fr;q=1", " fr", "fr "])
def test_what_is_no_tag_of_a_known_language_is_none(tag: str) -> None:
    assert supported_language(tag) is None


def test_a_tag_is_known_by_its_first_part_in_any_case() -> None:
    assert [supported_language(tag) for tag in ("fr", "FR-ca", "en", "EN-us", "fr-Latn-CA")] == [
        "fr",
        "fr",
        "en",
        "en",
        "fr",
    ]


@given(st.text(max_size=600))
def test_no_header_is_a_fault(header: str) -> None:
    # U14
    assert preferred_language(header, "fr") in LANGUAGES
    assert supported_language(header) in {None, *LANGUAGES}
