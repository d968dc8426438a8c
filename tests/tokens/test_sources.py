"""Token sources: finding the token of a request, and removing tokens from it."""

from __future__ import annotations

import pytest

from gatekeeper.errors import TokenRejected
from gatekeeper.tokens.sources import PresentedToken, TokenSources

USUAL = TokenSources(["header", "cookie:access_token"])
WEBSOCKET = TokenSources(["header", "query:token", "subprotocol"])
COOKIE_ONLY = TokenSources(["cookie:access_token"])

Headers = list[tuple[bytes, bytes]]


def authorization(value: bytes) -> Headers:
    return [(b"host", b"a"), (b"authorization", value)]


def cookies(*values: bytes) -> Headers:
    return [(b"cookie", value) for value in values]


def test_a_bearer_credential_is_the_token() -> None:
    assert USUAL.find(authorization(b"Bearer a.b.c")) == PresentedToken("a.b.c", "header", ())


@pytest.mark.parametrize("scheme", [b"bearer", b"BEARER", b"bEaReR"])
def test_the_scheme_is_read_in_any_case(scheme: bytes) -> None:  # T23
    assert USUAL.find(authorization(scheme + b" x")) == PresentedToken("x", "header", ())


def test_a_header_name_is_read_in_any_case() -> None:
    assert USUAL.find([(b"Authorization", b"Bearer x")]) == PresentedToken("x", "header", ())
    assert USUAL.find([(b"COOKIE", b"access_token=x")]) == PresentedToken("x", "cookie:access_token", ())


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer",
        b"Bearer ",
        b"Bearer\tx",
        b"Bearer  x",
        b"Bearer x,Bearer y",
        b"Bearer x y",
        b'Bearer "x"',
        b"Bearer,x",
        b"Bearer=x",
        b"Bearer \x80\x81",
        b"Bearer x\xff",
        b"Bearer x\x00",
        b"Bearer x\r\ny",
    ],
)
def test_a_malformed_bearer_credential_is_refused(value: bytes) -> None:  # T23
    with pytest.raises(TokenRejected):
        USUAL.find(authorization(value))


@pytest.mark.parametrize(
    "value", [b"", b"Basic YTpi", b"Digest x", b"Bearerx y", b"Bearer-2 x", b"\x80\xff", b"DPoP a.b.c"]
)
def test_another_scheme_is_no_token(value: bytes) -> None:  # T23
    assert USUAL.find(authorization(value)) is None


SCHEMES = TokenSources(["scheme:JWT", "header", "scheme:", "header:X-Access-Token"])


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"JWT a.b.c", PresentedToken("a.b.c", "scheme:JWT", ())),
        (b"jwt a.b.c", PresentedToken("a.b.c", "scheme:JWT", ())),
        (b"Bearer a.b.c", PresentedToken("a.b.c", "header", ())),
        (b"a.b.c", PresentedToken("a.b.c", "scheme:", ())),
        (b" a.b.c ", PresentedToken("a.b.c", "scheme:", ())),
        (b"Token a.b.c", None),
        (b"Basic YTpi", None),
        (b"JWTs a.b.c", None),
        (b'"a.b.c"', None),
        (b"", None),
    ],
)
def test_authorization_is_read_by_the_configured_schemes(value: bytes, found: PresentedToken | None) -> None:  # T23
    assert SCHEMES.find(authorization(value)) == found
    assert SCHEMES.unread_scheme(authorization(value)) is (found is None and value != b"")


@pytest.mark.parametrize("value", [b"JWT", b"JWT  x", b"JWT\tx", b"JWT x y", b"jwt x,y", b"Bearer=x", b"JWT \xff"])
def test_a_malformed_credential_of_a_configured_scheme_is_refused(value: bytes) -> None:  # T23
    with pytest.raises(TokenRejected):
        SCHEMES.find(authorization(value))


@pytest.mark.parametrize(
    ("values", "token"),
    [([b"t"], "t"), ([b" t "], "t"), ([b"Bearer t"], "t"), ([b"t", b"bearer t"], "t"), ([b""], None), ([], None)],
)
def test_a_header_of_its_own_may_hold_the_token(values: list[bytes], token: str | None) -> None:
    found = SCHEMES.find([(b"X-Access-Token", value) for value in values])
    assert found == (None if token is None else PresentedToken(token, "header:X-Access-Token", ()))


@pytest.mark.parametrize("values", [[b"t", b"u"], [b"a b"], [b"\xff"], [b"JWT t"]])
def test_a_header_of_its_own_that_says_two_things_is_refused(values: list[bytes]) -> None:  # T22
    with pytest.raises(TokenRejected):
        SCHEMES.find([(b"x-access-token", value) for value in values])


