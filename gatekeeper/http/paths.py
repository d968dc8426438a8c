"""The kind of a request path: Gatekeeper's own, public, an authentication path, or protected. Pure.

A backend may read a path in other ways than it was sent: percent-decoded once, with dot segments resolved, slashes
merged, a backslash taken as a slash, `;parameters` dropped, letter case ignored, in any order. Therefore a path is
*public* (or a login path) only if every reading says so. It is Gatekeeper's *own* only in the spelling of the request;
a path that becomes Gatekeeper's own in another reading is refused, because it is an attack or a mistake. Every other
path is *protected*. The backend always gets the client's own bytes. (CVE-2019-9901, CVE-2021-29492, CVE-2025-66490: two
components read one path differently.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import lru_cache
from typing import Final

import msgspec


class BadPath(ValueError):
    """A path that is refused. The text says what is wrong with it."""


class PathKind(Enum):
    """The treatment of a path that no route serves.

    `RESERVED`: below `/_gatekeeper/`, never forwarded. `LIKE_LOGIN`, `LIKE_REFRESH`: protected, but in some reading a
    login or refresh path.
    """

    PROTECTED = "protected"
    PUBLIC = "public"
    LOGIN = "login"
    REFRESH = "refresh"
    LOGOUT = "logout"
    RESERVED = "reserved"
    LIKE_LOGIN = "like login"
    LIKE_REFRESH = "like refresh"


# Only a path that is made for it has more readings.
_MAX_READINGS: Final = 64
_MAX_BYTES: Final = 16 * 1024
_MAX_CACHED_BYTES: Final = 512
# A path with one reading, letter case aside, as most have.
_SEGMENT: Final = rb"[A-Za-z0-9_~!$&'()*+,:=@-][A-Za-z0-9_.~!$&'()*+,:=@-]*"
_PLAIN: Final = re.compile(rb"/(?:%(segment)s/)*(?:%(segment)s)?\Z" % {b"segment": _SEGMENT})
_RESERVED: Final = re.compile(rb"/_gatekeeper(?:/|\Z)")
# NUL, slash, dot and others in more bytes than UTF-8 needs: invalid, but old decoders accept it (CVE-2000-0884).
_OVERLONG: Final = re.compile(rb"%c[01]%[89ab]|%e0%[89]|%f0%8", re.IGNORECASE)
_BAD_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
# The end of a mount's prefix. Applications that decode first see one before an encoded slash too: what begins with
# that is no path, and is refused.
_BOUNDARY: Final = re.compile(rb"(?=/|%2[Ff])|\Z")


def _decode(path: bytes) -> bytes:
    return _PERCENT.sub(lambda match: bytes((int(match[1], 16),)), path)


def _backslash(path: bytes) -> bytes:
    return path.replace(b"\\", b"/")


def _without_parameters(path: bytes) -> bytes:
    return re.sub(rb";[^/]*", b"", path)


def _merge_slashes(path: bytes) -> bytes:
    return re.sub(rb"/{2,}", b"/", path)


def _resolve_dots(path: bytes) -> bytes:
    """Remove dot segments (RFC 3986 section 5.2.4)."""
    if b"/." not in path:
        return path
    segments = path.split(b"/")
    resolved: list[bytes] = []
    for segment in segments[1:]:
        if segment == b"..":
            if resolved:
                resolved.pop()
        elif segment != b".":
            resolved.append(segment)
    if segments[-1] in {b".", b".."}:
        resolved.append(b"")
    return b"/" + b"/".join(resolved)


_READINGS: Final[tuple[Callable[[bytes], bytes], ...]] = (
    _backslash,
    _without_parameters,
    _merge_slashes,
    _resolve_dots,
)


def readings(path: bytes) -> frozenset[bytes]:
    """Return every way in which a backend may read `path`, letter case aside: the steps in any order, decoding at most
    once.

    Raises `BadPath` if there are more than `_MAX_READINGS`.
    """
    if _PLAIN.match(path):
        return frozenset((path,))
    # %c3 equals %C3 (RFC 3986 section 2.1), so it is not another reading.
    path = _PERCENT.sub(lambda match: match[0].upper(), path)
    seen = {(path, False)}
    waiting = [(path, False)]
    while waiting:
        current, decoded = waiting.pop()
        found = {(step(current), decoded) for step in _READINGS}
        if not decoded:
            found.add((_decode(current), True))
        waiting.extend(found - seen)
        seen |= found
        if len(seen) > _MAX_READINGS:
            raise BadPath("The path can be read in too many ways")
    return frozenset(reading for reading, _ in seen)


def below(root: str, path: bytes) -> bytes:
    """Return `path` without the prefix that says where an application is mounted, cut at a segment boundary.

    `root` is decoded and `path` is as the client wrote it. A path that is not below `root` stays as it is: servers that
    take the prefix away name it all the same.
    """
    # Servers that put `/v1/` in front of `/health` make `/v1//health` of it.
    for prefix in dict.fromkeys((root, root.rstrip("/"))):
        end = _end_of(prefix.encode("utf-8", "surrogatepass"), path) if prefix else None
        if end is not None and _BOUNDARY.match(path, end):
            return path[end:] or b"/"
    return path


def _end_of(prefix: bytes, path: bytes) -> int | None:
    """Return how many bytes of `path` spell `prefix`, None where it begins otherwise."""
    if path.startswith(prefix):
        return len(prefix)
    end = 0
    for byte in prefix:
        encoded = _PERCENT.match(path, end)
        if (bytes((int(encoded[1], 16),)) if encoded else path[end : end + 1]) != bytes((byte,)):
            return None
        end += 3 if encoded else 1
    return end


def check(path: bytes) -> None:
    """Raise `BadPath` for a path that HTTP does not allow."""
    if not path.startswith(b"/"):
        raise BadPath("The request target must be a path that begins with /")
    if len(path) > _MAX_BYTES:
        raise BadPath("The path is too long")
    if not path.isascii():
        raise BadPath("The path holds bytes that must be percent-encoded")
    if b"#" in path or any(byte < 0x21 or byte == 0x7F for byte in path):
        raise BadPath("The path holds a character that must be percent-encoded")
    if _BAD_PERCENT.search(path):
        raise BadPath("The path holds an invalid percent-encoding")
    if b"%00" in path:
        raise BadPath("The path holds a NUL")
    if _OVERLONG.search(path):
        raise BadPath("The path holds an overlong encoding")


class PathPattern(msgspec.Struct, frozen=True):
    """One entry of a path setting: its methods (None: any) and the paths that it matches."""

    methods: frozenset[str] | None
    globs: tuple[re.Pattern[bytes], ...]

    def includes(self, method: str) -> bool:
        return self.methods is None or method in self.methods

    def matches(self, method: str, way: bytes) -> bool:
        return self.includes(method) and any(glob.match(way) for glob in self.globs)


def compile_pattern(text: str, *, default_method: str | None = None) -> PathPattern:
    """Compile `/health`, `/static/*` or `*/docs`, each with an optional method before it (`GET` includes `HEAD`).

    `*` matches any characters, `/` too; a trailing slash is optional. Readings of a pattern are those of a path.
    """
    method, _, glob = text.rpartition(" ")
    method = method.strip() or default_method or ""
    methods = frozenset({method, "HEAD"} if method == "GET" else {method}) if method else None
    star, rest = ("*", glob[1:]) if glob.startswith("*") else ("", glob)
    globs = {star.encode() + way for way in readings(rest.encode())} if rest else {b"*"}
    return PathPattern(methods, tuple(map(_glob, sorted(globs))))


def _glob(glob: bytes) -> re.Pattern[bytes]:
    first, *rest = (re.escape(part) for part in glob.rstrip(b"/").split(b"*"))
    if not rest:
        body = first
    elif not glob.endswith(b"/*"):
        body = first + _in_turn(rest[:-1]) + b".*" + rest[-1]
    elif len(rest) == 1:
        # "/static/*" matches "/static" too, as its trailing slash is optional.
        body = first.removesuffix(b"/") + b"(?:/.*)?"
    else:
        folder = rest[-2].removesuffix(b"/")
        body = first + _in_turn(rest[:-2]) + b"(?:" + _in_turn([folder + b"/"]) + b".*|.*" + folder + b")"
    return re.compile(body + rb"/?\Z", re.DOTALL)


def _in_turn(parts: Iterable[bytes]) -> bytes:
    """Match each part at the first place after the one before it. Backtracking never finds more, and with several stars
    a hostile path would cost a power of its length."""
    return b"".join(b"(?>.*?" + part + b")" for part in parts)


def _matches(patterns: Iterable[PathPattern], method: str, ways: frozenset[bytes]) -> bool:
    """Tell whether each reading matches a pattern. Letter case counts: two paths that differ only in case differ in
    every reading."""
    globs = [regex for pattern in patterns if pattern.includes(method) for regex in pattern.globs]
    return all(any(regex.match(way) for regex in globs) for way in ways)


def matches_every_reading(patterns: Iterable[PathPattern], method: str, path: bytes) -> bool:
    """Return true where every way in which a backend may read a path matches a pattern. Raises `BadPath`."""
    return _matches(patterns, method, readings(path))


class Route(msgspec.Struct, frozen=True):
    """A path that Gatekeeper serves: its method, its template (`/api/sessions/{id}`), and the object that serves it."""

    method: str
    template: str
    target: object


class RouteMatch(msgspec.Struct, frozen=True):
    """A route with the values of its parameters."""

    route: Route
    parameters: dict[str, str]


_LIKE: Final = {PathKind.LOGIN: PathKind.LIKE_LOGIN, PathKind.REFRESH: PathKind.LIKE_REFRESH}


class PathTable:
    """The routes and path patterns of a process. Built once; `classify` depends on method and path alone."""

    def __init__(
        self,
        routes: Sequence[Route],
        kinds: Sequence[tuple[PathKind, Sequence[PathPattern]]],
        own: Sequence[tuple[PathPattern, Route]] = (),
    ) -> None:
        """Sort the routes. `own` are routes that are named by patterns instead of templates."""
        # Literal before parameter: `/sessions/all` is tried before `/sessions/{id}`.
        ordered = sorted(routes, key=lambda route: [part.startswith("{") for part in route.template.split("/")])
        self._own = [(route, _template(route.template)) for route in ordered]
        self._folded = [(route, _template(route.template.lower())) for route in ordered]
        self._patterns = [(pattern, _any_case(pattern), route) for pattern, route in own]
        self._kinds = [(kind, tuple(patterns)) for kind, patterns in kinds if patterns]
        self._lookalikes = [
            (_LIKE[kind], tuple(_any_case(pattern) for pattern in patterns))
            for kind, patterns in self._kinds
            if kind in _LIKE
        ]
        self._classify_cached = lru_cache(maxsize=4096)(self._classify)

    def classify(self, method: str, path: bytes) -> RouteMatch | PathKind:
        """Return the route or the kind of `path` for `method`. Raises `BadPath`."""
        # Long paths are not cached: any client can send thousands of them, which would take a lot of memory.
        return (self._classify_cached if len(path) <= _MAX_CACHED_BYTES else self._classify)(method, path)

    def has_kind(self, kind: PathKind, method: str, path: bytes) -> bool:
        """Return true where a reading of `path` is of this kind, whatever other kind comes first."""
        patterns = [pattern for each, found in self._kinds if each is kind for pattern in found]
        return any(pattern.matches(method, way) for way in readings(path) for pattern in patterns)

    def own_methods(self, path: bytes) -> frozenset[str]:
        """Return the methods for which `path`, as it is spelled, is Gatekeeper's own."""
        methods = {route.method for route, regex in self._own if regex.match(path)}
        methods |= {route.method for pattern, _, route in self._patterns if pattern.matches(route.method, path)}
        return frozenset(methods | {"HEAD"} if "GET" in methods else methods)

    def _classify(self, method: str, path: bytes) -> RouteMatch | PathKind:
        if path == b"*" and method == "OPTIONS":
            # The server as a whole (RFC 9110 section 9.3.7): no pattern matches it, so no setting makes it public.
            return PathKind.PROTECTED
        check(path)
        own = _route(self._own, method, path) or self._by_pattern(method, path)
        if own is not None:
            return own
        if _RESERVED.match(path):
            return PathKind.RESERVED
        ways = readings(path)
        if any(self._is_own_otherwise(method, way) for way in ways):
            raise BadPath("The path must be written as it is documented")
        for kind, patterns in self._kinds:
            if _matches(patterns, method, ways):
                return kind
        for kind, patterns in self._lookalikes:
            if any(pattern.matches(method, way) for pattern in patterns for way in ways):
                return kind
        return PathKind.PROTECTED

    def _by_pattern(self, method: str, path: bytes) -> RouteMatch | None:
        for pattern, _, route in self._patterns:
            if pattern.matches(method, path):
                return RouteMatch(route, {})
        return None

    def _is_own_otherwise(self, method: str, way: bytes) -> bool:
        """Tell whether this reading, of a path that is not Gatekeeper's own as spelled, would be, in any letter
        case."""
        if _RESERVED.match(way.lower()) or _route(self._folded, method, way.lower()):
            return True
        return any(pattern.matches(method, way) for _, pattern, _ in self._patterns)


def _any_case(pattern: PathPattern) -> PathPattern:
    return PathPattern(
        pattern.methods, tuple(re.compile(glob.pattern, glob.flags | re.IGNORECASE) for glob in pattern.globs)
    )


def _template(template: str) -> re.Pattern[bytes]:
    parts = re.split(r"(\{\w+\})", template.rstrip("/"))
    body = "".join(f"(?P<{part[1:-1]}>[^/]+)" if part.startswith("{") else re.escape(part) for part in parts)
    return re.compile(body.encode() + rb"/?\Z")


def _route(table: Sequence[tuple[Route, re.Pattern[bytes]]], method: str, path: bytes) -> RouteMatch | None:
    # HEAD is served by every route of GET (RFC 9110 section 9.3.2).
    asked = "GET" if method == "HEAD" else method
    for route, regex in table:
        if route.method == asked:
            match = regex.match(path)
            if match:
                values = {name: value.decode("latin-1") for name, value in match.groupdict().items()}
                return RouteMatch(route, values)
    return None
