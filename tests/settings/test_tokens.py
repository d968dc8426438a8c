"""Settings of tokens that Gatekeeper issues: accepted values, effects, conflicts and warnings."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from gatekeeper.settings import Settings, describe, load, warnings
from gatekeeper.settings.grammars import OWN_CLAIMS
from tests.settings.reading import BASE, OTHER_SECRET, PEM, PRIVATE_PEM, SECRET, problem, problems, read

ISSUE = {"GATEKEEPER_TOKENS": "issue", "GATEKEEPER_LOGIN_CHECK_URL": "/internal/login"}
KEY_SET = {"GATEKEEPER_JWKS_URL": "https://idp.example.com/jwks"}


def issuing(**more: str) -> Settings:
    """Load the settings of a Gatekeeper that issues tokens."""
    environ = ISSUE | {f"GATEKEEPER_{name}": value for name, value in more.items()}
    return load(environ)


# Accepted values


def test_words_durations_and_names() -> None:
    assert read("TOKENS", "Issue", LOGIN_CHECK_URL="/login") == "issue"
    assert problem("TOKENS", "both").endswith("accepted: observe, issue")
    assert read("TOKEN_TRANSPORT", "cookie") == "cookie"
    assert problem("TOKEN_TRANSPORT", "header").endswith("accepted: body, cookie")
    assert read("ACCESS_TOKEN_TTL", "1h") == 3600.0
    assert "which is under 1s" in problem("ACCESS_TOKEN_TTL", "999ms")
    assert read("REFRESH_REUSE_WINDOW", "0") == 0.0
    assert "which is over 5m" in problem("REFRESH_REUSE_WINDOW", "301s")
    assert read("BACKCHANNEL_ISSUER", "https://idp.example.com/") == "https://idp.example.com/"


@pytest.mark.parametrize(
    ("text", "seconds"), [("15", 900.0), (" 15 ", 900.0), ("0.5", 30.0), ("15m", 900.0), ("90s", 90.0), ("1h", 3600.0)]
)
def test_a_plain_number_under_the_alias_of_the_life_of_tokens_is_minutes(text: str, seconds: float) -> None:
    assert load(BASE | {"GATEKEEPER_ACCESS_TOKEN_EXPIRE_MINUTES": text}).access_token_ttl == seconds


def test_the_alias_of_the_life_of_tokens_is_not_read_beside_its_name_nor_shown_in_another_unit() -> None:
    alias = "ACCESS_TOKEN_EXPIRE_MINUTES"
    assert "GATEKEEPER_ACCESS_TOKEN_TTL and GATEKEEPER_" in problem(alias, "15", ACCESS_TOKEN_TTL="15m")
    for text, why in (("0", "is under 1s"), ("-15", "is not a duration"), ("15 min", "is not a duration")):
        line = problem(alias, text)
        assert line.startswith(f"GATEKEEPER_{alias}: read '{text}', which {why}; accepted: a duration from 1s to 3650d")
        assert line.endswith("(under this name a plain number is minutes)")
    assert "minutes" not in problem("ACCESS_TOKEN_TTL", "0")
    found = {line.variable: line.value for line in describe(BASE | {f"GATEKEEPER_{alias}": "30"})}
    assert found["GATEKEEPER_ACCESS_TOKEN_TTL"] == "30m"


@pytest.mark.parametrize(
    "text",
    [
        *("/internal/login", "/", "/a/b/", "/caf%C3%A9", "http://127.0.0.1:9000/check", "https://auth.example.com"),
        *("https://auth.example.com/check?realm=a", "http://[::1]:9000/check"),
    ],
)
def test_a_login_check_is_a_path_or_a_url(text: str) -> None:
    assert read("LOGIN_CHECK_URL", text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("internal/login", "//auth.example.com/check", "/internal//login", "/a/../b", "/login?x=1", "/login#x"),
        *("*/auth/login", "/auth/*", "/caf\u00e9", "/a b", "/x%0", "POST /login", "ftp://auth/check", "http://"),
        *("https://user:hunter2@auth/check", "http+unix:///run/auth.sock", "https://auth/check#x", "http://auth:0/"),
    ],
)
def test_other_checks_of_a_password_are_refused(text: str) -> None:
    line = problem("LOGIN_CHECK_URL", text)
    assert line.endswith(
        "accepted: a path of the backend, such as /internal/login, or an http:// or https:// URL without a user"
    )
    assert "hunter2" not in line


@pytest.mark.parametrize("text", ["/id", "/data/user/id", "/a~1b/~0", "/users/0", "/a b"])
def test_where_the_user_is(text: str) -> None:
    assert read("LOGIN_USER_POINTER", text) == text


@pytest.mark.parametrize("text", ["id", "#/id", "data.id", "/a~2", "/a~", "$.id", "/" + "x" * 512])
def test_a_bad_json_pointer_is_refused(text: str) -> None:
    assert "accepted: a JSON pointer (RFC 6901), such as /id" in problem("LOGIN_USER_POINTER", text)


def test_members_that_become_claims() -> None:
    assert read("LOGIN_CLAIMS", "roles, email,realm_access") == ("roles", "email", "realm_access")
    assert read("LOGIN_CLAIMS", "none") == ()
    assert "names 'email' twice" in problem("LOGIN_CLAIMS", "email,email")


@pytest.mark.parametrize("name", OWN_CLAIMS)
def test_a_reserved_claim_is_refused_as_a_login_claim(name: str) -> None:
    line = problem("LOGIN_CLAIMS", f"roles,{name}")
    assert f"has the item '{name}', which is reserved for Gatekeeper; accepted: names" in line


# Effects


def test_an_unknown_session_is_adopted_unless_gatekeeper_issues_the_tokens() -> None:
    assert load(BASE).adopts_unknown
    assert not load(BASE | {"GATEKEEPER_UNKNOWN_SESSION": "reject"}).adopts_unknown
    assert not load(BASE | ISSUE).adopts_unknown
    assert load(BASE | ISSUE | {"GATEKEEPER_UNKNOWN_SESSION": "adopt"}).adopts_unknown
    shown = {line.variable: (line.value, line.source) for line in describe(BASE | ISSUE)}
    assert shown["GATEKEEPER_UNKNOWN_SESSION"] == ("reject", "default")


def test_tokens_are_signed_with_the_signing_key_else_with_the_secret() -> None:
    both = issuing(JWT_SECRET=SECRET, SIGNING_KEY=OTHER_SECRET)
    assert both.signing_secrets == (OTHER_SECRET.encode(),)
    assert both.hmac_secrets == (SECRET.encode(),)
    assert load(BASE).signing_secrets == (SECRET.encode(),)
    private = issuing(SIGNING_KEY=PRIVATE_PEM)
    assert (private.signing_secrets, private.signing_keys_pem) == ((), (PRIVATE_PEM.strip(),))
    assert issuing(SIGNING_KEY=SECRET).signing_keys_pem == ()


def test_algorithms_default_by_the_kind_of_the_signing_key_too() -> None:
    assert issuing(SIGNING_KEY=SECRET).algorithms == ("HS256",)
    assert issuing(JWT_SECRET=SECRET).algorithms == ("HS256",)
    assert issuing(SIGNING_KEY=PRIVATE_PEM).algorithms == ("RS256", "ES256", "EdDSA")
    assert issuing(SIGNING_KEY=PRIVATE_PEM, JWT_PUBLIC_KEY=PEM).algorithms == ("RS256", "ES256", "EdDSA")
    # While the backend issues the tokens, a signing key verifies none.
    assert load(KEY_SET | {"GATEKEEPER_SIGNING_KEY": SECRET}).algorithms == ("RS256", "ES256", "EdDSA")


def test_the_cookie_that_gatekeeper_sets_is_a_source_of_tokens() -> None:
    usual, own = ("header", "cookie:access_token"), "cookie:__Host-access"
    assert issuing(SIGNING_KEY=SECRET).effective_token_sources == usual
    assert issuing(SIGNING_KEY=SECRET, TOKEN_TRANSPORT="cookie").effective_token_sources == (*usual, own)
    chosen = issuing(SIGNING_KEY=SECRET, TOKEN_TRANSPORT="cookie", TOKEN_SOURCES=f"{own},header")
    assert chosen.effective_token_sources == (own, "header")
    assert load(BASE | {"GATEKEEPER_TOKEN_TRANSPORT": "cookie"}).effective_token_sources == usual


# Conflicts


def test_a_signing_key_alone_suffices_to_issue_tokens_and_not_to_observe_them() -> None:
    assert issuing(SIGNING_KEY=SECRET).jwt_secret == ()
    [line] = problems({"GATEKEEPER_SIGNING_KEY": SECRET})
    assert "GATEKEEPER_JWT_SECRET, GATEKEEPER_JWT_PUBLIC_KEY, GATEKEEPER_JWKS_URL: none is set" in line


@pytest.mark.parametrize("keys", [{}, KEY_SET, {"GATEKEEPER_JWT_PUBLIC_KEY": PEM}])
def test_tokens_are_not_issued_without_a_key_that_signs(keys: dict[str, str]) -> None:
    [line] = problems(ISSUE | keys)
    assert line == (
        "GATEKEEPER_SIGNING_KEY, GATEKEEPER_JWT_SECRET: none is set; accepted: in one of them, the key that tokens are "
        "signed with while GATEKEEPER_TOKENS is issue"
    )


def test_tokens_are_not_issued_without_somebody_who_checks_passwords() -> None:
    [line] = problems(BASE | {"GATEKEEPER_TOKENS": "issue"})
    assert line == (
        "GATEKEEPER_LOGIN_CHECK_URL: not set while GATEKEEPER_TOKENS is issue; accepted: a path of the backend, such "
        "as /internal/login, or an http:// or https:// URL without a user"
    )


@pytest.mark.parametrize(
    ("keys", "names", "kinds"),
    [
        ({"JWT_SECRET": SECRET, "SIGNING_KEY": PRIVATE_PEM}, "JWT_SECRET", "private keys and HMAC secrets"),
        ({"JWT_PUBLIC_KEY": PEM, "SIGNING_KEY": SECRET}, "JWT_PUBLIC_KEY", "HMAC secrets and public keys"),
        ({"JWKS_URL": "https://idp", "SIGNING_KEY": SECRET}, "JWKS_URL", "HMAC secrets and public keys"),
    ],
)
def test_signing_keys_and_verifying_keys_of_different_kinds_are_a_problem(
    keys: dict[str, str], names: str, kinds: str
) -> None:
    environ = {f"GATEKEEPER_{name}": value for name, value in keys.items()}
    [line] = problems(ISSUE | environ)
    assert line.startswith(f"GATEKEEPER_SIGNING_KEY and GATEKEEPER_{names}: {kinds} set together; accepted: ")
    assert SECRET not in line


def test_a_secret_beside_a_public_key_is_a_problem_for_either_issuer() -> None:
    [line] = problems(ISSUE | BASE | {"GATEKEEPER_JWT_PUBLIC_KEY": PEM})
    assert line.startswith("GATEKEEPER_JWT_SECRET and GATEKEEPER_JWT_PUBLIC_KEY: set together")


@pytest.mark.parametrize(
    ("key", "algorithm", "accepted"), [(SECRET, "RS256", "HS256"), (PRIVATE_PEM, "HS256", "RS256")]
)
def test_algorithms_that_do_not_fit_the_signing_key_are_a_problem(key: str, algorithm: str, accepted: str) -> None:
    [line] = problems(ISSUE | {"GATEKEEPER_SIGNING_KEY": key, "GATEKEEPER_JWT_ALGORITHMS": algorithm})
    assert line.startswith(f"GATEKEEPER_JWT_ALGORITHMS: read '{algorithm}', which does not fit ")
    assert f" fit GATEKEEPER_SIGNING_KEY; accepted: {accepted}" in line


def test_the_user_claim_is_refused_as_a_login_claim() -> None:
    more = {"GATEKEEPER_JWT_USER_CLAIM": "email", "GATEKEEPER_LOGIN_CLAIMS": "roles,email"}
    [line] = problems(BASE | ISSUE | more)
    assert line.startswith("GATEKEEPER_LOGIN_CLAIMS: read 'roles,email', which names the claim of the user")


def test_gatekeeper_does_not_ask_itself_for_passwords() -> None:
    upstream = {"GATEKEEPER_UPSTREAM_URL": "http://127.0.0.1:9000"}
    own = {"GATEKEEPER_LOGIN_CHECK_URL": "http://localhost:8000/internal/login"}
    [line] = problems(BASE | ISSUE | upstream | own)
    assert line.startswith(
        "GATEKEEPER_LOGIN_CHECK_URL: read 'http://localhost:8000/internal/login', which is Gatekeeper's"
    )
    # The middleware does not listen: its server may have that address.
    assert load(BASE | ISSUE | own).login_check_url == own["GATEKEEPER_LOGIN_CHECK_URL"]


def test_no_conflict_is_made_up_from_a_signing_key_that_could_not_be_read() -> None:
    [line] = problems(ISSUE | {"GATEKEEPER_SIGNING_KEY": "short"})
    assert line.startswith("GATEKEEPER_SIGNING_KEY: read ***, which has 5 bytes")
    assert len(problems(ISSUE | {"GATEKEEPER_SIGNING_KEY_FILE": "/does/not/exist"})) == 1
    assert len(problems({"GATEKEEPER_TOKENS": "both", "GATEKEEPER_SIGNING_KEY": SECRET})) == 1


# Warnings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("SIGNING_KEY", SECRET), ("SIGNING_KEY", PRIVATE_PEM), ("ACCESS_TOKEN_TTL", "5m")),
        *(("REFRESH_REUSE_WINDOW", "0s"), ("LOGIN_CHECK_URL", "http://auth/check"), ("LOGIN_USER_POINTER", "/user")),
        *(("LOGIN_CLAIMS", "none"), ("TOKEN_TRANSPORT", "cookie")),
    ],
)
def test_settings_of_an_issuer_are_warned_of_while_tokens_are_observed(name: str, value: str) -> None:
    expected = f"GATEKEEPER_{name}: has no effect while GATEKEEPER_TOKENS is observe"
    found = [line for line in warnings(load(BASE | {f"GATEKEEPER_{name}": value})) if name in line]
    assert found == [expected]
    assert expected not in warnings(issuing(**{"SIGNING_KEY": SECRET} | {name: value}))


def test_no_conflict_comes_from_what_has_no_effect() -> None:
    with_private_key = load(BASE | {"GATEKEEPER_SIGNING_KEY": PRIVATE_PEM, "GATEKEEPER_LOGIN_CLAIMS": "email"})
    assert with_private_key.algorithms == ("HS256",)
    assert load(BASE | {"GATEKEEPER_JWT_USER_CLAIM": "roles"}).login_claims == ("roles",)


@pytest.mark.parametrize(
    ("url", "count"),
    [
        ("http://auth.example.com/check", 1),
        ("https://auth.example.com/check", 0),
        ("http://127.0.0.1:9000/check", 0),
        ("/internal/login", 0),
    ],
)
def test_passwords_that_travel_unprotected_are_warned_of(url: str, count: int) -> None:
    found = [line for line in warnings(issuing(SIGNING_KEY=SECRET, LOGIN_CHECK_URL=url)) if "passwords" in line]
    expected = (
        "GATEKEEPER_LOGIN_CHECK_URL: plain http:// to auth.example.com, which is not this host: an attacker on the "
        "network can read passwords"
    )
    assert found == count * [expected]


def test_settings_made_in_python_may_hold_several_keys() -> None:
    made = Settings(tokens="issue", login_check_url="/x", signing_key=(SecretStr(PRIVATE_PEM), SecretStr(PRIVATE_PEM)))
    assert made.signing_keys_pem == (PRIVATE_PEM.strip(),) * 2
    with pytest.raises(ValueError, match="has text beside its PEM keys"):
        Settings(tokens="issue", login_check_url="/x", signing_key=(SecretStr(PRIVATE_PEM), SecretStr(SECRET)))