def test_strip_takes_the_token_out_of_whichever_source_held_it() -> None:
    rest = [(b"host", b"a")]
    for value in (b"JWT x", b"Bearer x", b"a.b.c", b"JWT", b"Bearer=x"):
        assert SCHEMES.strip_tokens([*rest, (b"authorization", value)]) == rest
    for name in (b"x-access-token", b"X-Access-Token", b"x_access_token", b"X.Access.Token"):
        assert SCHEMES.strip_tokens([*rest, (name, b"t")]) == rest
    kept = [*rest, (b"authorization", b"JWT x")]
    assert SCHEMES.strip_tokens([*kept, (b"x-access-token", b"t")], keep_source="scheme:JWT") == kept
    own = [*rest, (b"x-access-token", b"t")]
    assert SCHEMES.strip_tokens([*own, (b"x_access_token", b"u")], keep_source="header:X-Access-Token") == own
    assert SCHEMES.strip_tokens([(b"authorization", b"Basic YTpi")]) == [(b"authorization", b"Basic YTpi")]
    assert USUAL.strip_tokens([(b"authorization", b"JWT x")]) == [(b"authorization", b"JWT x")]


def test_a_query_parameter_counts_for_event_streams_too() -> None:
    headers = [(b"sec-websocket-protocol", b"bearer, s")]
    assert WEBSOCKET.find(headers, query=b"token=q", event_stream=True) == PresentedToken("q", "query:token", ())
    assert WEBSOCKET.has_parameter(b"a=1&t%6Fken=")
    assert not WEBSOCKET.has_parameter(b"a=token&tokens=1")
    assert not USUAL.has_parameter(b"access_token=x")


def test_no_credentials_are_no_token() -> None:
    assert USUAL.find([]) is None
    assert USUAL.find(cookies(b"a=1; b=2", b"", b";;;", b"access_token")) is None


@pytest.mark.parametrize("second", [b"Bearer x", b"Bearer y", b"Basic YTpi", b""])
def test_two_authorization_headers_are_refused(second: bytes) -> None:  # T22
    for sources in (USUAL, COOKIE_ONLY):
        with pytest.raises(TokenRejected):
            sources.find([*authorization(b"Bearer x"), (b"authorization", second)])


def test_the_first_source_decides_and_the_others_are_told() -> None:  # T22
    headers = [*cookies(b"access_token=c"), *authorization(b"Bearer h")]
    assert USUAL.find(headers) == PresentedToken("h", "header", ("c",))
    swapped = TokenSources(["cookie:access_token", "header"])
    assert swapped.find(headers) == PresentedToken("c", "cookie:access_token", ("h",))


def test_the_same_token_in_two_sources_is_no_disagreement() -> None:
    assert USUAL.find([*cookies(b"access_token=h"), *authorization(b"Bearer h")]) == PresentedToken("h", "header", ())


JWT = "eyJh.eyJz.c2ln"
MANY = TokenSources(["cookie:access_token", "header", "header:X-Access-Token", "query:q", "subprotocol"])


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        (authorization(b"Bearer  eyJh.eyJz.c2ln"), b""),
        (authorization(b"Bearer\teyJh.eyJz.c2ln"), b""),
        (authorization(b"Bearer eyJh.eyJz.c2ln,x"), b""),
        (authorization(b"Bearer \xff eyJh.eyJz.c2ln"), b""),
        ([(b"x-access-token", b"eyJh.eyJz.c2ln"), (b"x-access-token", b"x")], b""),
        ([(b"x-access-token", b"x eyJh.eyJz.c2ln")], b""),
        ([(b"sec-websocket-protocol", b"eyJh.eyJz.c2ln, bearer")], b""),
        ([], b"q=eyJh.eyJz.c2ln&q=x"),
        ([], b"q=eyJh.eyJz.c2ln%ff"),
    ],
)
def test_tokens_in_a_malformed_later_source_are_told(headers: list[tuple[bytes, bytes]], query: bytes) -> None:  # T22
    found = MANY.find([*cookies(b"access_token=c"), *headers], query=query, websocket=True)
    assert found is not None
    assert (found.token, found.source, JWT in found.others) == ("c", "cookie:access_token", True)


def test_junk_in_a_later_source_is_told_and_so_does_not_go_on() -> None:
    headers = [*cookies(b"access_token=\xff"), *authorization(b"Bearer h")]
    assert USUAL.find(headers) == PresentedToken("h", "header", ("\xff",))


