"""Where verification keys come from: fixed ones of the configuration, or a key set (JWKS) behind a URL."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from gatekeeper.errors import KeysUnavailable
from gatekeeper.tokens import strict_json
from gatekeeper.tokens.key_material import (
    HMAC_ALGORITHMS,
    MAX_KID_LENGTH,
    VerificationKey,
    check_algorithms,
    hmac_keys,
    jwk_keys,
    public_keys,
)

__all__ = ["FetchError", "JwksKeys", "Keys", "StaticKeys", "VerificationKey", "default_algorithms", "http_fetcher"]

logger = logging.getLogger(__name__)

FetchKeySet = Callable[[str], Awaitable[bytes]]
_Index = dict[tuple[str, str | None], list[VerificationKey]]

# Real key sets hold two to ten keys.
MAX_KEYS = 100
# A key with its certificate chain is a few KiB.
MAX_JWKS_BYTES = 1 << 20


class FetchError(Exception):
    """A key set could not be fetched; the text says why."""


class Keys(Protocol):
    """The keys that may verify a token.

    `generation` changes whenever the set does: what was concluded from an older set is void. `ready` is false while
    no token could be verified.
    """

    @property
    def generation(self) -> int: ...

    @property
    def ready(self) -> bool: ...

    async def find(self, *, algorithm: str, kid: str | None) -> Sequence[VerificationKey]:
        """The keys to try for a token's header, all of them bound to `algorithm`; empty where none is known.

        Raises `KeysUnavailable` where no set was ever had.
        """

    async def recheck(self) -> bool:
        """A signature fitted no key: looks for newer keys if it is time to; true where the set has changed."""

    async def refresh(self) -> None:
        """Looks for newer keys if it is time to. Raises `KeysUnavailable` where there is no set after that."""

    async def aclose(self) -> None: ...


def default_algorithms(*, hmac: bool) -> tuple[str, ...]:
    """The allow-list where none is configured: by the kind of key."""
    return ("HS256",) if hmac else ("RS256", "ES256", "EdDSA")


class StaticKeys:
    """Keys of the configuration. They have no ids: `kid` is ignored and every key of the algorithm is tried.

    Raises `ValueError` that names the faulty entry, what is wrong with it and what is accepted, never its content.
    """

    generation = 0
    ready = True

    def __init__(
        self, hmac_secrets: Sequence[str | bytes], public_keys_pem: Sequence[str | bytes], algorithms: Sequence[str]
    ) -> None:
        check_algorithms(algorithms)
        if hmac_secrets and public_keys_pem:
            raise ValueError("HMAC secrets and public keys are never used together; choose one kind")
        if not (hmac_secrets or public_keys_pem):
            raise ValueError("no key; accepted: HMAC secrets or public keys in PEM")
        is_hmac = algorithms[0] in HMAC_ALGORITHMS
        if is_hmac != bool(hmac_secrets):
            kind = "HMAC secrets" if hmac_secrets else "public keys"
            raise ValueError(f"{', '.join(algorithms)} cannot be used with {kind}")
        found: list[VerificationKey] = []
        for number, entry in enumerate(hmac_secrets or public_keys_pem, start=1):
            try:
                found += hmac_keys(entry, algorithms) if is_hmac else public_keys(entry, algorithms)
            except ValueError as error:
                raise ValueError(f"{'HMAC secret' if is_hmac else 'public key'} {number} {error}") from None
        self._keys = {name: tuple(key for key in found if key.algorithm == name) for name in algorithms}

    def __repr__(self) -> str:
        return f"StaticKeys({', '.join(f'{len(keys)} for {name}' for name, keys in self._keys.items())})"

    async def find(self, *, algorithm: str, kid: str | None) -> Sequence[VerificationKey]:
        return self._keys.get(algorithm, ())

    async def recheck(self) -> bool:
        return False

    async def refresh(self) -> None:
        return

    async def aclose(self) -> None:
        return


class JoinedKeys:
    """Keys of several places, asked in order: the configuration's own beside a key set."""

    def __init__(self, *parts: Keys) -> None:
        self._parts = parts

    def __repr__(self) -> str:
        return f"JoinedKeys({', '.join(map(repr, self._parts))})"

    @property
    def generation(self) -> int:
        return sum(part.generation for part in self._parts)

    @property
    def ready(self) -> bool:
        return all(part.ready for part in self._parts)

    @property
    def key_count(self) -> int:
        return sum(getattr(part, "key_count", 0) for part in self._parts)

    async def find(self, *, algorithm: str, kid: str | None) -> Sequence[VerificationKey]:
        found: list[VerificationKey] = []
        missing: KeysUnavailable | None = None
        for part in self._parts:
            try:
                found += await part.find(algorithm=algorithm, kid=kid)
            except KeysUnavailable as error:
                missing = error
        if missing is not None and not found:
            raise missing
        return found

    async def recheck(self) -> bool:
        return any([await part.recheck() for part in self._parts])

    async def refresh(self) -> None:
        for part in self._parts:
            await part.refresh()

    async def aclose(self) -> None:
        for part in self._parts:
            await part.aclose()


