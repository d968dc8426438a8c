"""What Gatekeeper answers wherever it stands: as a sidecar, and mounted in any application. Each suite that inherits
this class brings a `world`; its settings are the defaults and `SETTINGS`."""

from __future__ import annotations

import json
import re
import time
import uuid

import pytest

from tests.contracts.responses import NO_TOKEN, assert_own_response, error_body
from tests.servers import ClientResponse
from tests.system.sidecar import World, bearer, masked, someone, token
from tests.tokens import forge

SETTINGS = {"public_paths": "/public/*,GET /docs/*"}

SPOOFED = ["X-User-Id", "x-user-id", "X_User_Id", "X-User_Id", "X.User.Id", "x-USER-iD"]

# Headers and queries by which a backend takes a request for one of another method.
OVERRIDES = [
    *("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X_HTTP_Method_Override", "X.HTTP.Method"),
    *("x-method_override", "X-Http_Method", "X_METHOD.OVERRIDE"),
]
OVERRIDING_QUERIES = [
    *("_method=DELETE", "a=1&_method=PUT", "_METHOD=put", "_%6dethod=PUT", "%5fmethod=PUT", ".method=PUT"),
    *("a;_method=PUT", "_method", "_method[]=PUT", "%20_method=PUT", "_method%00=PUT"),
]


def cookie(token: str) -> tuple[str, str]:
    return ("Cookie", f"access_token={token}")


