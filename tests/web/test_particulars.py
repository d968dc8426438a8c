"""What a client says of itself is shown as text and kept by nobody; no credential is ever shown.

S26, S28, U01, U06, U09.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from gatekeeper.build import build
from gatekeeper.settings import load
from gatekeeper.telemetry.access_log import AccessLog
from gatekeeper_middleware import GatekeeperMiddleware
from tests.middleware.host import environ_for, mounted, starlette_app
from tests.servers import ClientResponse, raw_client, serve_asgi
from tests.sessions.by_hand import Hand
from tests.system.sidecar import Reached, Store, World, bearer, eventually, someone, token
from tests.web.shapes import ENDS, READS, admin

# (as sent, what a list may show of it at the most)
AGENTS: list[tuple[bytes, str]] = [
    (b"<script>alert(1)</script>", "<script>alert(1)</script>"),
    (b'"><img src=x onerror=alert(1)>', '"><img src=x onerror=alert(1)>'),
    (b"{{7*7}} ${7*7} <%= 7*7 %> #{7*7}", "{{7*7}} ${7*7} <%= 7*7 %> #{7*7}"),
    (b"</script><!--", "</script><!--"),
    (b"a\tb", "ab"),
    (b"\xff\xfe\x80\x85", "\xff\xfe"),
    (b"\xe2\x80\xae evil \xe2\x80\x8b", " evil "),
    ("Gärtner/1.0 (Zoë; 東京; 😀)".encode(), "Gärtner/1.0 (Zoë; 東京; 😀)"),
    ("Gärtner/1.0".encode("latin-1"), "Gärtner/1.0"),
    ("é".encode() * 1_000, "é" * 512),
    ("é".encode() + b"\xff", "Ã©ÿ"),
    (b"back\\slash \" quote ' tick ` end", "back\\slash \" quote ' tick ` end"),
    (b'{"event":"request","level":"error"}', '{"event":"request","level":"error"}'),
    (b"%1b[2J%0d%0aX-Evil: 1", "%1b[2J%0d%0aX-Evil: 1"),
    (b"x" * 60_000, "x" * 512),
    (b"M" * 60_000 + b"(" * 100, "M" * 512),
]


class Logged(World):
    """A world whose access lines can be read."""

    def __init__(self, url: str, reached: list[Reached], store: Store, lines: io.BytesIO) -> None:
        super().__init__(url, lambda: list(reached), store)
        self._lines = lines

    def lines_of(self, request_id: str) -> list[bytes]:
        found: list[bytes] = eventually(
            lambda: [line for line in self._lines.getvalue().split(b"\n") if request_id.encode() in line]
        )
        return found


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[Logged]:
    reached: list[Reached] = []
    lines = io.BytesIO()
    engine = build(load(environ_for(store, rate_limit="off")), mode="middleware", access_log=AccessLog(lines))
    with serve_asgi(GatekeeperMiddleware(starlette_app(reached), engine=engine), http="httptools") as url:
        yield Logged(url, reached, store, lines)


async def asked(world: World, path: str, bearing: str, agent: bytes, request_id: str) -> bytes:
    """The answer to a request with these bytes as its `User-Agent`; empty where the server did not take them."""
    head = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n".encode()
    head += f"Authorization: Bearer {bearing}\r\nX-Request-Id: {request_id}\r\nUser-Agent: ".encode()
    async with raw_client(world.url) as client:
        await client.send(head + agent + b"\r\n\r\n")
        return await client.rest()


@pytest.mark.parametrize("dialect", READS)
@pytest.mark.parametrize(("agent", "shown"), AGENTS, ids=range(len(AGENTS)))
async def test_markup_and_control_bytes_come_back_as_json_text(
    world: Logged, dialect: str, agent: bytes, shown: str
) -> None:
    # U01
    request_id = someone()
    answer = await asked(world, READS[dialect], admin(), agent, request_id)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    lines = head.lower().split(b"\r\n")
    assert b"content-type: application/json; charset=utf-8" in lines
    assert b"x-content-type-options: nosniff" in lines
    # U06
    assert b"cache-control: no-store" in lines
    assert not [line for line in lines if line.startswith((b"etag", b"last-modified", b"expires", b"x-evil"))]
    text = body.decode()
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e]", text)
    assert len(text) < 2_000
    agents = re.findall(r'"user_agent":("(?:[^"\\]|\\.)*")', text)
    assert all(json.loads(each) in {shown, shown.replace("\t", " ")} for each in agents), agents
    assert bool(agents) == (dialect in {"django", "express"})
    # U09: one line, JSON, short, nothing of it
    (line,) = world.lines_of(request_id)
    assert json.loads(line)["status"] == 200
    assert len(line) <= 4_096
    assert not re.search(rb"[\x00-\x1f\x7f]", line)
    assert agent[:20] not in line


@pytest.mark.parametrize("agent", [b"\x1b[2J\x1b[31mred", b"a\x00b", b"a\rb", b"a\nX-Evil: 1", b"\x07\x08"])
async def test_bytes_that_no_header_has_are_refused_or_left_out(world: Logged, agent: bytes) -> None:
    # U01, U09
    request_id = someone()
    answer = await asked(world, "/api/sessions", token(someone()), agent, request_id)
    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))
    if answer.startswith(b"HTTP/1.1 200 "):
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", answer.decode("latin-1"))
        (line,) = world.lines_of(request_id)
        assert not re.search(rb"[\x00-\x1f\x7f]", line)


@pytest.mark.parametrize(
    "path",
    [
        *("/%1b[2J", "/%0d%0aX-Evil:%201", '/"quoted"', "/%22,%22level%22:%22error", "/\\u001b", "/x" + "y" * 12_000),
        *("/{0.__class__}", "/%s%n", "/<script>", "/%FF%FE", "/API/sessions", "/%zz"),
    ],
    ids=range(12),
)
def test_a_hostile_path_is_one_line_of_the_log(world: Logged, path: str) -> None:
    # U09
    for bearing in (None, token(someone())):
        request_id = someone()
        world.fetch(path, bearing, headers=[("X-Request-Id", request_id)])
        (line,) = world.lines_of(request_id)
        assert path.startswith(json.loads(line)["path"])
        assert len(line) <= 4_096
        assert not re.search(rb"[\x00-\x1f\x7f]", line)


# S26


def lists(world: World, bearing: str, user: str) -> list[ClientResponse]:
    paths = [*READS.values(), f"/admin/sessions/active?user_id={user}", f"/sessions/user/{user}", "/debug/session-info"]
    return [world.fetch(f"{path}{'&' if '?' in path else '?'}include_inactive=true", bearing) for path in paths]


def test_no_list_shows_a_token_or_another_user(world: World) -> None:
    # S26: nor what would do as one; the `jti` is none (C-07, C-09)
    me, other = someone(), someone()
    mine, theirs = admin(me), token(other)
    revoked, expired = token(me), token(me, exp=1)
    for bearing in (mine, theirs, revoked):
        world.passed("/", bearing)
    world.fetch("/sessions/logout", revoked, method="DELETE")
    world.fetch("/sessions/logout", expired, method="DELETE")
    for answer in lists(world, mine, me):
        assert answer.status == 200
        text = answer.body.decode()
        for bearing in (mine, theirs, revoked, expired):
            assert not any(part in text for part in bearing.split("."))
        assert other not in text
        assert "eyJ" not in text
        assert "Bearer" not in text


def test_no_answer_to_a_refused_token_repeats_it(world: World) -> None:
    # S26, T-class: errors too
    bad = token(someone())[:-4] + "AAAA"
    for path in (*READS.values(), "/protected"):
        answer = world.refused(path, bad)
        text = answer.body.decode() + str(answer.headers)
        assert not any(part in text for part in bad.split("."))


# S28

# Copies of the user's one session: as many as ARGV[1], each with a reference and an instant of its own.
_MANY = """
local scores = entries()
local id = next(scores)
if redis.call('HGET', KEYS[1], 'i') ~= 'key' then
  redis.call('HSET', KEYS[1], 'i', 'key')
  keep(scores)