class JwksKeys:
    """A key set behind a URL (RFC 7517 section 5), cached.

    The first `find` or `refresh` fetches it; from then on it is fetched every `refresh_seconds` in the background,
    and for a `kid` or a signature that no key fits, at most once in `cooldown_seconds`. Fetches are shared, and a
    request whose key is there never waits for one. While the source is down or answers nonsense the last good set
    stays; as long as there was none, a fetch is tried at most every `retry_seconds`. An empty `keys` is an answer:
    all keys are withdrawn. A set of which no member can be used is nonsense.

    `fetch` returns the body and raises `FetchError`, `OSError` or `ValueError`. `clock` is monotonic, in seconds.
    Use it on one event loop, and `aclose` it there.
    """

    def __init__(
        self,
        url: str,
        *,
        fetch: FetchKeySet,
        algorithms: Sequence[str],
        refresh_seconds: float = 600.0,
        cooldown_seconds: float = 30.0,
        retry_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_algorithms(algorithms)
        if algorithms[0] in HMAC_ALGORITHMS:
            raise ValueError("a key set holds public keys; HMAC algorithms cannot be used with it")
        _check_url(url)
        self._url = url
        self._fetch = fetch
        self._algorithms = tuple(algorithms)
        self._refresh_seconds = refresh_seconds
        self._cooldown_seconds = cooldown_seconds
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._index: _Index | None = None
        self._digest = b""
        self._refused = b""
        self._tried_at: float | None = None
        self._count = 0
        self._failure = ""
        self._flight: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None
        self.generation = 0

    def __repr__(self) -> str:
        # Without the user information and query of the URL, which may be secrets.
        state = "no set yet" if self._index is None else f"{self.key_count} keys"
        return f"JwksKeys({urlsplit(self._url).hostname}, {state}{', last fetch failed' if self._failure else ''})"

    @property
    def key_count(self) -> int:
        """How many members of the set can verify tokens."""
        return self._count

    @property
    def ready(self) -> bool:
        return bool(self._index)

    async def find(self, *, algorithm: str, kid: str | None) -> Sequence[VerificationKey]:
        wanted = (algorithm, kid)
        if self._index is not None and wanted in self._index:
            return self._index[wanted]
        if kid is not None and len(kid) > MAX_KID_LENGTH:
            return ()
        await self.refresh()
        return (self._index or {}).get(wanted, ())

    async def recheck(self) -> bool:
        before = self.generation
        await self.refresh()
        return self.generation != before

    async def refresh(self) -> None:
        if self._flight is None and self._is_time():
            self._start()
        if self._flight is not None:
            # `wait` leaves the task alone when a waiter is cancelled: others wait for the same fetch.
            await asyncio.wait({self._flight})
        if self._index is None:
            raise KeysUnavailable("no key set has been fetched yet")

    async def aclose(self) -> None:
        tasks = {task for task in (self._timer, self._flight) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._timer = self._flight = None

    def _is_time(self) -> bool:
        if self._tried_at is None:
            return True
        return self._clock() - self._tried_at >= self._pause()

    def _pause(self) -> float:
        return self._retry_seconds if self._index is None else self._cooldown_seconds

    def _start(self) -> asyncio.Task[None]:
        self._tried_at = self._clock()
        self._flight = asyncio.create_task(self._load(), name="jwks-fetch")
        if self._timer is None:
            self._timer = asyncio.create_task(self._keep_fresh(), name="jwks-refresh")
        return self._flight

    async def _keep_fresh(self) -> None:
        # By a timer and not by use: requests that are answered from cached claims ask for no key, and still a
        # withdrawn key has to be noticed.
        while True:
            await asyncio.wait({self._flight or self._start()})
            await asyncio.sleep(self._pause() if self._failure else self._refresh_seconds)

    async def _load(self) -> None:
        try:
            self._replace(await self._fetch(self._url))
            self._failure = ""
        except (FetchError, OSError, ValueError) as error:
            self._report(str(error) or type(error).__name__)
        except Exception as error:
            # A fetch that breaks its promise must end neither the requests that wait for it nor the timer.
            logger.exception("the fetch of the key set is broken")
            self._report(type(error).__name__)
        finally:
            self._tried_at = self._clock()
            self._flight = None

    def _report(self, failure: str) -> None:
        # Once for each kind of trouble: while there is no set, this happens every second.
        if failure != self._failure:
            kept = "no keys yet" if self._index is None else "the last good set stays in use"
            logger.warning("key set not refreshed: %s; %s", failure, kept)
        self._failure = failure

    def _replace(self, body: bytes) -> None:
        digest = hashlib.sha256(body).digest()
        if digest == self._digest:
            return
        if digest == self._refused:
            raise ValueError("the key set is still the one that was refused")
        self._refused = digest
        self._index, self._count = parse_key_set(body, self._algorithms)
        self._digest, self._refused = digest, b""
        self.generation += 1
        logger.info("key set loaded: %d keys", self.key_count)


def parse_key_set(body: bytes, algorithms: Sequence[str]) -> tuple[_Index, int]:
    """A JWK set as keys by algorithm and id, and how many of its members are among them. Members that
    must not be used are skipped with a warning.

    Raises `ValueError` where `body` is no key set, or where it has members and none can be used.
    """
    try:
        document = strict_json.loads(body)
    except ValueError as error:
        raise ValueError(f"the key set is not strict JSON ({type(error).__name__})") from None
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise ValueError("the key set has no list `keys`")  # noqa: TRY004 - a fault of the document
    if len(members) > MAX_KEYS:
        logger.warning("key set with %d members: only the first %d are read", len(members), MAX_KEYS)
    index: _Index = {}
    count = 0
    for number, member in enumerate(members[:MAX_KEYS], start=1):
        try:
            keys = jwk_keys(member, algorithms)
        except ValueError as error:
            logger.warning("key %d of the key set is skipped: it %s", number, error)
            continue
        count += bool(keys)
        for key in keys:
            index.setdefault((key.algorithm, key.kid), []).append(key)
    if members and not index:
        raise ValueError("no key of the key set can be used")
    return index, count


def http_fetcher(
    *, timeout_seconds: float = 5.0, max_bytes: int = MAX_JWKS_BYTES, verify: ssl.SSLContext | None = None
) -> FetchKeySet:
    """A fetch over HTTP: http and https only, no redirects, no proxies or credentials of the environment, no cookies.

    `timeout_seconds` bounds the whole call. The body is read uncompressed and up to `max_bytes`; any content type
    will do. Raises `FetchError`.
    """
    context = verify or httpx.create_ssl_context(trust_env=False)

    async def fetch(url: str) -> bytes:
        try:
            # A client for each fetch, which is rare: none keeps cookies or a connection that has gone stale.
            async with (
                asyncio.timeout(timeout_seconds),
                httpx.AsyncClient(
                    verify=context, trust_env=False, follow_redirects=False, timeout=timeout_seconds
                ) as client,
                client.stream("GET", _check_url(url), headers=_FETCH_HEADERS) as response,
            ):
                return await _body(response, max_bytes)
        except TimeoutError:
            raise FetchError(f"no answer within {timeout_seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise FetchError(f"{type(error).__name__}: {error}") from error

    return fetch


_FETCH_HEADERS = {
    "Accept": "application/jwk-set+json, application/json",
    "Accept-Encoding": "identity",
    "User-Agent": "gatekeeper",
}


async def _body(response: httpx.Response, max_bytes: int) -> bytes:
    if response.status_code != 200:
        raise FetchError(f"status {response.status_code}")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        # Inflating is what a small body attacks a bound with.
        raise FetchError("the body is compressed although it was not asked to be")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise FetchError(f"the body is over {max_bytes} bytes")
    return bytes(body)


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("the URL of a key set is http:// or https:// with a host")
    return url
