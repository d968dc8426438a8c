"""Kinds of paths: the rule as a table, and spellings that try to get around it."""

from __future__ import annotations

import re
from contextlib import suppress
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.http.paths import (
    BadPath,
    PathKind,
    PathTable,
    Route,
    RouteMatch,
    below,
    check,
    compile_pattern,
    readings,
)

ROUTES = [
    Route(method, template, f"{method} {template}")
    for method, template in (
        ("GET", "/api/sessions"),
        ("DELETE", "/api/sessions"),
        ("DELETE", "/api/sessions/{id}"),
        ("PATCH", "/api/sessions/{id}/deactivate"),
        ("GET", "/sessions/me"),
        ("DELETE", "/sessions/{id}"),
        ("DELETE", "/sessions/all"),
        ("GET", "/sessions/user/{user_id}"),
        ("DELETE", "/sessions/user/{user_id}/{id}"),
        ("GET", "/api/v1/users/me/sessions/"),
    )
]


def table(*public: str) -> PathTable:
    return PathTable(
        ROUTES,
        [
            (PathKind.LOGIN, [compile_pattern(text, default_method="POST") for text in ("*/auth/login", "/login")]),
            (PathKind.REFRESH, [compile_pattern("*/auth/refresh", default_method="POST")]),
            (PathKind.LOGOUT, [compile_pattern("*/auth/logout", default_method="POST")]),
            (PathKind.PUBLIC, [compile_pattern(text) for text in public]),
        ],
    )


TABLE = table("/public/*", "/health", "GET /docs/*", "*.css", "/caf%C3%A9")


def kind(method: str, path: bytes, paths: PathTable = TABLE) -> str:
    """Return `own <method> <template>`, the name of the kind, or `bad`."""
    try:
        found = paths.classify(method, path)
    except BadPath:
        return "bad"
    return f"own {found.route.target}" if isinstance(found, RouteMatch) else found.value