class GateContract:
    """The verdict, the answers to refused requests, and what an admitted one becomes."""

    # Refused

    def test_a_request_without_a_token_is_refused(self, world: World) -> None:  # H08, H09
        for headers in ([], [("X-Original-URL", "/public/x")], [("User-Agent", "kube-probe/1")]):
            answer = world.refused("/protected", headers=headers)
            assert_own_response(answer, 401, NO_TOKEN)
            assert answer.get_all("www-authenticate") == ["Bearer"]

    def test_a_bad_token_is_refused(self, world: World) -> None:
        for bad in ("x", "a.b.c", forge.token(forge.OTHER_SECRET), token(someone(), exp=...)):
            answer = world.refused("/protected", bad)
            assert_own_response(answer, 401, error_body("token_invalid"))
            assert answer.get_all("www-authenticate") == [
                'Bearer error="invalid_token", error_description="Invalid authentication token"'
            ]

    def test_an_expired_token_is_told_apart(self, world: World) -> None:
        answer = world.refused("/protected", token(someone(), exp=int(time.time()) - 60))
        assert_own_response(answer, 401, error_body("token_expired"))
        assert answer.get_all("www-authenticate") == [
            'Bearer error="invalid_token", error_description="Access token has expired"'
        ]

    def test_the_answer_to_a_refused_head_request_has_no_body(self, world: World) -> None:
        answer = world.refused("/protected", method="HEAD")
        assert (answer.status, answer.body) == (401, b"")
        assert answer.get_all("content-length") == [str(len(NO_TOKEN))]

    def test_trace_and_connect_are_not_allowed(self, world: World) -> None:  # P16
        answer = world.refused("/protected", token(someone()), method="TRACE")
        assert answer.status == 405
        assert json.loads(answer.body)["code"] == "method_not_allowed"

    # Admitted

    def test_a_good_token_passes_and_the_backend_is_told_who_it_is(self, world: World) -> None:  # B-07, C-04, C-14
        user = someone()
        request = world.passed("/protected?a=1&a=2", token(user, roles=["user", "ops"]))
        assert (request.method, request.target) == ("GET", "/protected?a=1&a=2")
        assert request.get_all("x-user-id") == [user]
        assert request.get_all("x-user-roles") == ["user,ops"]
        assert re.fullmatch(r"[1-9]\d{0,15}", request.get_all("x-session-id")[0])

    def test_the_session_id_told_is_the_one_listed(self, world: World) -> None:
        bearing = token(someone())
        told = world.passed("/protected", bearing).get_all("x-session-id")
        assert told == [str(number) for number in world.session_ids(bearing)]

    def test_identical_tokens_are_one_session_and_a_sid_joins_several(self, world: World) -> None:
        user, sid = someone(), uuid.uuid4().hex
        first, second = token(user, sid=sid), token(user, sid=sid)
        ids = {world.passed("/", bearing).get_all("x-session-id")[0] for bearing in (first, first, second)}
        assert len(ids) == 1

    def test_an_integer_user_is_its_decimal_text(self, world: World) -> None:  # T18, rule 1.1
        user = someone()
        assert world.passed("/", token("", sub=int(user))).get_all("x-user-id") == [user]

    @pytest.mark.parametrize("name", SPOOFED)
    def test_a_claimed_identity_is_replaced(self, world: World, name: str) -> None:  # H01, H02
        user = someone()
        request = world.passed(
            "/", token(user), headers=[(name, "1"), ("X-Session-Id", "1"), ("X-User-Roles", "admin")]
        )
        folded = [(key.replace("_", "-").replace(".", "-"), value) for key, value in request.headers]
        assert [value for key, value in folded if key == "x-user-id"] == [user]
        assert [value for key, value in folded if key == "x-user-roles"] == [""]
        assert "1" not in request.get_all("x-session-id")

    def test_a_public_path_carries_no_claimed_identity(self, world: World) -> None:  # H03
        request = world.passed("/public/x", headers=[(name, "1") for name in SPOOFED])
        assert not [name for name, _ in request.headers if "user" in name]

    def test_the_users_own_words_arrive_percent_encoded(self, world: World) -> None:  # H16
        request = world.passed("/", token("", sub=f"zoë%{uuid.uuid4().hex}", roles=["a,b", "c"]))
        assert request.get_all("x-user-id")[0].startswith("zo%C3%AB%25")
        assert request.get_all("x-user-roles") == ["a%2Cb,c"]

    # The request id

    def test_the_clients_request_id_is_kept(self, world: World) -> None:
        mine = "order:4711/a+b=c.d-e_f"
        before = len(world.reached)
        answer = world.fetch("/", token(someone()), headers=[("X-Request-Id", mine)])
        assert answer.get_all("x-request-id") == [mine]
        assert world.reached[before].get_all("x-request-id") == [mine]
        assert world.refused("/", headers=[("X-Request-Id", mine)]).get_all("x-request-id") == [mine]

    @pytest.mark.parametrize("theirs", [["a b"], ["x" * 129], [""], ["a", "b"], ["a", "a"], ["é"], ["a;b"]])
    def test_another_request_id_is_replaced_by_a_new_uuid(self, world: World, theirs: list[str]) -> None:
        before = len(world.reached)
        answer = world.fetch("/", token(someone()), headers=[("X-Request-Id", value) for value in theirs])
        (made,) = answer.get_all("x-request-id")
        assert str(uuid.UUID(made)) == made
        assert world.reached[before].get_all("x-request-id") == [made]

    # One verdict, one round trip

    def test_a_forwarded_request_is_one_round_trip_to_the_store(self, world: World) -> None:
        bearing = token(someone())
        for _ in range(3):
            before = world.store.scripts_run
            world.passed("/protected", bearing)
            assert world.store.scripts_run - before == 1

    def test_what_is_no_good_token_never_reaches_the_store(self, world: World) -> None:
        before = world.store.scripts_run
        world.refused("/protected")
        world.refused("/protected", forge.token(forge.OTHER_SECRET))
        world.passed("/public/x")
        world.passed("/public/x", "x")
        assert world.store.scripts_run == before

    def test_every_admitted_request_moves_the_activity(self, world: World) -> None:  # C-10, C-37, D-08, E-06
        user = someone()
        bearing, seen = token(user), 0.0
        for method in ("GET", "GET", "HEAD", "POST", "DELETE"):
            world.fetch("/protected", bearing, method=method)
            now = world.store.last_activity(user)
            assert now > seen
            seen = now

    def test_a_refused_request_moves_nothing(self, world: World) -> None:
        user = someone()
        bearing = token(user)
        world.passed("/", bearing)
        seen = world.store.last_activity(user)
        world.refused("/", bearing + "=")
        world.refused("/", token(user, exp=int(time.time()) - 60))
        assert world.store.last_activity(user) == seen

    # Ended sessions

    def test_a_revoked_session_is_refused_although_its_token_is_good(self, world: World) -> None:
        # B-02, C-11, C-13, E-07, T30
        bearing = token(someone())
        (session,) = world.session_ids(bearing)
        assert world.fetch(f"/api/sessions/session_{session}", bearing, method="DELETE").status == 200
        for _ in range(2):
            answer = world.refused("/protected", bearing)
            assert_own_response(answer, 401, error_body("session_revoked_or_invalid", "revoked_by_user"))
            assert answer.get_all("www-authenticate") == [
                'Bearer error="invalid_token", error_description="Session has been revoked or is invalid"'
            ]
        assert world.refused("/protected", bearing + "=").status == 401  # T12

    def test_a_session_revoked_by_an_administrator_is_refused(self, world: World) -> None:  # D-09, T30
        user = someone()
        bearing = token(user)
        (session,) = world.session_ids(bearing)
        admin = token(someone(), roles=["admin"])
        assert world.fetch(f"/sessions/user/{user}/{session}", admin, method="DELETE").status == 200
        answer = world.refused("/protected", bearing)
        assert_own_response(answer, 401, error_body("session_revoked_or_invalid", "revoked_by_admin"))

    def test_a_logged_out_session_is_refused_as_such_for_every_token_of_it(self, world: World) -> None:  # C-23, D-03
        user, sid = someone(), uuid.uuid4().hex
        first, second = token(user, sid=sid), token(user, sid=sid)
        world.passed("/", first)
        assert world.fetch("/sessions/logout", first, method="DELETE").status == 200
        for bearing in (first, second):
            answer = world.refused("/", bearing)
            assert_own_response(answer, 401, error_body("access_token_blacklisted", "logged_out"))

    def test_a_deactivated_session_never_lives_again(self, world: World) -> None:  # B-04, B-13
        bearing = token(someone())
        (session,) = world.session_ids(bearing)
        assert world.fetch(f"/api/sessions/{session}/deactivate", bearing, method="PATCH").status == 200
        for _ in range(3):
            answer = world.refused("/protected", bearing)
            assert_own_response(answer, 401, error_body("session_revoked_or_invalid", "deactivated"))

    def test_the_fourth_device_puts_the_least_active_one_out(self, world: World) -> None:  # C-12, D-05, D-07
        user = someone()
        first, second, third, fourth = (token(user) for _ in range(4))
        for bearing in (first, second, third, first, fourth):
            world.passed("/", bearing)
        answer = world.refused("/", second)
        assert_own_response(answer, 401, error_body("session_revoked_or_invalid", "evicted"))
        for bearing in (first, third, fourth):
            world.passed("/", bearing)
        assert world.store.live(user) == 3

    def test_after_the_end_of_all_a_token_of_before_opens_nothing(self, world: World) -> None:  # T30, rule 4.4
        user = someone()
        seen, unseen = token(user), token(user)
        assert world.fetch("/api/sessions", seen, method="DELETE").status == 200
        for bearing in (seen, unseen, token(user, iat=...), token(user, iat=int(time.time()) - 3600)):
            assert world.refused("/", bearing).status == 401
        assert world.store.live(user) == 0

    # Where the token is

    def test_a_cookie_carries_the_token_too(self, world: World) -> None:
        user = someone()
        request = world.passed("/", headers=[("Cookie", f"theme=dark; access_token={token(user)}; a=b")])
        assert request.get_all("x-user-id") == [user]

    def test_the_first_source_decides_and_a_bad_second_one_is_no_matter(self, world: World) -> None:
        user = someone()
        request = world.passed("/", token(user), headers=[cookie("nonsense")])
        assert request.get_all("x-user-id") == [user]
        # A backend that looks elsewhere first must not find what nobody judged.
        assert "nonsense" not in str(request)
        assert world.refused("/", "nonsense", headers=[cookie(token(user))]).status == 401

    def test_credentials_of_two_users_are_refused(self, world: World) -> None:  # T22
        one, other = token(someone()), token(someone())
        answers = [
            world.refused("/", headers=[bearer(one), bearer(other)]),
            world.refused("/", headers=[bearer(one), bearer(one)]),
            world.refused("/", headers=[bearer(one), cookie(other)]),
            world.refused("/", headers=[("Cookie", f"access_token={one}; access_token={other}")]),
            world.refused("/", headers=[cookie(one), cookie(other)]),
        ]
        for answer in answers:
            assert_own_response(answer, 401, error_body("token_invalid"))

    def test_cookies_are_read_in_one_way_only(self, world: World) -> None:  # T24
        user = someone()
        good = token(user)
        assert world.passed("/", headers=[("Cookie", f'access_token="{good}"')]).get_all("x-user-id") == [user]
        # A cookie without a name, or of another case, is none of ours.
        for nobodys in (f"=access_token={good}", f"=__Host-x={good}", f"Access_Token={good}", f"x{good}"):
            assert_own_response(world.refused("/", headers=[("Cookie", nobodys)]), 401, NO_TOKEN)
        for bad in (f"{good}%3B", f'"{good}', "x" * 8300, "é"):
            answer = world.refused("/", headers=[("Cookie", f"access_token={bad}")])
            assert_own_response(answer, 401, error_body("token_invalid"))

    def test_a_token_in_the_query_of_a_request_is_no_token(self, world: World) -> None:  # T22
        assert_own_response(world.refused(f"/?access_token={token(someone())}"), 401, NO_TOKEN)

    @pytest.mark.parametrize(
        ("scheme", "admitted"),
        [
            ("Bearer {}", True),
            ("bearer {}", True),
            ("BEARER {}", True),
            ("Basic {}", False),
            ("Bearer\t{}", False),
            ("Bearer {},Bearer {}", False),
            ('Bearer "{}"', False),
            ("Bearer", False),
            ("Bearer \x80", False),
            ("{}", False),
        ],
    )
    def test_the_scheme_is_bearer_in_any_case(self, world: World, scheme: str, *, admitted: bool) -> None:  # T23
        answer = world.fetch("/", headers=[("Authorization", scheme.replace("{}", token(someone())))])
        assert answer.status == (200 if admitted else 401)

    @pytest.mark.parametrize(
        ("headers", "allowed"),
        [
            ([], False),
            ([("Origin", "https://evil.example")], False),
            ([("Origin", "null")], False),
            ([("Sec-Fetch-Site", "cross-site")], False),
            ([("Sec-Fetch-Site", "same-site")], False),
            ([("Sec-Fetch-Site", "same-origin")], True),
            ([("Sec-Fetch-Site", "none")], True),
            ([("Origin", "{own}")], True),
            ([("Origin", "{own}.evil.example")], False),
            ([("Origin", "{own}"), ("Origin", "https://evil.example")], False),
        ],
    )
    def test_a_cookie_alone_ends_no_session_for_another_site(
        self, world: World, headers: list[tuple[str, str]], *, allowed: bool
    ) -> None:  # S21
        bearing = token(someone())
        sent = [cookie(bearing), *((name, value.replace("{own}", world.url)) for name, value in headers)]
        for method, target in (("DELETE", "/sessions/logout"), ("DELETE", "/api/sessions"), ("DELETE", "/sessions/1")):
            answer = world.fetch(target, method=method, headers=sent)
            if allowed:
                assert answer.status in (200, 401, 404)
            elif target == "/sessions/1":
                assert_own_response(answer, 403, error_body("origin_not_allowed"))
            else:
                assert answer.status == 403
                assert b"This origin is not allowed" in answer.body
        assert (world.fetch("/", bearing).status == 200) is not allowed

    def test_a_cookie_reads_and_a_header_ends_from_anywhere(self, world: World) -> None:  # S21
        bearing = token(someone())
        evil = ("Origin", "https://evil.example")
        assert world.fetch("/sessions/me", headers=[cookie(bearing), evil]).status == 200
        assert world.fetch("/protected", method="POST", headers=[cookie(bearing), evil]).status == 200
        assert world.fetch("/sessions/logout", bearing, method="DELETE", headers=[evil]).status == 200

    # Paths

    def test_on_a_public_path_nobody_needs_a_token_and_a_good_one_is_told(self, world: World) -> None:
        anonymous = world.passed("/public/x")
        assert anonymous.get_all("x-user-id") == []
        user = someone()
        known = world.passed("/public/x", token(user))
        assert (known.get_all("x-user-id"), len(known.get_all("authorization"))) == ([user], 1)

    def test_on_a_public_path_a_refused_token_is_taken_away(self, world: World) -> None:
        revoked = token(someone())
        world.fetch("/sessions/logout", revoked, method="DELETE")
        for bearing in (revoked, "nonsense", token(someone(), exp=1)):
            request = world.passed("/public/x", bearing, headers=[("Cookie", f"a=b; access_token={bearing}; c=d")])
            assert request.get_all("authorization") == []
            assert bearing not in "".join(request.get_all("cookie"))
            assert request.get_all("x-user-id") == []

    @pytest.mark.parametrize("name", OVERRIDES)
    def test_a_method_override_makes_a_public_path_protected(self, world: World, name: str) -> None:  # H08
        override = [(name, "DELETE")]
        assert world.refused("/public/x", headers=override).status == 401
        assert world.passed("/public/x", token(someone()), headers=override).get_all(name.lower()) == ["DELETE"]

    @pytest.mark.parametrize("query", OVERRIDING_QUERIES)
    def test_so_does_one_in_the_query(self, world: World, query: str) -> None:  # H08
        assert world.refused(f"/public/x?{query}").status == 401
        assert world.passed(f"/public/x?{query}", token(someone())).target == f"/public/x?{query}"
        for harmless in ("method=card", "payment_method=card", "a=_method"):
            assert world.passed(f"/public/x?{harmless}").get_all("x-user-id") == []

    @pytest.mark.parametrize("name", OVERRIDES)
    def test_an_overridden_preflight_is_none(self, world: World, name: str) -> None:  # H08
        preflight = [("Origin", "https://app.example"), ("Access-Control-Request-Method", "PUT")]
        assert world.passed("/x", method="OPTIONS", headers=preflight)
        assert world.refused("/x", method="OPTIONS", headers=[*preflight, (name, "DELETE")]).status == 401
        assert world.refused("/x?_method=DELETE", method="OPTIONS", headers=preflight).status == 401

    @pytest.mark.parametrize(
        "target",
        ["/public/../protected", "/public/%2e%2e/protected", "/public/..%2fprotected", "/public/..;/protected"],
    )
    def test_a_path_that_may_be_read_as_protected_is_protected(self, world: World, target: str) -> None:
        # P01, P02, P03: forwarded byte for byte with a token
        assert world.refused(target).status == 401
        assert world.passed(target, token(someone())).target == target

    @pytest.mark.parametrize(
        "target", ["//api/sessions", "/API/sessions", "/api/%73essions", "/api/./sessions", "/api/x/../sessions"]
    )
    @pytest.mark.parametrize("with_token", [True, False])
    def test_another_spelling_of_an_own_path_is_refused(self, world: World, target: str, *, with_token: bool) -> None:
        # P05, P08, P17
        answer = world.refused(target, token(someone()) if with_token else None)
        assert answer.status == 400
        assert json.loads(answer.body)["code"] == "bad_request"

    def test_other_methods_on_an_own_path_are_the_backends(self, world: World) -> None:
        assert world.refused("/api/sessions", method="POST").status == 401
        request = world.passed("/api/sessions", token(someone()), method="POST", body=b"{}")
        assert (request.method, request.target) == ("POST", "/api/sessions")

    @pytest.mark.parametrize(
        "path", ["/login", "/auth/login", "/api/v1/auth/login/", "/auth/refresh", "/x/auth/logout"]
    )
    def test_login_refresh_and_logout_are_forwarded_unjudged(self, world: World, path: str) -> None:
        spoofed = [(name, "1") for name in SPOOFED]
        for bearing in (None, token(someone()), token(someone(), exp=1)):
            request = world.passed(path, bearing, method="POST", headers=spoofed, body=b"{}")
            assert not [name for name, _ in request.headers if "user" in name or "session" in name]
            assert len(request.get_all("authorization")) == (bearing is not None)
        # Only POST is.
        assert world.refused(path).status == 401

    def test_a_preflight_is_forwarded_without_credentials(self, world: World) -> None:
        sent = [
            bearer(token(someone())),
            cookie(token(someone())),
            ("Origin", "https://app.example"),
            ("Access-Control-Request-Method", "PUT"),
            ("X-User-Id", "1"),
        ]
        request = world.passed("/protected", method="OPTIONS", headers=sent, body=b"body")
        assert request.get_all("access-control-request-method") == ["PUT"]
        names = {name for name, _ in request.headers}
        assert names.isdisjoint({"authorization", "cookie", "x-user-id", "content-length", "transfer-encoding"})
        # OPTIONS that is no preflight is a request as any other.
        assert world.refused("/protected", method="OPTIONS").status == 401

    def test_the_session_endpoints_answer_here(self, world: World) -> None:
        before = len(world.reached)
        bearing = token(someone())
        assert masked(world.fetch("/api/sessions", bearing).body).startswith(
            b'{"success":true,"message":"Sessions retrieved successfully","data":[{"id":"session_<id>"'
        )
        assert world.fetch("/sessions/me", bearing).status == 200
        assert len(world.reached) == before

    def test_an_answer_of_gatekeepers_own_is_not_kept_by_caches(self, world: World) -> None:
        answer: ClientResponse = world.fetch("/sessions/me", token(someone()))
        assert answer.get_all("cache-control") == ["no-store"]
        assert answer.get_all("x-content-type-options") == ["nosniff"]
        assert answer.get_all("content-type") == ["application/json; charset=utf-8"]
        assert len(answer.get_all("x-request-id")) == 1
