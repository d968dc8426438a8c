"""What `gatekeeper check --token` says of the tokens of real backends: the verdict, the claims, the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gatekeeper import cli_check
from tests.system.sidecar import environment, token
from tests.tokens import forge


def of(**claims: Any) -> str:
    """A token that outlives the whole suite: these are made when it begins."""
    return token("7", **{"exp": 9_999_999_999} | claims)


Case = tuple[str, dict[str, str], list[str]]

DIAGNOSES: dict[str, Case] = {
    "another claim names the user": (
        of(sub=..., user_id=7),
        {},
        ["no claim sub", "claims in the token: jti, iat, exp, user_id", "try: GATEKEEPER_JWT_USER_CLAIM=user_id"],
    ),
    "a nested claim names the user": (
        of(sub=..., data={"userId": "7"}),
        {},
        ["try: GATEKEEPER_JWT_USER_CLAIM=data.userId"],
    ),
    "the claim that is set is missing": (
        of(),
        {"jwt_user_claim": "uid"},
        ["no claim uid", "looked for: the user in uid", "try: GATEKEEPER_JWT_USER_CLAIM=sub"],
    ),
    "another issuer": (
        of(iss="https://idp.example/"),
        {"jwt_issuer": "https://idp.example"},
        ["iss is not the configured issuer", "try: GATEKEEPER_JWT_ISSUER=https://idp.example/"],
    ),
    "another audience": (
        of(aud=["account", "x"]),
        {"jwt_audience": "api"},
        ["aud does not name", "try: GATEKEEPER_JWT_AUDIENCE=account"],
    ),
    "another algorithm": (
        forge.hs({"alg": "HS512"}, {"sub": "7", "exp": 9_999_999_999}),
        {},
        ["allow-list", "try: GATEKEEPER_JWT_ALGORITHMS=HS512"],
    ),
    "another type": (
        forge.hs({"alg": "HS256", "typ": "session+jwt"}, {"sub": "7", "exp": 9_999_999_999}),
        {},
        ["try: GATEKEEPER_JWT_TYPES=session+jwt"],
    ),
    "another key": (of() + "A", {}, ["the token is refused: token_invalid"]),
    "a foreign key": (forge.token(forge.OTHER_SECRET), {}, ["no key verifies", "try: GATEKEEPER_JWT_SECRET"]),
    "roles elsewhere": (
        of(realm_access={"roles": ["admin"]}),
        {},
        ["the token is good", "roles in roles", "try: GATEKEEPER_ROLES_CLAIM=realm_access.roles"],
    ),
    "carried by a header of its own": (of(), {"token_sources": "header:X-Auth-Token"}, ["the token is good"]),
    "carried by a cookie": (of(), {"token_sources": "cookie:session,subprotocol"}, ["the token is good"]),
    "carried by another scheme": (of(), {"token_sources": "scheme:JWT"}, ["the token is good"]),
    "carried by the query": (of(), {"token_sources": "query:jwt"}, ["the token is good"]),
    "carried without a scheme": (of(), {"token_sources": "scheme:"}, ["the token is good"]),
    "names that are none": (of(**{"x\ny": 1, "b1946ac92492d2347c6235b4": 2}), {}, ["iat, exp, ?\n"]),
    "a claim of control characters": (of(iss="a\x1b[31m"), {"jwt_issuer": "b"}, ["try: GATEKEEPER_JWT_ISSUER\n"]),
}


@pytest.mark.parametrize("case", DIAGNOSES.values(), ids=DIAGNOSES)
async def test_check_names_the_claims_of_a_token_and_proposes_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    text, settings, said = case
    file = tmp_path / "token"
    file.write_text(text)
    for name, value in environment(redis_url="redis://127.0.0.1:1", **settings).items():
        monkeypatch.setenv(name, value)
    code = await cli_check.run(online=False, token_file=file)
    printed = capsys.readouterr().out
    assert printed.startswith("the token is ")
    assert code == (0 if printed.startswith("the token is good") else 1)
    for each in said:
        assert each in printed, printed
    assert text not in printed