PATHS: list[tuple[str, bytes, str]] = [
    # Plain ones
    ("GET", b"/", "protected"),
    ("GET", b"/public/a", "public"),
    ("POST", b"/public/a/b.html", "public"),
    ("GET", b"/public", "public"),
    ("GET", b"/public/", "public"),
    ("GET", b"/health", "public"),
    ("GET", b"/health/", "public"),
    ("GET", b"/health/x", "protected"),
    ("GET", b"/docs/a", "public"),
    ("HEAD", b"/docs/a", "public"),
    ("POST", b"/docs/a", "protected"),
    ("GET", b"/theme/x.css", "public"),
    ("GET", b"/theme/x.css/", "public"),
    ("GET", b"/theme/x.css.map", "protected"),
    ("POST", b"/login", "login"),
    ("POST", b"/api/auth/login", "login"),
    ("POST", b"/api/auth/login/", "login"),
    ("POST", b"/auth/refresh", "refresh"),
    ("POST", b"/v1/auth/logout", "logout"),
    ("GET", b"/login", "protected"),
    ("HEAD", b"/login", "protected"),
    ("POST", b"/login/x", "protected"),
    ("POST", b"/xlogin", "protected"),
    # Gatekeeper's own, as they are documented: with and without the trailing slash, HEAD as GET
    ("GET", b"/api/sessions", "own GET /api/sessions"),
    ("GET", b"/api/sessions/", "own GET /api/sessions"),
    ("HEAD", b"/api/sessions", "own GET /api/sessions"),
    ("DELETE", b"/api/sessions/5", "own DELETE /api/sessions/{id}"),
    ("DELETE", b"/api/sessions/5/", "own DELETE /api/sessions/{id}"),
    ("PATCH", b"/api/sessions/session_5/deactivate", "own PATCH /api/sessions/{id}/deactivate"),
    ("GET", b"/api/v1/users/me/sessions", "own GET /api/v1/users/me/sessions/"),
    ("DELETE", b"/sessions/all", "own DELETE /sessions/all"),
    ("DELETE", b"/sessions/7", "own DELETE /sessions/{id}"),
    ("GET", b"/sessions/user/a%20b", "own GET /sessions/user/{user_id}"),
    ("GET", b"/sessions/user/a%2Fb", "own GET /sessions/user/{user_id}"),
    ("DELETE", b"/sessions/user/a%2Fb/5", "own DELETE /sessions/user/{user_id}/{id}"),
    # Other methods, and what lies below, are the backend's
    ("POST", b"/api/sessions", "protected"),
    ("get", b"/api/sessions", "protected"),
    ("GET", b"/api/sessions/5", "protected"),
    ("GET", b"/api/sessions/5/details", "protected"),
    ("PUT", b"/sessions/all", "protected"),
    # P01: dot segments
    ("GET", b"/public/../admin", "protected"),
    ("GET", b"/public/./../admin", "protected"),
    ("GET", b"/public/..", "protected"),
    ("GET", b"/public/../", "protected"),
    ("GET", b"/public/./a", "public"),
    ("GET", b"/public/a/../b", "public"),
    ("GET", b"/public/a/../../public/b", "public"),
    ("GET", b"/../public/a", "protected"),
    ("GET", b"/admin/../public/a", "protected"),
    ("GET", b"/public/.../a", "public"),
    # P02: encoded dots
    ("GET", b"/public/%2e%2e/admin", "protected"),
    ("GET", b"/public/.%2e/admin", "protected"),
    ("GET", b"/public/%2E./admin", "protected"),
    # P03: encoded slashes
    ("GET", b"/public%2f..%2fadmin", "protected"),
    ("GET", b"/public/..%2fadmin", "protected"),
    ("GET", b"/admin%2fusers", "protected"),
    ("GET", b"/public%2fa", "protected"),
    ("GET", b"/public/a%2fb", "public"),
    # P04: backslashes
    ("GET", rb"/public\..\admin", "protected"),
    ("GET", rb"/public/..\admin", "protected"),
    ("GET", b"/public/..%5cadmin", "protected"),
    ("GET", b"/public%5c..%5cadmin", "protected"),
    ("GET", rb"/public\a", "protected"),
    # P05: doubled slashes; never an authority
    ("GET", b"//admin", "protected"),
    ("GET", b"///admin", "protected"),
    ("GET", b"//public/a", "protected"),
    ("GET", b"/public//../admin", "protected"),
    ("GET", b"/public/x//../../admin", "protected"),
    ("GET", b"//evil.example/x", "protected"),
    ("GET", b"/public//a", "public"),
    # P06: decoded once, never twice
    ("GET", b"/public/%252e%252e/admin", "public"),
    ("GET", b"/public/%25252e/admin", "public"),
    ("GET", b"/%2570ublic/a", "protected"),
    # P07: parameters
    ("GET", b"/admin;x=1/users", "protected"),
    ("GET", b"/public;/../admin", "protected"),
    ("GET", b"/public/..;/admin", "protected"),
    ("GET", b"/public/..;x=1/admin", "protected"),
    ("GET", b"/public/..%3b/admin", "protected"),
    ("GET", b"/public/%2e%2e;/admin", "protected"),
    ("GET", b"/admin/;", "protected"),
    ("GET", b"/admin;/public/a", "protected"),
    ("GET", b"/public;v=1/a", "protected"),
    ("GET", b"/public/a;v=1", "public"),
    ("GET", b"/x;.css", "protected"),
    # P08: letter case, needless encoding
    ("GET", b"/Public/a", "protected"),
    ("GET", b"/PUBLIC/a", "protected"),
    ("GET", b"/Admin", "protected"),
    ("GET", b"/%61dmin", "protected"),
    ("GET", b"/%70ublic/a", "protected"),
    ("GET", b"/public/%61", "public"),
    ("GET", b"/public/A", "public"),
    ("POST", b"/Login", "like login"),
    ("POST", b"/%6cogin", "like login"),
    ("POST", b"//login", "like login"),
    # P09: a fragment
    ("GET", b"/admin#/public", "bad"),
    ("GET", b"/public/x#/../../admin", "bad"),
    ("GET", b"/admin%23/public", "protected"),
    ("GET", b"/public/%23", "public"),
    # P10: anchored at both ends, a newline is a character
    ("GET", b"/x/public/a", "protected"),
    ("GET", b"/x%0a/public/a", "protected"),
    ("GET", b"/x%0a/health", "protected"),
    ("GET", b"/health%0a", "protected"),
    ("GET", b"/health%0a/x", "protected"),
    ("GET", b"/public/%0a", "public"),
    ("POST", b"/login%0a", "protected"),
    # P11: NUL
    ("GET", b"/admin%00.css", "bad"),
    ("GET", b"/admin%00/public", "bad"),
    ("GET", b"/public/\x00", "bad"),
    # P12: invalid and overlong encodings
    ("GET", b"/%c0%ae%c0%ae/admin", "bad"),
    ("GET", b"/public/%C0%AE%c0%ae/admin", "bad"),
    ("GET", b"/public/%e0%80%ae/admin", "bad"),
    ("GET", b"/public/%f0%80%80%ae/admin", "bad"),
    ("GET", b"/public/%u002e", "bad"),
    ("GET", b"/%zz", "bad"),
    ("GET", b"/%", "bad"),
    ("GET", b"/public/%e", "bad"),
    ("GET", b"/public/%C3%A9", "public"),
    ("GET", b"/public/%E2%82%AC", "public"),
    ("GET", b"/public/%F0%9F%98%80", "public"),
    # P13: no folding of Unicode
    ("GET", "/public/．．/admin".encode(), "bad"),
    ("GET", b"/public/%EF%BC%8E%EF%BC%8E/admin", "public"),
    ("GET", b"/%EF%BD%81dmin", "protected"),
    ("GET", b"/%EF%BD%90ublic/a", "protected"),
    # P15: what is no path
    ("GET", b"@evil.example/x", "bad"),
    ("GET", b"admin", "bad"),
    ("GET", b"evil:80", "bad"),
    ("GET", b"*", "bad"),
    ("OPTIONS", b"*", "protected"),
    ("GET", b"", "bad"),
    ("GET", b"http://evil/public/a", "bad"),
    ("GET", b"/ ", "bad"),
    ("GET", b"/a b", "bad"),
    ("GET", b"/a\tb", "bad"),
    ("GET", b"/a\x7f", "bad"),
    ("GET", b"/a\x80", "bad"),
    ("GET", b"/a\r\nX-User-Id: 1", "bad"),
    # P17: near misses of a prefix
    ("GET", b"/publicx", "protected"),
    ("GET", b"/public..", "protected"),
    ("GET", b"/public%20", "protected"),
    ("GET", b"/public../a", "protected"),
    ("GET", b"/public%2e%2e/a", "protected"),
    ("GET", b"/publi", "protected"),
    # P17: near misses of our own endpoints: refused where another reading makes them ours
    ("GET", b"//api/sessions", "bad"),
    ("GET", b"/API/sessions", "bad"),
    ("GET", b"/Api/Sessions/", "bad"),
    ("GET", b"/api//sessions", "bad"),
    ("GET", b"/api/./sessions", "bad"),
    ("GET", b"/x/../api/sessions", "bad"),
    ("GET", b"/public/../api/sessions", "bad"),
    ("GET", b"/public/%2e%2e/api/sessions", "bad"),
    ("GET", b"/api%2fsessions", "bad"),
    ("GET", b"/%61pi/sessions", "bad"),
    ("GET", rb"/api\sessions", "bad"),
    ("GET", b"/api/sessions;v=1", "bad"),
    ("GET", b"/api;v=1/sessions", "bad"),
    ("GET", b"/api/sessions//", "bad"),
    ("GET", b"/api/sessions/.", "bad"),
    ("GET", b"/api/sessions/x/..", "bad"),
    ("DELETE", b"/api/sessions%2f5", "bad"),
    ("DELETE", b"/API/sessions/5", "bad"),
    ("DELETE", b"/SESSIONS/ALL", "bad"),
    ("PATCH", b"/api/sessions/5/Deactivate", "bad"),
    ("GET", b"/api/sessionsx", "protected"),
    ("GET", b"/api/sessions.", "protected"),
    ("GET", b"/xapi/sessions", "protected"),
    ("GET", b"/api/%2573essions", "protected"),
    # … but a method that is not ours there makes nothing ours
    ("PUT", b"//api/sessions", "protected"),
    # /_gatekeeper/ is nobody else's
    ("GET", b"/_gatekeeper", "reserved"),
    ("GET", b"/_gatekeeper/x", "reserved"),
    ("BREW", b"/_gatekeeper/", "reserved"),
    ("GET", b"/_gatekeeperx", "protected"),
    ("GET", b"/_Gatekeeper/x", "bad"),
    ("GET", b"//_gatekeeper/x", "bad"),
    ("GET", b"/%5fgatekeeper/x", "bad"),
    ("GET", b"/_gatekeeper%2fx", "bad"),
    ("GET", b"/public/../_gatekeeper/x", "bad"),
    ("GET", b"/x/_gatekeeper/x", "protected"),
    # A parameter is taken as it stands
    ("DELETE", b"/api/sessions/..", "own DELETE /api/sessions/{id}"),
    ("DELETE", b"/sessions/a;b", "own DELETE /sessions/{id}"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "expected"), PATHS)
