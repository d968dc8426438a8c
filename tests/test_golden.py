"""Requests and their exact answers: `golden/<row>.http` holds those of one demand, in the form that editors run.

An exchange begins with a line `###`. `{{laptop}}` is the token of a caller, `{{laptop.id}}` the id of its session;
`### @silent laptop` lets it be silent for half an hour before. `@with` in the preamble gives settings. What differs
from run to run is masked: times (with their precision), ids of sessions, request ids, the length of what holds them.

After a change that is meant: `python -m tests.test_golden` writes the answers anew; read the difference.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gatekeeper.app import create_app
from gatekeeper.build import build
from gatekeeper.demo.backend import SampleBackend
from gatekeeper.dialects import DIALECTS
from gatekeeper.settings import load
from gatekeeper_middleware import GatekeeperMiddleware
from tests.contracts.dialect import CHROME_ON_WINDOWS
from tests.described import Described
from tests.servers import ClientResponse, fetch, serve_asgi
from tests.stored_index import move
from tests.system.sidecar import Store, environment, external_store, masked
from tests.test_demands import ids
from tests.tokens import forge

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.http"))
SAMPLES = sorted((GOLDEN / "seed").glob("*.json"))
SAFARI_ON_IOS = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.2 Mobile/15E148 Safari/604.1"
)
# In this order they made their first request. Alice is user 74 of the demo's backend, Bob 75, the administrator 1.
CALLERS = {
    "phone": ("74", "alice", ["user"], SAFARI_ON_IOS),
    "laptop": ("74", "alice", ["user"], CHROME_ON_WINDOWS),
    "bob": ("75", "bob", ["user"], CHROME_ON_WINDOWS),
    "admin": ("1", "admin", ["user", "admin"], CHROME_ON_WINDOWS),
}
# Every row that names a request, or the answer to one, but those of tokens that Gatekeeper issues (C-01 to C-03).
ROWS = ids(
    "A-01…A-04 A-19…A-22 A-25 B-01…B-05 B-08…B-11 B-13 C-04…C-09 C-20…C-24 C-30 C-34 D-01 D-03 D-09…D-11 E-01…E-03"
)
_HALF_AN_HOUR = 30 * 60 * 1_000_000
_PREFIX = "golden:"


class Exchange(NamedTuple):
    """One request, as it stands in the file, and the lines of its answer."""

    title: str
    request: str
    answer: str

    def sent(self, callers: dict[str, str]) -> tuple[str, str, list[tuple[str, str]], bytes | None]:
        """Method, target, headers and body, with the callers' tokens and ids in their places."""
        text = re.sub(r"\{\{([\w.]+)\}\}", lambda match: callers[match[1]], self.request)
        head, _, body = text.partition("\n\n")
        first, *lines = head.split("\n")
        method, target, version = first.split(" ")
        assert version == "HTTP/1.1"
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return method, target, headers, body.strip("\n").encode() or None


class Golden:
    """One file: its preamble, and the exchanges in their order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.preamble, *parts = re.split(r"(?m)^###", path.read_text(encoding="utf-8"))
        self.exchanges = [self._exchange(part) for part in parts]

    @property
    def settings(self) -> dict[str, str]:
        return dict(
            line.removeprefix("# @with ").split("=", 1) for line in self.preamble.splitlines() if "@with" in line
        )

    def _exchange(self, part: str) -> Exchange:
        title, _, rest = part.partition("\n")
        request, _, answer = rest.partition("\nHTTP/1.1 ")
        return Exchange(title.strip(), request.strip("\n"), f"HTTP/1.1 {answer}".rstrip("\n") if answer else "")

    def write(self, answers: list[str]) -> None:
        parts = [
            f"###{' ' if each.title else ''}{each.title}\n{each.request}\n\n{answer}\n"
            for each, answer in zip(self.exchanges, answers, strict=True)
        ]
        self.path.write_text(self.preamble + "\n".join(parts), encoding="utf-8")


def worded(answer: ClientResponse) -> str:
    """An answer as it stands in a file."""
    if answer.body:
        assert answer.get_all("content-length") == [str(len(answer.body))]
    masks = {"x-request-id": "<uuid>", "content-length": "<length>", "date": "<date>"}
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
    lines += [f"{name.lower()}: {masks.get(name.lower(), value)}" for name, value in answer.headers]
    body = re.sub(rb'"session_id":[1-9]\d{0,15}', b'"session_id":<id>', masked(answer.body)).decode()
    return "\n".join(lines) + (f"\n\n{body}" if body else "")


# Gatekeeper in front of the demo's backend


@contextmanager
def mounted(environ: dict[str, str]) -> Iterator[str]:
    """Inside of the backend; yields its URL."""
    app = GatekeeperMiddleware(SampleBackend(forge.SECRET.encode()).app(), load(environ))
    with serve_asgi(app) as url:
        yield url


@contextmanager
def in_front(environ: dict[str, str]) -> Iterator[str]:
    """The application of the sidecar, in front of the backend."""
    with serve_asgi(SampleBackend(forge.SECRET.encode()).app()) as upstream:
        chosen = load(environ | {"GATEKEEPER_UPSTREAM_URL": upstream}, require_upstream=True)
        with serve_asgi(create_app(chosen, build(chosen, mode="sidecar")).handler) as url:
            yield url


Way = Callable[[dict[str, str]], AbstractContextManager[str]]


class Stage:
    """Gatekeepers over one store, one for each choice of settings. To every file all callers are new."""

    def __init__(self, store: Store, way: Way, stack: ExitStack) -> None:
        self._store, self._way, self._stack = store, way, stack
        self._urls: dict[str, str] = {}

    def _url(self, settings: dict[str, str]) -> str:
        key = repr(settings)
        if key not in self._urls:
            environ = environment(**{"redis_url": self._store.url, "key_prefix": _PREFIX, **settings})
            self._urls[key] = self._stack.enter_context(self._way(environ))
        return self._urls[key]

    def run(self, golden: Golden) -> Iterator[tuple[Exchange, ClientResponse, Described]]:
        for user, *_ in CALLERS.values():
            for name in list(self._store.client.scan_iter(f"{_PREFIX}{{{user}}}:*")):
                self._store.client.delete(name)
        url = self._url(golden.settings)
        described = Described(json.loads(fetch(url, "GET", "/_gatekeeper/openapi.json").body))
        callers = _callers(url)
        for exchange in golden.exchanges:
            if exchange.title.startswith("@silent "):
                caller = exchange.title.split()[1]
                tag = f"{_PREFIX}{{{CALLERS[caller][0]}}}"
                move(self._store.client, tag, int(callers[f"{caller}.id"]), -_HALF_AN_HOUR)
            yield exchange, fetch(url, *exchange.sent(callers)), described


@contextmanager
def stage_of(way: Way) -> Iterator[Stage]:
    with external_store() as store, ExitStack() as stack:
        yield Stage(store, way, stack)


def _callers(url: str) -> dict[str, str]:
    """Every caller's token, and the id of the session that its first request opened."""
    found: dict[str, str] = {}
    now = int(time.time())
    for name, (user, called, roles, user_agent) in CALLERS.items():
        claims = {"sub": user, "name": called, "roles": roles, "jti": f"jti-{name}", "iat": now, "exp": now + 600}
        found[name] = forge.token(claims=claims)
        headers = [("Authorization", f"Bearer {found[name]}"), ("User-Agent", user_agent)]
        answer = fetch(url, "GET", "/headers", headers)
        if answer.status == 200:
            found[f"{name}.id"] = json.loads(answer.body)["x-session-id"]
    return found