else
  id = redis.call('ZREVRANGE', KEYS[2], 0, 0)[1]
end
local packed = redis.call('HGET', KEYS[1], id)
local score = tonumber(redis.call('ZSCORE', KEYS[2], id))
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local record = cmsgpack.unpack(string.sub(packed, 26))
  record[6] = 'copy-' .. number
  redis.call('HSET', KEYS[1], number, string.sub(packed, 1, 25) .. cmsgpack.pack(record), 'r:copy-' .. number, number)
  redis.call('ZADD', KEYS[2], string.format('%.0f', score - number), number)
end
"""


@pytest.mark.slow
def test_100000_sessions_of_one_user_are_a_list_of_1000_and_one_end(store: Store) -> None:
    # S28, A06, rules 4.3 and 4.4
    with mounted(store, rate_limit="off", device_limit="off") as world, Hand(store.url) as hand:
        for dialect, path in READS.items():
            if dialect == "fastapi":
                path = "/sessions/user/{me}"
            user = someone()
            bearing = admin(user)
            world.passed("/", bearing)
            for first in range(1, 100_000, 10_000):
                hand._run(_MANY, user, first, first + 9_999)
            assert hand.indexed_live(user) == 100_001
            found: Any = json.loads(world.fetch(path.replace("{me}", user), bearing).body)
            rows = found["data"] if dialect in {"django", "express"} else found
            assert len(rows["sessions"] if dialect == "django" else rows) == 1_000
            method, end = ENDS[dialect] if dialect != "fastapi" else ("DELETE", f"/sessions/user/{user}")
            ended = world.fetch(end, bearing, method=method)
            assert ended.status == 200
            counts = re.findall(rb'_count":(\d+)', ended.body)
            assert counts == ([] if dialect == "express" else [b"100001"])
            # However few of the records have followed by now.
            assert world.refused("/", bearing).status == 401
            for number in (1, 50_000, 100_000):
                assert world.refused("/", token(user, jti=f"copy-{number}")).status == 401
            assert json.loads(world.fetch(f"/sessions/user/{user}", admin()).body) == []
            hand.redis.delete(*hand.keys(user))


def test_a_list_of_many_is_one_of_the_newest(store: Store) -> None:
    # S28 in small: the bound, and which ones it leaves out
    with mounted(store, rate_limit="off", device_limit="off") as world, Hand(store.url) as hand:
        user = someone()
        bearing = token(user)
        world.passed("/", bearing)
        hand._run(_MANY, user, 1, 1_100)
        (mine, *others) = world.session_ids(bearing)
        assert others == list(range(1, 1_000))
        assert mine not in others
        answer = world.fetch("/api/users/me/sessions", headers=[bearer(bearing)], method="DELETE")
        assert json.loads(answer.body)["revoked_count"] == 1_100
        assert world.session_ids(bearing) == [mine]