def test_a_path_is_what_every_reading_of_it_says(method: str, path: bytes, expected: str) -> None:
    assert kind(method, path) == expected


def test_the_parameters_of_a_route_are_its_own_bytes() -> None:
    found = TABLE.classify("DELETE", b"/sessions/user/a%2Fb/5/")
    assert isinstance(found, RouteMatch)
    assert found.parameters == {"user_id": "a%2Fb", "id": "5"}


def test_a_literal_goes_before_a_parameter_whatever_the_order() -> None:
    for routes in (ROUTES, ROUTES[::-1]):
        paths = PathTable(routes, [])
        assert kind("DELETE", b"/sessions/all", paths) == "own DELETE /sessions/all"
        assert kind("DELETE", b"/sessions/5", paths) == "own DELETE /sessions/{id}"


def test_of_two_kinds_the_first_in_the_table_decides() -> None:
    paths = PathTable(
        [],
        [(PathKind.LOGIN, [compile_pattern("/a", default_method="POST")]), (PathKind.PUBLIC, [compile_pattern("/*")])],
    )
    assert kind("POST", b"/a", paths) == "login"
    assert kind("GET", b"/a", paths) == "public"


def test_our_own_are_ours_although_everything_is_public() -> None:
    paths = table("*")
    assert kind("GET", b"/api/sessions", paths) == "own GET /api/sessions"
    assert kind("GET", b"//api/sessions", paths) == "bad"
    assert kind("GET", b"/public/../admin", paths) == "public"


