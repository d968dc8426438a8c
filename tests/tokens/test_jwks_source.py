"""The source of a key set: a real server with every kind of failure."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from gatekeeper.errors import KeysUnavailable
from gatekeeper.tokens.keys import FetchError, JwksKeys, http_fetcher
from tests.tokens import forge
from tests.tokens.forge import Clock, jwk
from tests.tokens.jwks_server import ALLOWED, Source, admits, hang_up, judge
from tests.upstream.test_upstream import self_signed
from tests.waiting import HANG_SECONDS, until

BAD_BODIES: list[bytes] = [
    b"",
    b"garbage",
    b"[]",
    b"{}",
    b'{"keys":null}',
    b'{"keys":{}}',
    b'{"keys":"x"}',
    b'{"keys":[1,null,"x",[]]}',
    b'{"keys":[{}]}',
    b'{"keys":[],"keys":[]}',
    b'{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB"}]}',
    b"[" * 200_000,
    b'{"keys":' + b"[" * 3000 + b"]" * 3000 + b"}",
    b"\xff\xfe\x00",
    b"x" * 2_000_000,
    b" " * 2_000_000 + b'{"keys":[]}',
]


async def test_the_source_is_verified_against_the_given_authorities(
    source: Source, tmp_path: Path, rsa_key: rsa.RSAPrivateKey
) -> None:  # J01
    source.publish(jwk(rsa_key, kid="k"))
    certificate, other = self_signed(tmp_path, "localhost"), tmp_path / "other"
    other.mkdir()
    stranger = self_signed(other, "localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    server = await asyncio.start_server(source.answer, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}/jwks.json"
    good = http_fetcher(timeout_seconds=HANG_SECONDS, ca_file=str(certificate))
    assert json.loads(await good(url))["keys"][0]["kid"] == "k"
    for fetch in (
        http_fetcher(timeout_seconds=HANG_SECONDS),
        http_fetcher(timeout_seconds=HANG_SECONDS, ca_file=str(stranger)),
        http_fetcher(timeout_seconds=HANG_SECONDS, ca_file=str(tmp_path / "missing.pem")),
    ):
        with pytest.raises(FetchError):
            await fetch(url)
    server.close()


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
async def test_the_last_good_set_stays_while_the_source_answers_nonsense(
    source: Source, keys: JwksKeys, clock: Clock, rsa_key: rsa.RSAPrivateKey, body: bytes
) -> None:  # J02
    source.publish(jwk(rsa_key, kid="k"))
    token = forge.signed_by(rsa_key, {"alg": "RS256", "kid": "k"})
    assert await admits(keys, token)
    source.body = body
    clock.at += 31
    await keys.refresh()
    assert source.asked == 2
    assert keys.ready
    assert keys.generation == 1
    assert await admits(keys, token)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 302 Found\r\nlocation: {canary}\r\n",
        b"HTTP/1.1 301 Moved\r\nlocation: file:///etc/passwd\r\n",
        b"HTTP/1.1 307 Moved\r\nlocation: ftp://127.0.0.1/x\r\n",
        b"HTTP/1.1 308 Moved\r\nlocation: http://169.254.169.254/latest\r\n",
        b"HTTP/1.1 404 Not Found\r\n",
        b"HTTP/1.1 500 Oops\r\n",
        b"HTTP/1.1 204 No Content\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\n",
        b"nonsense\r\n",
    ],
)
async def test_what_is_not_a_plain_200_is_no_key_set(
    source: Source, keys: JwksKeys, rsa_key: rsa.RSAPrivateKey, head: bytes
) -> None:  # J01
    canary: list[str] = []

    def on_connect(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        canary.append("connected")
        writer.close()

    server = await asyncio.start_server(on_connect, "127.0.0.1", 0)
    target = b"http://127.0.0.1:%d/" % server.sockets[0].getsockname()[1]
    source.publish(jwk(rsa_key, kid="k"))
    source.head = head.replace(b"{canary}", target)
    with pytest.raises(KeysUnavailable):
        await judge(keys).verify(forge.signed_by(rsa_key, {"alg": "RS256", "kid": "k"}))
    await asyncio.sleep(0.01)
    server.close()
    assert canary == []
    assert source.asked == 1


async def test_a_compressed_bomb_is_not_inflated(source: Source, keys: JwksKeys) -> None:  # J02
    source.head += b"content-encoding: gzip\r\n"
    source.body = gzip.compress(b" " * 50_000_000)
    with pytest.raises(KeysUnavailable):
        await keys.refresh()


async def test_a_truncated_body_is_no_key_set(
    source: Source, keys: JwksKeys, rsa_key: rsa.RSAPrivateKey
) -> None:  # J02
    source.publish(jwk(rsa_key, kid="k"))
    source.declared = len(source.body) + 10
    with pytest.raises(KeysUnavailable):
        await keys.refresh()


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "//host/x", "host/x", "", "http://", "gopher://x", "data:,{}"]
)
async def test_only_http_and_https_are_fetched(url: str) -> None:  # J01
    with pytest.raises(ValueError, match="http"):
        JwksKeys(url, fetch=http_fetcher(), algorithms=ALLOWED)
    with pytest.raises(FetchError):
        await http_fetcher()(url)


async def test_proxies_and_credentials_of_the_environment_are_not_used(
    source: Source, keys: JwksKeys, rsa_key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    source.publish(jwk(rsa_key, kid="k"))
    await keys.refresh()
    assert keys.ready


async def test_a_cookie_of_the_source_is_not_sent_back(
    source: Source, keys: JwksKeys, clock: Clock, rsa_key: rsa.RSAPrivateKey
) -> None:
    source.head += b"set-cookie: a=b; path=/\r\n"
    source.publish(jwk(rsa_key, kid="k"))
    await keys.refresh()
    clock.at += 31
    await keys.refresh()
    assert source.asked == 2
    assert b"cookie" not in source.heads[1].lower()


async def test_before_the_first_set_every_token_is_503_and_the_source_is_not_hammered(
    source: Source, keys: JwksKeys, clock: Clock, rsa_key: rsa.RSAPrivateKey
) -> None:  # J05
    source.head = b"HTTP/1.1 503 Later\r\n"
    token = forge.signed_by(rsa_key, {"alg": "RS256", "kid": "k"})
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            await judge(keys).verify(token)
        clock.at += 0.1
    assert source.asked == 1
    assert not keys.ready
    source.head = b"HTTP/1.1 200 OK\r\n"
    source.publish(jwk(rsa_key, kid="k"))
    clock.at += 1
    assert await admits(keys, token)
    assert source.asked == 2


async def test_a_malformed_token_is_refused_although_there_are_no_keys(source: Source, keys: JwksKeys) -> None:
    assert not await admits(keys, "a.b.c")
    assert not await admits(keys, forge.token())
    assert source.asked == 0


async def test_the_first_set_is_retried_without_any_request(source: Source, rsa_key: rsa.RSAPrivateKey) -> None:  # J05
    keys = JwksKeys(source.url, fetch=http_fetcher(), algorithms=ALLOWED, retry_seconds=0.02)
    source.head = b"HTTP/1.1 503 Later\r\n"
    with pytest.raises(KeysUnavailable):
        await keys.refresh()
    source.publish(jwk(rsa_key, kid="k"))
    source.head = b"HTTP/1.1 200 OK\r\n"
    await until(lambda: keys.ready)
    await keys.aclose()


async def test_a_slow_source_makes_nobody_wait_whose_key_is_there(
    source: Source, keys: JwksKeys, clock: Clock, rsa_key: rsa.RSAPrivateKey
) -> None:  # J05
    source.publish(jwk(rsa_key, kid="k"))
    known = forge.signed_by(rsa_key, {"alg": "RS256", "kid": "k"})
    assert await admits(keys, known)
    source.gate.clear()
    clock.at += 31
    unknown = asyncio.create_task(admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": "x"})))
    await until(lambda: source.asked == 2)
    assert await admits(keys, known)
    assert not unknown.done()
    source.gate.set()
    assert not await unknown


async def test_a_source_that_never_answers_is_given_up(source: Source, rsa_key: rsa.RSAPrivateKey) -> None:  # J05
    source.gate.clear()
    keys = JwksKeys(source.url, fetch=http_fetcher(timeout_seconds=0.05), algorithms=ALLOWED)
    with pytest.raises(KeysUnavailable):
        await keys.find(algorithm="RS256", kid="k")
    await keys.aclose()


async def test_the_whole_fetch_is_bounded_and_not_only_its_silences() -> None:
    closed = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
            gone = asyncio.create_task(reader.read())
            while not gone.done():
                writer.write(b" ")
                await asyncio.wait([gone], timeout=0.02)
        await hang_up(writer)
        closed.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    with pytest.raises(FetchError, match="within"):
        await http_fetcher(timeout_seconds=1)(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    await closed.wait()
    server.close()


async def test_many_waiters_share_one_fetch_and_one_cancelled_waiter_does_not_end_it(
    source: Source, keys: JwksKeys, rsa_key: rsa.RSAPrivateKey
) -> None:
    source.publish(jwk(rsa_key, kid="k"))
    source.gate.clear()
    token = forge.signed_by(rsa_key, {"alg": "RS256", "kid": "k"})
    waiters = [asyncio.create_task(admits(keys, token)) for _ in range(20)]
    await until(lambda: source.asked == 1)
    waiters[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiters[0]
    source.gate.set()
    assert await asyncio.gather(*waiters[1:]) == [True] * 19
    assert source.asked == 1


@pytest.mark.parametrize(
    "error", [FetchError("down"), OSError("down"), TimeoutError(), ValueError("x"), RuntimeError("a bug")]
)
async def test_a_fetch_that_fails_in_any_way_is_unavailability(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def fetch(_url: str) -> bytes:
        raise error

    keys = JwksKeys("https://user:pass@issuer.example/jwks?key=s3cret", fetch=fetch, algorithms=ALLOWED)
    with pytest.raises(KeysUnavailable):
        await keys.refresh()
    assert "not refreshed" in caplog.text
    assert repr(keys) == "JwksKeys(issuer.example, no set yet, last fetch failed)"
    assert "s3cret" not in caplog.text
    await keys.aclose()


def canned(body: bytes) -> Callable[[str], Awaitable[bytes]]:
    async def fetch(_url: str) -> bytes:
        return body

    return fetch


async def test_aclose_ends_what_runs_and_may_come_at_any_time(rsa_key: rsa.RSAPrivateKey) -> None:
    body = json.dumps({"keys": [jwk(rsa_key, kid="k")]}).encode()
    keys = JwksKeys("https://issuer.example/", fetch=canned(body), algorithms=ALLOWED)
    await keys.aclose()
    await keys.refresh()
    await keys.aclose()
    await keys.aclose()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("jwks")] == []