@pytest.fixture(scope="module", params=[mounted, in_front])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage_of(request.param) as made:
        yield made


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_answers_are_those_of_the_golden_file(path: Path, stage: Stage) -> None:
    for exchange, answer, described in stage.run(Golden(path)):
        assert worded(answer) == exchange.answer, exchange.request
        method, target, _ = exchange.request.partition("\n")[0].split(" ")
        operation = described.find(method, target)
        if operation is not None:
            described.validate(operation, answer)


def test_every_demand_that_has_a_request_has_a_golden_file() -> None:
    assert [path.stem for path in FILES] == sorted(ROWS)


def test_every_operation_stands_in_a_golden_file() -> None:
    lines = [exchange.request.partition("\n")[0] for path in FILES for exchange in Golden(path).exchanges]
    shown = [f"{method} {target.partition('?')[0].removesuffix('/')}" for method, target, _ in map(str.split, lines)]
    # The native API comes from no seed: tests/dialects/test_native.py has it.
    seeded = [dialect for name, dialect in DIALECTS.items() if name != "native"]
    for operation in (operation for dialect in seeded for operation in dialect.operations):
        path = re.sub(r"\{\w+\}", r"(?!(?:me|all|logout)$)[^/]+", operation.path.removesuffix("/"))
        assert any(re.fullmatch(f"{operation.method} {path}", line) for line in shown), operation.path


# The samples of the seeds


_VARIES = {"ip_address": str, "user_agent": str, "location": str, "login_method": str}


def _worn(value: Any, name: str = "") -> Any:
    """A sample, or an answer, without what is another in each: order of members, texts and precision stay."""
    if isinstance(value, dict):
        return {key: _worn(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_worn(each) for each in value[:1]]
    if name in _VARIES:
        assert type(value) is _VARIES[name]
        return f"<{name}>"
    if type(value) is int:
        return "<number>"
    if name == "session_key":
        return re.sub(r"\A[0-9a-f]{6}\.\.\.\Z", "<key>", value)
    return value


def _body(answer: str) -> bytes:
    return answer.partition("\n\n")[2].encode()


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_an_answer_reads_as_the_sample_of_its_seed(path: Path) -> None:
    """To the letter, the order of members and the precision of times included."""
    text = masked(path.read_bytes().replace(b'": ', b'":')).replace(b'"session_123"', b'"session_<id>"')
    sample = json.dumps(_worn(json.loads(text.replace(b"<id>,", b"1,"))))
    bodies = [
        _body(exchange.answer).replace(b"<id>", b"1") for exchange in Golden(GOLDEN / f"{path.stem}.http").exchanges
    ]
    shown = {json.dumps(_worn(json.loads(body))) for body in bodies if body}
    assert sample.replace("session_<id>", "session_1") in shown


def _write() -> None:
    with stage_of(mounted) as stage:
        for path in FILES:
            golden = Golden(path)
            golden.write([worded(answer) for _, answer, _ in stage.run(golden)])


if __name__ == "__main__":
    _write()