def test_a_path_that_is_remembered_is_judged_as_one_that_is_not() -> None:
    for _ in range(2):
        for method, path, expected in PATHS:
            assert kind(method, path) == expected
    assert kind("GET", b"/public/" + b"a" * 5_000) == "public"
    assert kind("GET", b"/public/" + b"a" * 5_000 + b"/../../admin") == "protected"


def test_what_anybody_can_send_is_not_remembered_at_length() -> None:
    paths = table("/public/*")
    for number in range(50):
        paths.classify("GET", b"/public/%d/" % number + b"a" * 10_000)
    assert paths._classify_cached.cache_info().currsize == 0


# Patterns

# (pattern, method, path, does it name it?)
PATTERNS: list[tuple[str, str, bytes, bool]] = [
    ("/a", "GET", b"/a", True),
    ("/a", "GET", b"/a/", True),
    ("/a/", "GET", b"/a", True),
    ("/a/", "GET", b"/a/", True),
    ("/a", "GET", b"/a//", False),
    ("/a", "GET", b"/ab", False),
    ("/a", "GET", b"/a/b", False),
    ("/", "GET", b"/", True),
    ("/", "GET", b"/a", False),
    ("/*", "GET", b"/", True),
    ("/*", "GET", b"/a/b/c", True),
    ("*", "GET", b"/", True),
    ("*", "GET", b"/a/b", True),
    ("/a/*", "GET", b"/a", True),
    ("/a/*", "GET", b"/a/", True),
    ("/a/*", "GET", b"/a/b/c/", True),
    ("/a/*", "GET", b"/ab", False),
    ("/a/*", "GET", b"/b/a/c", False),
    ("/a*", "GET", b"/ab/c", True),
    ("/a/*/", "GET", b"/a/b/", True),
    ("*/docs", "GET", b"/docs", True),
    ("*/docs", "GET", b"/x/y/docs/", True),
    ("*/docs", "GET", b"/x/docs/y", False),
    ("*/docs", "GET", b"/xdocs", False),
    ("*/docs/*", "GET", b"/x/docs", True),
    ("*/docs/*", "GET", b"/x/docs/y", True),
    ("*/docs/*", "GET", b"/docsx/docs/y", True),
    ("*/docs/*", "GET", b"/docsx/docs", True),
    ("*/docs/*", "GET", b"/docsx/docsy", False),
    ("/a/*/c", "GET", b"/a/b/c", True),
    ("/a/*/c", "GET", b"/a/x/y/c", True),
    ("/a/*/c", "GET", b"/a/c", False),
    ("/a/*/c/*/e", "GET", b"/a/c/c/c/e/e", True),
    ("/a/**/c", "GET", b"/a/b/c", True),
    ("*.css", "GET", b"/x.css", True),
    ("*.css", "GET", b"/xcss", False),
    ("/a.b", "GET", b"/axb", False),
    ("/a+b(c)", "GET", b"/a+b(c)", True),
    # methods
    ("GET /a", "GET", b"/a", True),
    ("GET /a", "HEAD", b"/a", True),
    ("GET /a", "POST", b"/a", False),
    ("HEAD /a", "GET", b"/a", False),
    ("POST /a", "POST", b"/a", True),
    ("POST /a", "post", b"/a", False),
    ("/a", "BREW", b"/a", True),
    # patterns are read as paths are
    ("/caf%C3%A9", "GET", b"/caf%C3%A9", True),
    ("/caf%C3%A9", "GET", b"/caf%c3%a9", True),
    ("/caf%C3%A9", "GET", b"/caf%C3%A8", False),
    ("/a%20b", "GET", b"/a%20b", True),
    ("/a%20b", "GET", b"/a%20c", False),
    ("/%61", "GET", b"/a", True),
    ("/%61", "GET", b"/%61", True),
    # letter case counts, and must not matter
    ("/Static/*", "GET", b"/Static/X", True),
    ("/Static/*", "GET", b"/static/X", False),
    ("/static/*", "GET", b"/Static/x", False),
]


