"""The accepted forms of values: numbers, durations, words, addresses, paths, headers."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from gatekeeper.dialects import DIALECTS
from gatekeeper.settings import ListenAddress
from gatekeeper.settings.proxy import DIALECT_NAMES
from tests.settings.reading import BASE, problem, problems, read

# Numbers, durations, words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("15s", 15.0), ("30m", 1800.0), ("24h", 86400.0), ("7d", 604800.0), ("2", 2.0), ("0.5", 0.5)],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert read("SESSION_TTL", text) == seconds


@pytest.mark.parametrize(
    "text", ["-1s", "0", "99ms", "3651d", "1w", "1h30m", "1e3", "nan", "inf", "s", "٣s", "1.", "1_0"]
)
def test_other_durations_are_refused(text: str) -> None:
    assert "accepted: a duration from 100ms to 3650d" in problem("SESSION_TTL", text)


def test_the_leeway_ends_at_300_seconds() -> None:
    assert read("JWT_LEEWAY", "5m") == 300.0
    assert read("JWT_LEEWAY", "0") == 0.0
    assert "which is over 300s" in problem("JWT_LEEWAY", "300.001s")


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        *(("1024", 1024), ("2000B", 2000), ("64KiB", 65536), ("64kib", 65536), ("100 KB", 100_000), ("1MiB", 1 << 20)),
    ],
)
def test_sizes_are_bytes(text: str, octets: int) -> None:
    assert read("MAX_HEADER_BYTES", text) == octets


@pytest.mark.parametrize(
    "text", ["1", "1023", "1025KiB", "2MB", "1.5KiB", "64K", "KiB", "-64KiB", "0x400", "64 KiBs", "٣KiB"]
)
def test_other_sizes_are_refused(text: str) -> None:
    assert "accepted: a size from 1KiB to 1MiB" in problem("MAX_HEADER_BYTES", text)


def test_a_size_may_be_off_where_there_is_no_limit() -> None:
    assert read("MAX_BODY", "off") is None
    assert read("MAX_BODY", "3GB") == 3 * 10**9


@pytest.mark.parametrize("name", ["IDLE_TIMEOUT", "DEVICE_LIMIT", "OPS_LISTEN"])
def test_off_is_none(name: str) -> None:
    assert read(name, "off") is None
    assert "; or off" in problem(name, "never")


@pytest.mark.parametrize(("name", "text"), [("DEVICE_LIMIT", "0"), ("DEVICE_LIMIT", "1.5"), ("WORKERS", "-1")])
def test_wrong_numbers_are_refused(name: str, text: str) -> None:
    assert "a whole number from 1 to" in problem(name, text)


def test_words_are_read_in_any_case_and_others_are_refused_with_the_accepted_ones() -> None:
    assert read("LOG_LEVEL", "WARNING") == "warning"
    assert read("FORWARD_AUTHORIZATION", "No") is False
    assert problem("UNKNOWN_SESSION", "maybe").endswith("accepted: adopt, reject")
    assert problem("DEVICE_LIMIT_POLICY", "x").endswith("accepted: evict_idle, evict_oldest, reject")
    assert problem("FORWARD_AUTHORIZATION", "2").startswith("GATEKEEPER_FORWARD_AUTHORIZATION: read '2'")


def test_a_refused_value_is_quoted_on_one_line_and_cut() -> None:
    line = problem("LISTEN", "a\nGATEKEEPER_X: forged" + "x" * 999)
    assert r"a\nGATEKEEPER_X" in line
    assert len(line) < 300


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:0", ListenAddress(host="0.0.0.0", port=0)),
        ("[::1]:8000", ListenAddress(host="::1", port=8000)),
        ("localhost:80", ListenAddress(host="localhost", port=80)),
        ("unix:/run/gatekeeper.sock", ListenAddress(path="/run/gatekeeper.sock")),
        ("fd:3", ListenAddress(fd=3)),
    ],
)
def test_listen_addresses(text: str, address: ListenAddress) -> None:
    assert read("LISTEN", text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["8000", ":8000", "*:8000", "::1:8000", "a:65536", "fd:1", "fd:x", "unix:run", "unix:/" + "x" * 107]
)
def test_other_listen_addresses_are_refused(text: str) -> None:
    assert "accepted: host:port, [v6]:port, unix:/path or fd:<number>" in problem("LISTEN", text)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://app:3000", "http://app:3000"),
        ("https://my_app.internal/", "https://my_app.internal"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("http+unix:///run/app.sock", "http+unix:///run/app.sock"),
    ],
)
def test_upstream_urls(text: str, url: str) -> None:
    assert read("UPSTREAM_URL", text) == url


@pytest.mark.parametrize(
    "text",
    [
        *("app:3000", "ftp://app", "http:app", "http://", "http://app/base", "http://app?x=1", "http://app#x"),
        *("http://app:0", "http://app:99999", "http://app:", "http://a b", "http://a\tb", "http://1.2.3", "http://-x"),
        *("http+unix://run/app.sock", "http+unix:///", "http+unix://%2Frun", "http://[::1", "http://a\\b"),
    ],
)
def test_other_upstream_urls_are_refused(text: str) -> None:
    assert "accepted: http://host[:port]" in problem("UPSTREAM_URL", text)


@pytest.mark.parametrize("name", ["UPSTREAM_URL", "JWKS_URL"])
def test_a_password_in_a_url_is_refused_and_not_shown(name: str) -> None:
    for text in ("http://user:hunter2@app", "http://user:hun/ter2@app", "ftp://user:hunter2@app"):
        found = [
            line for line in problems(BASE | {f"GATEKEEPER_{name}": text}) if line.startswith(f"GATEKEEPER_{name}")
        ]
        assert "://***@app" in found[0]
        assert "ter2" not in "".join(found)


def test_gatekeepers_own_address_is_not_a_backend() -> None:
    assert "Gatekeeper's own" in problem("UPSTREAM_URL", "http://localhost:8000")
    assert "Gatekeeper's own" in problem("UPSTREAM_URL", "http://127.0.0.1:8000", LISTEN="0.0.0.0:8000")
    assert read("UPSTREAM_URL", "http://app:8000", LISTEN="0.0.0.0:8000")


def test_two_listeners_need_two_addresses() -> None:
    assert "overlaps GATEKEEPER_LISTEN" in problem("OPS_LISTEN", "0.0.0.0:8000")
    assert read("OPS_LISTEN", "127.0.0.1:0", LISTEN="127.0.0.1:0")


def test_address_headers_are_names_in_any_case() -> None:
    assert read("CLIENT_ADDRESS_HEADER", "CF-Connecting-IP, X-Real-IP") == ("cf-connecting-ip", "x-real-ip")


@pytest.mark.parametrize("text", ["x-real-ip,", "x-real-ip,X-Real-IP", "x real ip", "x-real-ip:", "é"])
def test_what_is_no_list_of_address_headers_is_refused(text: str) -> None:
    assert "accepted: names of headers" in problem("CLIENT_ADDRESS_HEADER", text)


def test_trusted_proxies_are_networks() -> None:
    assert read("TRUSTED_PROXIES", "10.0.0.0/8, 192.168.1.7,fd00::/8") == (
        ip_network("10.0.0.0/8"),
        ip_network("192.168.1.7"),
        ip_network("fd00::/8"),
    )
    assert read("TRUSTED_PROXIES", "none") == ()


@pytest.mark.parametrize("text", ["*", "0.0.0.0/0", "::/0", "10.0.0.0/8,*"])
def test_trusting_everybody_is_refused_with_the_reason(text: str) -> None:  # C02
    assert "lets every client choose its own address" in problem("TRUSTED_PROXIES", text)


@pytest.mark.parametrize("text", ["10.1.2.3/8", "proxy.internal", "10.0.0.0/33", "10.0.0.0/8,,::1", "::1,::1"])
def test_other_networks_are_refused(text: str) -> None:
    assert "accepted: networks or addresses" in problem("TRUSTED_PROXIES", text)


# Paths, headers, tokens


def test_path_patterns() -> None:
    text = "/health, /static/*,*/docs,GET /docs/*,/caf%C3%A9,/a$b,/(x)"
    assert read("PUBLIC_PATHS", text) == tuple(item.strip() for item in text.split(","))
    assert read("LOGIN_PATHS", "none") == ()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "health",
            "get /x",
            "GET  /x",
            "GET",
            "/a b c",
            "/x?y=1",
            "/x#y",
            "/caf\u00e9",
            "/x%0",
            "/x%00",
            "//x",
            "/a/../b",
        ),
        *("/a/.", "^/api", "/api/.*", "/api/(.*)", "/api$", "/(a|b)", "/[ab]", "/a{2}", "/a\\d", "/x,", "/x,/x"),
    ],
)
def test_regular_expressions_and_other_patterns_are_refused(text: str) -> None:  # C03
    assert "accepted: patterns separated by commas" in problem("PUBLIC_PATHS", text)
    assert "accepted: patterns separated by commas" in problem("LOGIN_PATHS", text)


@pytest.mark.parametrize("name", ["LOGIN_PATHS", "REFRESH_PATHS", "LOGOUT_PATHS"])
@pytest.mark.parametrize("text", ["*", "/*", "POST /*", "/login,**"])
def test_everything_is_not_a_login_path(name: str, text: str) -> None:
    assert "lets every request pass unchecked" in problem(name, text)


def test_identity_headers() -> None:
    assert read("IDENTITY_HEADERS", "X-User=sub, X-Mail=claim:email=x") == (
        ("X-User", "sub", None),
        ("X-Mail", "claim", "email=x"),
    )
    assert read("IDENTITY_HEADERS", "none") == ()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "X-User",
            "X User=sub",
            "=sub",
            "X-User=name",
            "X-User=claim:",
            "X-User=sub,x_user=roles",
            "X.User=sub,X-User=sub",
        ),
        *("Host=sub", "authorization=sub", "Content_Length=sub", "X-Forwarded-For=sub", "X-Gatekeeper-User=sub"),
    ],
)
def test_other_identity_headers_are_refused(text: str) -> None:
    assert "accepted: Header-Name=kind" in problem("IDENTITY_HEADERS", text)


def test_token_sources() -> None:
    text = "cookie:__Host-access,header,query:token,subprotocol"
    assert read("TOKEN_SOURCES", text) == tuple(text.split(","))
    for wrong in ("none", "cookie", "cookie:", "cookie:a b", "query:a&b", "body", "header,header"):
        assert "accepted: header, scheme:NAME" in problem("TOKEN_SOURCES", wrong)
    text = "scheme:JWT,scheme:,header:X-Access-Token,header"
    assert read("TOKEN_SOURCES", text) == tuple(text.split(","))
    for wrong in ("scheme:Bearer", "scheme:a b", "header:", "header:cookie", "header:X_Gatekeeper_Token", "header:a:b"):
        assert "accepted: header, scheme:NAME" in problem("TOKEN_SOURCES", wrong)
    for twice in ("scheme:JWT,scheme:jwt", "header:X-A,header:x-a"):
        assert "twice" in problem("TOKEN_SOURCES", twice)


def test_a_template_of_errors_is_json() -> None:
    for text in ('{"a":"{status}"}', "[]", '"x"', "null"):
        assert read("ERROR_BODY", text) == text
    for wrong in ("{status}", '{"a":{status}}', "<error/>", "{", "[" * 100_000):
        assert "which is not JSON" in problem("ERROR_BODY", wrong)


def test_required_claims_and_header_types() -> None:
    assert read("JWT_REQUIRED_CLAIMS", "type=access, scope = api ,a.b=c=d") == (
        ("type", "access"),
        ("scope", "api"),
        ("a.b", "c=d"),
    )
    assert read("JWT_REQUIRED_CLAIMS", "none") == ()
    for wrong in ("type", "=access", "type=", "type=access,type=access", "type=access,type=x"):
        assert "accepted: claims, each once, with their values" in problem("JWT_REQUIRED_CLAIMS", wrong)
    assert read("JWT_TYPES", "Access,application/example+jwt") == ("access", "example+jwt")
    for wrong in ("a b", "application/", "logout+jwt", "Application/DPoP+JWT", "a/b", "access,ACCESS"):
        assert "accepted: media types" in problem("JWT_TYPES", wrong)


def test_the_settings_name_every_dialect_that_there_is() -> None:
    assert tuple(DIALECTS) == DIALECT_NAMES


def test_other_lists_and_names() -> None:
    assert read("DIALECTS", "mockstream") == ("mockstream",)
    assert read("DIALECTS", "none") == ()
    assert read("ADMIN_ROLES", "admin, Operator") == ("admin", "Operator")
    assert read("EXEMPT_USERS", "role:service,42") == ("role:service", "42")
    assert read("ROLES_CLAIM", "realm_access.roles") == "realm_access.roles"
    assert "which is not one of the accepted words" in problem("DIALECTS", "express,koa")
    assert problem("ERROR_DIALECT", "koa").endswith("accepted: django, express, fastapi, mockstream, native, users_me")
    assert read("LANGUAGE", "fr") == "fr"
    for language in ("fr-CA", "de", "../../etc/passwd"):
        assert problem("LANGUAGE", language).endswith("accepted: en, fr")
    assert read("DEBUG_ENDPOINTS", "true") is True
    for name, text in (
        ("EXEMPT_USERS", "role:"),
        ("ROLES_CLAIM", "a..b"),
        ("KEY_PREFIX", "gk:{a}"),
        ("KEY_PREFIX", "a*"),
    ):
        assert problem(name, text)


def test_authorities_are_looked_into(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    assert read("STORE_CA_FILE", str(file)) == file
    file.write_text("nothing")
    assert "holds no PEM certificate" in problem("UPSTREAM_CA_FILE", str(file))
    assert "cannot be read (No such file or directory)" in problem("UPSTREAM_CA_FILE", "/does/not/exist")
    assert "is not a directory" in problem("DATA_DIR", str(file))
    assert "starts with ~" in problem("DATA_DIR", "~/data")


def test_origins() -> None:  # U08
    text = "https://app.example.com,http://localhost:3000,https://[::1]:8443,https://xn--bcher-kva.example"
    assert read("CORS_ORIGINS", text) == tuple(text.split(","))
    assert read("CORS_ORIGINS", "none") == ()


@pytest.mark.parametrize(
    "text",
    [
        *("*", "null", "https://*.example.com", "app.example.com", "//app.example.com", "https://", "file:///x"),
        *("https://app.example.com/", "https://app.example.com/x", "https://app.example.com?x", "https://a.example#x"),
        *("HTTPS://app.example.com", "https://App.example.com", "https://app.example.com:443", "http://a.example:80"),
        *("https://user@app.example.com", "https://app.example.com:0", "https://bücher.example", "wss://a.example"),
        *("https://a.example,https://a.example", "https://a.example,", "none,https://a.example"),
    ],
)
def test_a_text_that_no_browser_sends_as_an_origin_is_refused(text: str) -> None:  # U08
    assert "accepted: origins separated by commas, such as https://app.example.com; or none; never *" in problem(
        "CORS_ORIGINS", text
    )


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50/s", (50, 1.0)),
        ("1/s", (1, 1.0)),
        ("10/15m", (10, 900.0)),
        ("5/2s", (5, 2.0)),
        ("1000/h", (1000, 3600.0)),
        ("1/24h", (1, 86400.0)),
        ("9999999/s", (9_999_999, 1.0)),
        ("off", None),
    ],
)
def test_rates(text: str, rate: tuple[int, float] | None) -> None:
    assert read("RATE_LIMIT", text) == rate
    assert read("LOGIN_RATE_LIMIT", text) == rate


@pytest.mark.parametrize(
    "text",
    [
        *("50", "50/", "/s", "0/s", "-1/s", "1.5/s", "50/0s", "1/25h", "1/d", "50 / s", "50/S", "50/1.5s", "5e1/s"),
        *("10000000/s", "50/s,10/m", "none", "٥/s", "1/99999999999999999999h"),
    ],
)
def test_other_rates_are_refused(text: str) -> None:
    assert "accepted: number/period, such as 50/s or 10/15m" in problem("RATE_LIMIT", text)
    assert "accepted: number/period, such as 50/s or 10/15m" in problem("LOGIN_RATE_LIMIT", text)


def test_a_source_of_locations(tmp_path: Path) -> None:
    file = tmp_path / "cities.mmdb"
    file.write_bytes(b"")
    for text in ("off", "country", str(file)):
        assert read("GEO", text) == text
    accepted = "accepted: off, country, or the path of an .mmdb file"
    for text, why in (
        ("on", "is not one of the accepted words"),
        ("city", "is not one of the accepted words"),
        ("none", "is not one of the accepted words"),
    ):
        assert why in problem("GEO", text)
        assert problem("GEO", text).endswith(accepted)
    for text in (str(tmp_path), "/does/not/exist.mmdb", "elsewhere.mmdb"):
        assert "is not a file" in problem("GEO", text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [("1", (1, None)), ("250000", (250_000, None)), ("90d", (None, 7_776_000.0)), ("36h", (None, 129_600.0))],
)
def test_the_audit_log_is_kept_by_number_or_by_time(text: str, kept: tuple[int | None, float | None]) -> None:
    assert read("AUDIT_RETENTION", text) == kept


@pytest.mark.parametrize("text", ["0", "-1", "off", "1.5", "90 days", "0s", "11y", "99999999999", "100ms"])
def test_what_is_no_retention_is_refused(text: str) -> None:
    assert "accepted: a number of events, or a duration with its unit" in problem("AUDIT_RETENTION", text)


@pytest.mark.parametrize("name", ["LOGIN_TOKEN_POINTERS", "LOGIN_REFRESH_POINTERS", "REFRESH_TOKEN_SOURCES"])
def test_places_of_tokens(name: str) -> None:
    assert read(name, "/a/0/b~1c, header:X-Token,cookie:jwt") == ("/a/0/b~1c", "header:X-Token", "cookie:jwt")
    assert read(name, "none") == read(name, "") == ()
    for text in ("token", "/a~2", "query:t", "header:", "header:a b", "cookie:a=b", "cookie", "/a,/a"):
        assert "accepted: JSON pointers such as /user/token" in problem(name, text)


def test_names_and_statuses_of_a_login() -> None:
    assert read("LOGIN_NAME_FIELDS", "userId, kunden-nr,\u540d\u524d") == ("userId", "kunden-nr", "\u540d\u524d")
    assert read("LOGIN_FAILURE_STATUS", "400,422,200") == (400, 422, 200)
    for text in ("user[name]", "a b", "...", "x" * 129, "a=b"):
        assert "accepted: names separated by commas" in problem("LOGIN_NAME_FIELDS", text)
    for text in ("none", "99", "600", "4xx", "401;403"):
        assert "accepted: statuses separated by commas" in problem("LOGIN_FAILURE_STATUS", text)