def test_a_source_that_is_not_configured_holds_no_token() -> None:
    assert COOKIE_ONLY.find(authorization(b"Bearer h")) is None
    assert USUAL.find([], query=b"access_token=x&token=y") is None  # T22


def test_different_cookies_of_one_name_are_all_told() -> None:  # T24
    for headers in (cookies(b"access_token=a; access_token=b"), cookies(b"access_token=a", b"x=1; access_token=b")):
        assert USUAL.find(headers) == PresentedToken("a", "cookie:access_token", (), ("b",))
        assert USUAL.find([*authorization(b"Bearer h"), *headers]) == PresentedToken("h", "header", ("a", "b"))
    empty_first = PresentedToken("", "cookie:access_token", (), ("b", "\xe9"))
    assert USUAL.find(cookies(b"access_token=; access_token=b; access_token=\xe9")) == empty_first


def test_twins_are_stripped_as_whole_pairs() -> None:  # T24
    headers = [
        *cookies(b'a=1;access_token=x;  access_token="y" ; b=2; =access_token=x', b"access_token=x"),
        (b"x", b"x"),
    ]
    assert USUAL.strip_twins(headers, frozenset({"x"})) == [
        (b"cookie", b'a=1;  access_token="y" ; b=2'),
        (b"x", b"x"),
    ]
    assert USUAL.strip_twins(headers, frozenset()) == headers


def test_equal_cookies_of_one_name_are_one() -> None:
    assert USUAL.find(cookies(b"access_token=a; access_token=a")) == PresentedToken("a", "cookie:access_token", ())


def test_two_different_cookies_of_a_foreign_name_are_the_backends_matter() -> None:
    assert USUAL.find(cookies(b"session=a; session=b; access_token=t")) == PresentedToken(
        "t", "cookie:access_token", ()
    )


@pytest.mark.parametrize(
    "header",
    [
        b"=access_token=evil",
        b"==access_token=evil",
        b"access_token",
        b"=evil",
        b"Access_Token=evil",
        b"access_token=",
        b'access_token=""',
        b"xaccess_token=evil",
        b"access_token%3Devil",
        b"a=access_token=evil",
    ],
)
def test_what_is_not_the_configured_cookie_is_no_token(header: bytes) -> None:  # T24
    assert USUAL.find(cookies(header)) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"access_token=a.b.c", "a.b.c"),
        (b"a=1;access_token=t;b=2", "t"),
        (b"a=1; \t access_token = t ; b=2", "t"),
        (b'access_token="t"', "t"),
        (b"access_token=t==", "t=="),
        (b"access_token=Bearer t", "t"),
        (b'access_token="Bearer t"', "t"),
        (b"access_token=bearer%20t", "t"),
        (b'access_token="BEARER%20t"', "t"),
        (b"access_token=Bearert", "Bearert"),
        (b"access_token=Basic t", "Basic t"),
        (b"access_token=t%3Bx", "t%3Bx"),
        (b"access_token=" + b"x" * 8192, "x" * 8192),
    ],
)
def test_a_cookie_is_read_as_it_stands(header: bytes, expected: str) -> None:  # T24
    assert USUAL.find(cookies(header)) == PresentedToken(expected, "cookie:access_token", ())


def test_a_cookie_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(TokenRejected):
        USUAL.find(cookies(b"access_token=\xe9"))


def test_many_cookies_are_read_in_linear_time() -> None:  # T24
    header = b"=;" * 30_000 + b"access_token=t"
    assert USUAL.find(cookies(header)) == PresentedToken("t", "cookie:access_token", ())


def test_query_and_subprotocol_count_for_websockets_only() -> None:
    headers = [(b"sec-websocket-protocol", b"chat, bearer, s")]
    assert WEBSOCKET.find(headers, query=b"token=q") is None
    assert WEBSOCKET.find(headers, query=b"token=q", websocket=True) == PresentedToken("q", "query:token", ("s",))
    assert WEBSOCKET.find(headers, websocket=True) == PresentedToken("s", "subprotocol", ())


@pytest.mark.parametrize("query", [b"a=1&t%6fken=q", b"token=q&token=q", b"token=%71", b"a&&=&token=q&"])
def test_a_query_parameter_is_read_as_backends_read_it(query: bytes) -> None:
    assert WEBSOCKET.find([], query=query, websocket=True) == PresentedToken("q", "query:token", ())