@pytest.mark.parametrize(("pattern", "method", "path", "named"), PATTERNS)
def test_a_pattern_names_what_it_says(pattern: str, method: str, path: bytes, named: bool) -> None:
    paths = PathTable([], [(PathKind.PUBLIC, [compile_pattern(pattern)])])
    assert (paths.classify(method, path) is PathKind.PUBLIC) is named


def test_a_default_method_is_for_patterns_without_one() -> None:
    assert compile_pattern("/a", default_method="POST").methods == frozenset({"POST"})
    assert compile_pattern("GET /a", default_method="POST").methods == frozenset({"GET", "HEAD"})
    assert compile_pattern("/a").methods is None


@given(
    st.text(alphabet="ab/*", min_size=1, max_size=9).map(
        lambda text: "/" + text.lstrip("/") if text[0] != "*" else text
    ),
    st.lists(st.text(alphabet="ab/", max_size=10).map(lambda text: "/" + text), min_size=1, max_size=5),
)
def test_patterns_match_as_their_plain_reading_says(glob: str, texts: list[str]) -> None:
    """The compiled pattern never backtracks; a naive translation, which does, must agree with it."""
    trimmed = glob.rstrip("/")
    plain = ".*".join(map(re.escape, trimmed.split("*")))
    if glob.endswith("/*"):
        plain = plain.removesuffix("/.*") + "(?:/.*)?"
    expected = re.compile(plain + r"/?\Z", re.DOTALL)
    pattern = compile_pattern(glob)
    if len(pattern.globs) > 1:
        return  # it holds a doubled slash, and so is several
    for text in texts:
        assert bool(pattern.globs[0].match(text.encode())) == bool(expected.match(text)), (glob, text)


# Hostile paths


@pytest.mark.parametrize(
    "path",
    [
        b"/" + b"a" * 16_383,
        b"/" + b"a/" * 8_191,
        b"/" + b"../" * 5_000,
        b"/" + b"%2e%2e%2f" * 1_800,
        b"/" + b"//" * 8_000,
        b"/" + b"\\" * 16_000,
        b"/" + b";" * 16_000,
        b"/" + b"x/y/z/" * 2_700,
        b"/" + b"%2525" * 3_200,
        b"/" + b"%0a" * 5_000,
        b"/" + b"..;/" * 4_000,
    ],
    ids=range(11),
)
def test_a_long_hostile_path_is_judged_by_patterns_with_many_stars(path: bytes) -> None:
    # C03: with a pattern that goes back, the eighth of these would outlast the machine
    paths = table("*/x*/y*/z*/x*/y*/q", "/a*a*a*a*a*a*b", "*/*/*/*/*/*/w")
    assert kind("GET", path, paths) in {"protected", "bad"}


def test_no_pattern_can_be_made_to_go_back_more_than_once() -> None:
    # C03, structurally: of the loose repetitions only the last stands outside an atomic group
    for glob in ("*/x*/y*/z", "/a*b*c*d*", "*", "/static/*", "*/docs/*", "*/a/*/b/*"):
        for regex in compile_pattern(glob).globs:
            loose = re.sub(rb"\(\?>.*?\)", b"", regex.pattern.replace(rb"\.", b"").replace(b"(?>.*?", b"(?>"))
            assert all(part.count(b".*") <= 1 for part in loose.split(b"|")), regex.pattern


