"""Sources of verification keys: the configuration, or a key set (JWKS) behind a URL."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from gatekeeper.errors import KeysUnavailable
from gatekeeper.tokens import strict_json
from gatekeeper.tokens.key_material import (
    HMAC_ALGORITHMS,
    MAX_KID_LENGTH,
    MIN_HMAC_SECRET_BYTES,
    VerificationKey,
    check_algorithms,
    hmac_keys,
    jwk_keys,
    public_keys,
)

__all__ = ["FetchError", "JwksKeys", "KeySource", "StaticKeys", "VerificationKey", "default_algorithms", "http_fetcher"]

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)
FetchKeySet = Callable[[str], Awaitable[bytes]]
_Index = dict[tuple[str, str | None], list[VerificationKey]]

MAX_KEYS = 100  # real key sets hold two to ten
# A key with its certificate chain is a few KiB.
MAX_JWKS_BYTES = 1 << 20


class FetchError(Exception):
    """A key set could not be fetched: the text says why."""


class KeySource(Protocol):
    """The keys that may verify a token.

    `generation` changes whenever the keys do: results of an older generation are void. `ready` is false while there is
    no key.
    """

    @property
    def generation(self) -> int: ...

    @property
    def ready(self) -> bool: ...

    async def find(self, *, algorithm: str, kid: str | None) -> Sequence[VerificationKey]:
        """Return the keys to try for a token's header, all bound to `algorithm`; there may be none.

        Raises `KeysUnavailable` where no key set was ever fetched.
        """

    def may_verify(self, *, algorithm: str, kid: str | None) -> bool:
        """Return false where no known key may verify a token with this header."""

    async def recheck(self) -> bool:
        """Look for newer keys after a signature fitted none, if a fetch is due. Return true where the keys changed."""

    async def refresh(self) -> None:
        """Look for newer keys, if a fetch is due. Raises `KeysUnavailable` where there is still no key set."""

    async def aclose(self) -> None: ...


def default_algorithms(*, hmac: bool) -> tuple[str, ...]:
    """Return the algorithms that are allowed by default for a kind of key."""
    return ("HS256",) if hmac else ("RS256", "ES256", "EdDSA")


class StaticKeys:
    """Keys of the configuration. They have no ids, so `kid` is ignored and every key of the algorithm is tried.

    Raises `ValueError` with the number of the faulty entry, its fault and what is accepted, but not its content.
    """

    generation = 0
    ready = True

    def __init__(
        self,
        hmac_secrets: Sequence[str | bytes],
        public_keys_pem: Sequence[str | bytes],
        algorithms: Sequence[str],
        *,
        least_secret_bytes: int = MIN_HMAC_SECRET_BYTES,
    ) -> None:
        check_algorithms(algorithms)
        if hmac_secrets and public_keys_pem:
            raise ValueError("HMAC secrets and public keys are never used together; choose one kind")
        if not (hmac_secrets or public_keys_pem):
            raise ValueError("no key; accepted: HMAC secrets or public keys in PEM")
        if (is_hmac := algorithms[0] in HMAC_ALGORITHMS) != bool(hmac_secrets):
            kind = "HMAC secrets" if hmac_secrets else "public keys"
            raise ValueError(f"{', '.join(algorithms)} cannot be used with {kind}")
        read = partial(hmac_keys, least_bytes=least_secret_bytes) if is_hmac else public_keys
        found: list[VerificationKey] = []
        for number, entry in enumerate(hmac_secrets or public_keys_pem, start=1):
            try:
                found += read(entry, algorithms)
            except ValueError as error:
                raise ValueError(f"{'HMAC secret' if is_hmac else 'public key'} {number} {error}") from None
        self._keys = {name: tuple(key for key in found if key.algorithm == name) for name in algorithms}

    def __repr__(self) -> str:
        return f"StaticKeys({', '.join(f'{len(keys)} for {name}' for name, keys in self._keys.items())})"

    def replace(self, other: StaticKeys) -> None:
        """Take the keys of `other`. What was verified with those of before is verified again."""
        self._keys = other._keys
        self.generation += 1

    async def find(self, *, algorithm: str, kid: str | None) -> Sequence[VerificationKey]:
        return self._keys.get(algorithm, ())

    def may_verify(self, *, algorithm: str, kid: str | None) -> bool:
        return bool(self._keys.get(algorithm))

    async def recheck(self) -> bool:
        return False

    async def refresh(self) -> None:
        return

    async def aclose(self) -> None:
        return


class JoinedKeys:
    """Keys of several sources in order, such as those of the configuration and a key set."""

    def __init__(self, *sources: KeySource) -> None:
        self._sources = sources

    @property
    def sources(self) -> tuple[KeySource, ...]:
        """The sources, in order."""
        return self._sources

    def __repr__(self) -> str:
        return f"JoinedKeys({', '.join(map(repr, self._sources))})"

    @property
    def generation(self) -> int:
        return sum(source.generation for source in self._sources)

    @property
    def ready(self) -> bool:
        return all(source.ready for source in self._sources)

    @property
    def key_count(self) -> int:
        return sum(getattr(source, "key_count", 0) for source in self._sources)

    async def find(self, *, algorithm: str, kid: str | None) -> Sequence[VerificationKey]:
        found: list[VerificationKey] = []
        missing: KeysUnavailable | None = None
        for source in self._sources:
            try:
                found += await source.find(algorithm=algorithm, kid=kid)
            except KeysUnavailable as error:
                missing = error
        if missing is not None and not found:
            raise missing
        return found

    def may_verify(self, *, algorithm: str, kid: str | None) -> bool:
        return any(source.may_verify(algorithm=algorithm, kid=kid) for source in self._sources)

    async def recheck(self) -> bool:
        return any([await source.recheck() for source in self._sources])

    async def refresh(self) -> None:
        for source in self._sources:
            await source.refresh()

    async def aclose(self) -> None:
        for source in self._sources:
            await source.aclose()


class JwksKeys:
    """A key set behind a URL (RFC 7517 section 5), cached.

    The first `find` or `refresh` fetches it. After that it is fetched every `refresh_seconds` in the background, and
    for a `kid` or a signature that fits no key, at most once in `cooldown_seconds`. Concurrent callers share a fetch,
    and a request whose key is cached never waits for one. While the source is down or its response is invalid, the
    last good set stays in use; before there is one, a fetch is tried at most every `retry_seconds`. An empty `keys`
    is valid and withdraws all keys. A set without any usable member is invalid.

    `fetch` returns the body and raises `FetchError`, `OSError` or `ValueError`. `clock` is monotonic, in seconds.
    Use it on one event loop, and call `aclose` there.
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
        self._fetching: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None
        self.generation = 0

    def __repr__(self) -> str:
        # Without the user and the query of the URL, which may be secrets.
        state = "no set yet" if self._index is None else f"{self.key_count} keys"
        return f"JwksKeys({urlsplit(self._url).hostname}, {state}{', last fetch failed' if self._failure else ''})"

    @property
    def key_count(self) -> int:
        """The number of members of the set that can verify tokens."""
        return self._count

    @property
    def ready(self) -> bool:
        return bool(self._index)

    async def find(self, *, algorithm: str, kid: str | None) -> Sequence[VerificationKey]:
        if found := self._candidates(algorithm, kid):
            return found
        if kid is not None and len(kid) > MAX_KID_LENGTH:
            return ()
        await self.refresh()
        return self._candidates(algorithm, kid)

    def _candidates(self, algorithm: str, kid: str | None) -> Sequence[VerificationKey]:
        """Return the keys with the id `kid` and those without one; for a token without `kid` every key."""
        index = self._index or {}
        if kid is None:
            return [key for (name, _), keys in index.items() if name == algorithm for key in keys]
        named, unnamed = index.get((algorithm, kid), []), index.get((algorithm, None), [])
        return [*named, *unnamed] if unnamed else named

    def may_verify(self, *, algorithm: str, kid: str | None) -> bool:
        return self._index is None or bool(self._candidates(algorithm, kid))

    async def recheck(self) -> bool:
        before = self.generation
        await self.refresh()
        return self.generation != before

    async def refresh(self) -> None:
        if self._fetching is None and self._is_due():
            self._start()
        if self._fetching is not None:
            # `wait` does not cancel the task with its waiter: others wait for the same fetch.
            await asyncio.wait({self._fetching})
        if self._index is None:
            raise KeysUnavailable("no key set has been fetched yet")

    async def aclose(self) -> None:
        tasks = {task for task in (self._timer, self._fetching) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._timer = self._fetching = None

    async def reread(self) -> None:
        """Fetch the key set now, however long ago that was done. Without a valid response the last set stays."""
        if self._fetching is not None:
            # It began before, and may bring the set of before.
            await asyncio.wait({self._fetching})
        self._tried_at = None
        with suppress(KeysUnavailable):
            await self.refresh()

    def _is_due(self) -> bool:
        return self._tried_at is None or self._clock() - self._tried_at >= self._pause()

    def _pause(self) -> float:
        return self._retry_seconds if self._index is None else self._cooldown_seconds

    def _start(self) -> asyncio.Task[None]:
        self._tried_at = self._clock()
        self._fetching = asyncio.create_task(self._load(), name="jwks-fetch")
        if self._timer is None:
            self._timer = asyncio.create_task(self._keep_fresh(), name="jwks-refresh")
        return self._fetching

    async def _keep_fresh(self) -> None:
        # By a timer and not on demand: requests with cached claims look up no key, and a withdrawn key must be noticed
        # all the same.
        while True:
            await asyncio.wait({self._fetching or self._start()})
            await asyncio.sleep(self._pause() if self._failure else self._refresh_seconds)

    async def _load(self) -> None:
        try:
            self._replace(await self._fetch(self._url))
            self._failure = ""
        except (FetchError, OSError, ValueError) as error:
            self._report(str(error) or type(error).__name__)
        except Exception as error:
            # An unexpected exception must break neither the waiting requests nor the timer.
            logger.exception("key set not refreshed: unexpected error")
            self._report(type(error).__name__)
        finally:
            self._tried_at = self._clock()
            self._fetching = None

    def _report(self, failure: str) -> None:
        # Once for each kind of failure: while there is no set, a fetch fails every second.
        if failure != self._failure:
            kept = "there are no keys yet" if self._index is None else "the last good set stays in use"
            logger.warning("key set not refreshed: %s; %s", failure, kept)
        self._failure = failure

    def _replace(self, body: bytes) -> None:
        digest = hashlib.sha256(body).digest()
        if digest == self._digest:
            return
        if digest == self._refused:
            raise ValueError("the key set is the one that was refused before")
        self._refused = digest
        self._index, self._count = parse_key_set(body, self._algorithms)
        self._digest, self._refused = digest, b""
        self.generation += 1
        logger.info("key set loaded: %d keys", self.key_count)


def parse_key_set(body: bytes, algorithms: Sequence[str]) -> tuple[_Index, int]:
    """Parse a JWK set into keys by algorithm and id, and the number of its usable members.

    A member that must not be used is skipped with a warning. Raises `ValueError` where `body` is not a key set, and
    where it has members but none is usable.
    """
    try:
        document = strict_json.loads(body)
    except ValueError as error:
        raise ValueError(f"the key set is not strict JSON ({type(error).__name__})") from None
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise ValueError("the key set has no list `keys`")  # noqa: TRY004 - a fault of the document
    if len(members) > MAX_KEYS:
        logger.warning("key set cut off: %d members, of which the first %d are read", len(members), MAX_KEYS)
    index: _Index = {}
    count = 0
    for number, member in enumerate(members[:MAX_KEYS], start=1):
        try:
            keys = jwk_keys(member, algorithms)
        except ValueError as error:
            logger.warning("key set member skipped: key %d %s", number, error)
            continue
        count += bool(keys)
        for key in keys:
            index.setdefault((key.algorithm, key.kid), []).append(key)
    if members and not index:
        raise ValueError("no key of the key set can be used")
    return index, count


def http_fetcher(
    *,
    timeout_seconds: float = 5.0,
    max_bytes: int = MAX_JWKS_BYTES,
    verify: ssl.SSLContext | None = None,
    ca_file: str | None = None,
) -> FetchKeySet:
    """Make a function that fetches a key set over http or https, without redirects, cookies, and proxies or credentials
    of the environment.

    `timeout_seconds` bounds the whole call. The body must be uncompressed and at most `max_bytes`; its content type
    is ignored. `ca_file` replaces the host's certificates and is read for each fetch. The function raises `FetchError`.
    """
    context = verify or ssl.create_default_context()

    async def fetch(url: str) -> bytes:
        httpx = await asyncio.to_thread(import_module, "httpx")  # it takes 0.1 s
        try:
            trusted = context if ca_file is None else ssl.create_default_context(cafile=ca_file)
            # A new client for each of the rare fetches: so none keeps cookies or a stale connection.
            async with (
                asyncio.timeout(timeout_seconds),
                httpx.AsyncClient(
                    verify=trusted, trust_env=False, follow_redirects=False, timeout=timeout_seconds
                ) as client,
                client.stream("GET", _check_url(url), headers=_FETCH_HEADERS) as response,
            ):
                return await _body(response, max_bytes)
        except TimeoutError:
            raise FetchError(f"no response within {timeout_seconds:g} s") from None
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
        # A small compressed body could exceed the bound after decompression.
        raise FetchError("the body is compressed, although the request forbids it")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise FetchError(f"the body is over {max_bytes} bytes")
    return bytes(body)


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("the URL of the key set is not accepted; accepted: http:// or https:// with a host")
    return url