@pytest.mark.parametrize("query", [b"token=a&token=b", b"token=a&t%6Fken=b", b"token=&token=b", b"token=%ff"])
def test_a_query_that_says_two_things_is_refused(query: bytes) -> None:
    with pytest.raises(TokenRejected):
        WEBSOCKET.find([], query=query, websocket=True)


@pytest.mark.parametrize("value", [b"bearer", b"chat, bearer", b"bearer, a, bearer, b", b"bearer, \xff"])
def test_a_malformed_bearer_subprotocol_is_refused(value: bytes) -> None:
    with pytest.raises(TokenRejected):
        WEBSOCKET.find([(b"sec-websocket-protocol", value)], websocket=True)


def test_subprotocols_without_bearer_are_no_token() -> None:
    assert WEBSOCKET.find([(b"sec-websocket-protocol", b"chat, superchat")], query=b"x=1", websocket=True) is None


def test_strip_takes_tokens_and_leaves_the_rest_byte_for_byte() -> None:
    headers = [
        (b"Host", b"a"),
        (b"authorization", b"bEARER x"),
        (b"cookie", b"a=1;  b=\xff; access_token=t;c=3"),
        (b"x", b"y"),
        (b"cookie", b"access_token=t"),
        (b"cookie", b""),
    ]
    assert USUAL.strip_tokens(headers) == [
        (b"Host", b"a"),
        (b"cookie", b"a=1;  b=\xff;c=3"),
        (b"x", b"y"),
        (b"cookie", b""),
    ]


@pytest.mark.parametrize("value", [b"Bearer", b"Bearer\tx", b" bearer x", b"Bearer  x", b'bearer "x"', b"Bearer,x"])
def test_strip_takes_a_malformed_bearer_too(value: bytes) -> None:
    assert USUAL.strip_tokens(authorization(value)) == [(b"host", b"a")]
    assert COOKIE_ONLY.strip_tokens(authorization(value)) == [(b"host", b"a")]


def test_strip_leaves_other_schemes() -> None:
    assert USUAL.strip_tokens(authorization(b"Basic YTpi")) == authorization(b"Basic YTpi")


@pytest.mark.parametrize("value", [b"=access_token=x", b" = access_token = x", b"access_token", b"access_token ;"])
def test_strip_takes_cookies_that_a_lenient_backend_would_read(value: bytes) -> None:  # CVE-2023-23934
    assert USUAL.strip_tokens(cookies(b"a=1;" + value))[0][1].rstrip(b"; ") == b"a=1"


def test_strip_cuts_the_bearer_subprotocol() -> None:
    one = [(b"sec-websocket-protocol", b"chat, Bearer, tok, v2"), (b"x", b"y")]
    assert WEBSOCKET.strip_tokens(one) == [(b"x", b"y"), (b"sec-websocket-protocol", b"chat, v2")]
    two = [(b"sec-websocket-protocol", b"bearer"), (b"sec-websocket-protocol", b"tok")]
    assert WEBSOCKET.strip_tokens(two) == []
    plain = [(b"sec-websocket-protocol", b"chat,v2")]
    assert WEBSOCKET.strip_tokens(plain) == plain
    assert USUAL.strip_tokens(one) == one


def test_strip_query_cuts_the_parameter_in_every_spelling() -> None:
    assert WEBSOCKET.strip_query(b"a=%20&t%6Fken=x&b&token=y&c=+") == b"a=%20&b&c=+"
    assert USUAL.strip_query(b"token=x") == b"token=x"


def test_strip_can_keep_the_source_that_decided() -> None:
    headers = [*authorization(b"Bearer h"), *cookies(b"access_token=t; a=1")]
    assert USUAL.strip_tokens(headers, keep_source="header") == [*authorization(b"Bearer h"), (b"cookie", b"a=1")]
    assert USUAL.strip_tokens(headers, keep_source="cookie:access_token") == [
        (b"host", b"a"),
        *cookies(b"access_token=t; a=1"),
    ]
    assert WEBSOCKET.strip_query(b"token=x", keep_source="query:token") == b"token=x"
    entries = [(b"sec-websocket-protocol", b"bearer, x")]
    assert WEBSOCKET.strip_tokens(entries, keep_source="subprotocol") == entries


@pytest.mark.parametrize(
    "names",
    [[], ["headers"], ["cookie:"], ["cookie:a b"], ["cookie:é"], ["query:"], ["header", "header"], ["Header"], [""]],
)
def test_an_unknown_source_is_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="source"):
        TokenSources(names)


def test_the_configured_cookies_are_known_by_name() -> None:
    assert TokenSources(["cookie:a", "header", "cookie:b"]).cookie_names == ("a", "b")