def test_a_path_is_read_in_a_bounded_number_of_ways() -> None:
    for path in (b"/a/%2e%2e;x//%5c..%2f/b%3b/.\\", b"/%2f%5c%3b%2e;\\//./..//%2e%2e"):
        with suppress(BadPath):
            assert len(readings(path)) <= 64


def test_a_path_that_is_too_long_is_refused() -> None:
    # P19
    check(b"/" + b"a" * (16 * 1024 - 1))
    with pytest.raises(BadPath, match="too long"):
        check(b"/" + b"a" * 16 * 1024)


SPELLINGS = st.lists(
    st.sampled_from(
        [b"/", b"//", b"\\", b".", b"..", b"%2e", b"%2E%2e", b"%2f", b"%5c", b";", b";x=1", b"%3b", b"public", b"admin",
         b"Public", b"%70ublic", b"a", b"%252e", b"api", b"sessions", b"%00", b"%c0%ae", b"%0a"]
    ),
    max_size=10,
).map(lambda parts: b"/" + b"".join(parts))  # fmt: skip


def served(path: bytes, *steps: str) -> bytes:
    """Return the path as a backend reads it that takes these steps in this order."""
    for step in steps:
        if step == "decode":
            path = unquote_to_bytes(path)
        elif step == "backslash":
            path = path.replace(b"\\", b"/")
        elif step == "parameters":
            path = re.sub(rb";[^/]*", b"", path)
        elif step == "merge":
            path = re.sub(rb"/+", b"/", path)
        elif step == "lower":
            path = path.lower()
        else:
            kept: list[bytes] = []
            for segment in path.split(b"/")[1:]:
                if segment == b"..":
                    kept = kept[:-1]
                elif segment != b".":
                    kept.append(segment)
            path = b"/" + b"/".join(kept)
    return path


STEPS = ["decode", "backslash", "parameters", "merge", "dots", "lower"]


@given(SPELLINGS, st.permutations(STEPS), st.integers(0, len(STEPS)))
def test_no_backend_finds_something_else_in_a_public_path(path: bytes, steps: list[str], taken: int) -> None:
    # P01 to P11: whatever a backend does, in whatever order, what is public to us is public to it
    if kind("GET", path) == "public":
        assert re.match(rb"/public(/.*)?\Z|/health/?\Z|/docs/|.*\.css/?\Z", served(path, *steps[:taken]), re.DOTALL)


@given(SPELLINGS, st.permutations(STEPS), st.integers(0, len(STEPS)))
def test_no_backend_finds_one_of_our_paths_in_one_that_is_forwarded(path: bytes, steps: list[str], taken: int) -> None:
    # P17, A03
    if kind("GET", path) in {"public", "protected"}:
        assert not re.match(rb"/api/sessions/?\Z", served(path, *steps[:taken]))


@given(st.binary(max_size=40).map(lambda raw: b"/" + raw), st.sampled_from(["GET", "POST", "DELETE", "PATCH"]))
def test_any_bytes_are_judged_or_refused_and_nothing_else(path: bytes, method: str) -> None:
    kind(method, path)


@pytest.mark.parametrize(
    ("root", "path", "left"),
    [
        ("/v1", b"/v1/health", b"/health"),
        ("/v1", b"/v1", b"/"),
        ("/v1", b"/v1/", b"/"),
        ("/v1", b"/v1//health", b"//health"),
        ("/v1/", b"/v1//health", b"/health"),
        ("/v1/", b"/v1/health", b"/health"),
        ("/", b"/health", b"/health"),
        ("", b"/v1/health", b"/v1/health"),
        ("/v1", b"/v1health", b"/v1health"),
        ("/v1", b"/v1%41/health", b"/v1%41/health"),
        ("/v1", b"/V1/health", b"/V1/health"),
        ("/v1", b"/v", b"/v"),
        ("/v1", b"*", b"*"),
        ("/v1", b"/%761/health", b"/health"),
        ("/v1", b"/v%31", b"/"),
        ("/v1", b"/v1%2Fhealth", b"%2Fhealth"),
        ("/a b", b"/a%20b/health", b"/health"),
        ("/a%20b", b"/a%20b/health", b"/health"),
        ("/b\u00fcro", b"/b%C3%bcro/health", b"/health"),
        ("/v1", b"/health", b"/health"),
        ("/v1", b"/v1/v1/health", b"/v1/health"),
        ("/v1", b"/%2576%31/health", b"/%2576%31/health"),
    ],
)
def test_what_is_left_below_a_root_path(root: str, path: bytes, left: bytes) -> None:  # rule 3.2
    assert below(root, path) == left
