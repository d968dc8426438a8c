"""The session service of the Python API, under the names of seeds C and D (C-16, C-17, D-05, D-06)."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gatekeeper.web.engine import Engine
from gatekeeper_middleware.faults import ServiceUnavailable
from gatekeeper_middleware.schemas import SessionCreate, SessionResponse
from gatekeeper_middleware.services import SessionService, TokenService, extract_jti_from_token
from tests.contracts.responses import RETRY_SOON
from tests.middleware.python_api import ISSUES, refused, running
from tests.system.sidecar import Store, someone, token
from tests.waiting import until


async def test_a_session_has_the_attributes_of_the_seed(tokens: TokenService, sessions: SessionService) -> None:  # C-17
    user = someone()
    began = datetime.now(UTC)
    session = await sessions.create_session(user)
    assert (session.revoked_at, session.end_reason, session.is_active) == (None, None, True)
    for moment in (session.created_at, session.last_activity_at, session.expires_at):
        assert moment.utcoffset() == timedelta(0)
    assert began - timedelta(seconds=1) < session.created_at < datetime.now(UTC) + timedelta(seconds=1)
    assert session.expires_at - session.created_at == timedelta(hours=24)
    assert (session.user_id, session.ip_address, session.device_name) == (user, "", "Unknown device")
    assert await sessions.get_user_active_sessions(user) == [session]


async def test_a_session_is_found_by_either_name_live_or_over_and_asking_moves_nothing(
    tokens: TokenService, sessions: SessionService
) -> None:  # C-16, C-17
    user = someone()
    access = await tokens.create_access_token(user)
    sid, jti = extract_jti_from_token(access), (await tokens.validate_token(access))["jti"]
    by_sid, by_jti = await sessions.get_session(sid, user), await sessions.get_session(jti, int(user))
    assert by_sid is not None
    assert by_sid == by_jti
    assert await sessions.is_session_valid(sid, user)
    assert await sessions.is_session_valid(jti, user)
    assert not await sessions.is_session_valid(sid, someone())
    assert await sessions.get_session("another", user) is None
    assert await sessions.get_session(sid, user) == by_sid
    assert await sessions.delete_session(sid, user)
    for name in (sid, jti):
        over = await sessions.get_session(name, user)
        assert over is not None
        assert over.revoked_at is not None
        assert (over.end_reason, over.id, over.jti) == ("revoked_by_user", by_sid.id, sid)
        assert over.created_at <= over.last_activity_at <= over.revoked_at
        assert not await sessions.is_session_valid(name, user)


async def test_activity_can_be_moved_by_hand(sessions: SessionService) -> None:  # C-05, C-16
    user = someone()
    session = await sessions.create_session(user)
    last = session.last_activity_at
    for _ in range(3):
        assert await sessions.update_session_activity(session.jti, user)
        moved = await sessions.get_session(session.jti, user)
        assert moved is not None
        assert moved.last_activity_at > last
        last = moved.last_activity_at
    await sessions.revoke_session(session.jti, user)
    assert not await sessions.update_session_activity(session.jti, user)
    assert not await sessions.update_session_activity("another", user)
    over = await sessions.get_session(session.jti, user)
    assert over is not None
    assert over.last_activity_at == last


async def test_moving_by_hand_leaves_a_service_account_without_idle_time_out(store: Store) -> None:
    async with running(store, **ISSUES, exempt_users="role:robot", idle_timeout="1s") as engine:
        tokens, user = TokenService(engine), someone()
        access = await tokens.create_access_token({"id": user, "roles": ["robot"]})
        jti = extract_jti_from_token(access)
        assert await tokens.session_service.update_session_activity(jti, user)
        await asyncio.sleep(1.1)
        assert await tokens.session_service.is_session_valid(jti, user)


async def test_a_revoked_session_is_logged_out_once(tokens: TokenService, sessions: SessionService) -> None:  # C-16
    user = someone()
    first, second = await sessions.create_session(user), await sessions.create_session(user)
    assert not await sessions.revoke_session(first.jti, someone()), "nobody else's"
    assert await sessions.revoke_session(first.jti, int(user), "fr")
    assert not await sessions.revoke_session(first.jti, user)
    assert [session.jti for session in await sessions.get_user_active_sessions(user)] == [second.jti]
    over = await sessions.get_session(first.jti, user)
    assert over is not None
    assert over.end_reason == "logged_out"
    assert len(await sessions.get_user_sessions(user, include_inactive=True)) == 2


async def test_a_token_that_was_never_seen_is_over_once_its_name_was_revoked(observing: Engine) -> None:
    user, access = someone(), token(someone_id := someone())
    tokens = TokenService(observing)
    assert not await tokens.session_service.revoke_session(extract_jti_from_token(access), someone_id)
    assert (await refused(tokens.validate_token(access))).code == "access_token_blacklisted"
    # No session is stored under an invalid name.
    for name in ("", "x" * 400, "a\n", "\x00", "\ud800"):
        assert not await tokens.session_service.revoke_session(name, user)
        assert await tokens.session_service.get_session(name, user) is None
    assert await tokens.session_service.get_user_sessions(user, include_inactive=True) == []


@pytest.mark.parametrize(
    "claims", [{"jti": "onrtac:{}"}, {"jti": "h:{} é%"}, {"sid": "s:{}"}, {"sid": "{}", "auth_time": 7}]
)
async def test_a_session_is_found_by_the_name_that_its_provider_gave(observing: Engine, claims: dict[str, Any]) -> None:
    # T19
    user = someone()
    named = {name: value.replace("{}", user) if isinstance(value, str) else value for name, value in claims.items()}
    access = token(user, **named)
    sessions = TokenService(observing).session_service
    # Over before it was ever seen, under the same name as in the token.
    name = extract_jti_from_token(access)
    assert name == (named.get("sid") or named["jti"]) + (":7" if "auth_time" in named else "")
    assert not await sessions.revoke_session(name, user)
    assert (await refused(TokenService(observing).validate_token(access))).code == "access_token_blacklisted"
    assert name in [session.jti for session in await sessions.get_user_sessions(user, include_inactive=True)]
    found = await sessions.get_session(name, user)
    assert found is not None
    assert found.end_reason == "logged_out"


async def test_nothing_is_kept_of_unknown_names_where_tokens_are_not_adopted(sessions: SessionService) -> None:
    user = someone()
    assert not await sessions.revoke_session("never-seen", user)
    assert await sessions.get_user_sessions(user, include_inactive=True) == []


async def test_a_session_is_deleted_by_its_number_or_its_name(tokens: TokenService, sessions: SessionService) -> None:
    # D-05
    user = someone()
    pair = [await sessions.create_session(user) for _ in range(2)]
    access = await tokens.create_access_token(user, pair[1].jti)
    assert not await sessions.delete_session(pair[0].id, someone())
    assert await sessions.delete_session(pair[0].id, user)
    assert not await sessions.delete_session(pair[0].id, user)
    assert await sessions.get_session_count(user) == 1
    assert await sessions.delete_session(pair[1].jti, user, by_admin=True)
    assert not await sessions.delete_session("another", user)
    error = await refused(tokens.validate_token(access))
    assert (error.code, error.reason) == ("session_revoked_or_invalid", "revoked_by_admin")
    assert await sessions.get_user_sessions(user, include_inactive=True) == []


async def test_the_limit_holds_by_itself_and_a_lowered_one_when_it_is_enforced(store: Store) -> None:  # D-05, D-07
    user, robot = someone(), someone()
    async with running(store, **ISSUES, device_limit="5") as engine:
        sessions = SessionService(engine)
        made = [await sessions.create_session(user) for _ in range(6)]
        await sessions.update_session_activity(made[1].jti, user)
        assert await sessions.get_session_count(user) == 5
        assert await sessions.enforce_max_sessions(user) == 0
        for _ in range(5):
            await sessions.create_session({"id": robot, "roles": ["robot"]})
    async with running(store, **ISSUES, device_limit="2", exempt_users="role:robot") as engine:
        sessions = SessionService(engine)
        assert await sessions.get_session_count(user) == 5, "a lowered limit alone ends nothing"
        assert await sessions.enforce_max_sessions(user) == 3
        left = [session.jti for session in await sessions.get_user_sessions(user)]
        assert left == [made[1].jti, made[5].jti], "the least recently active went"
        gone = await sessions.get_session(made[2].jti, user)
        assert gone is not None
        assert gone.end_reason == "evicted"
        await sessions.create_session({"id": robot, "roles": ["robot"]})
        assert await sessions.enforce_max_sessions(robot) == 0
        assert await sessions.get_session_count(robot) == 6
        assert await sessions.enforce_max_sessions(someone()) == 0
    async with running(store, **ISSUES, device_limit="off") as engine:
        assert await SessionService(engine).enforce_max_sessions(user) == 0


async def test_who_is_nobody_has_no_sessions(sessions: SessionService) -> None:
    for nobody in ("", "a\nb", " 7", "\ud800"):
        assert await sessions.get_user_active_sessions(nobody) == []
        assert await sessions.get_session_count(nobody) == 0
        assert await sessions.get_session("x", nobody) is None
        assert not await sessions.is_session_valid("x", nobody)
        assert not await sessions.update_session_activity("x", nobody)
        assert not await sessions.revoke_session("x", nobody)
        assert not await sessions.delete_session("x", nobody)
        assert await sessions.enforce_max_sessions(nobody) == 0


async def test_idle_sessions_are_cleaned_up(store: Store) -> None:  # C-16
    async with running(store, **ISSUES, idle_timeout="1s", key_prefix="cleaned:") as engine:
        sessions, user = SessionService(engine), someone()
        session = await sessions.create_session(user)
        await asyncio.sleep(1.1)
        assert await sessions.cleanup_expired_sessions() == 1
        over = await sessions.get_session(session.jti, user)
        assert over is not None
        assert (over.end_reason, over.is_active) == ("idle", False)


async def test_the_schemas_of_input_and_output(sessions: SessionService) -> None:  # D-06, D-04
    asked = SessionCreate(user_id=int(someone()), roles=["user"])
    session = await sessions.create_session({"id": asked.user_id, "roles": asked.roles})
    shown = SessionResponse.of(session).model_dump(mode="json")
    assert shown == {
        "id": session.id,
        "user_id": asked.user_id,
        "device_name": "Unknown device",
        "device_type": "api",
        "browser": "Unknown",
        "ip_address": "",
        "created_at": f"{session.created_at:%Y-%m-%dT%H:%M:%SZ}",
        "last_activity": f"{session.last_activity_at:%Y-%m-%dT%H:%M:%SZ}",
        "is_active": True,
    }


# Trouble, and the record of it


async def test_a_store_that_does_not_answer_is_no_answer_about_a_session(store: Store) -> None:
    async with running(store, **ISSUES, redis_url="unix:///nowhere/store.sock") as engine:
        tokens = TokenService(engine)
        sessions = tokens.session_service
        calls = [
            tokens.create_access_token("1"),
            tokens.refresh_tokens("x", "fr"),
            sessions.is_session_valid("x", "1"),
            sessions.get_session("x", "1"),
            sessions.update_session_activity("x", "1"),
            sessions.revoke_session("x", "1", "fr"),
            sessions.delete_session(7, "1"),
            sessions.get_user_active_sessions("1"),
            sessions.cleanup_expired_sessions(),
            sessions.enforce_max_sessions("1"),
        ]
        for call in calls:
            with pytest.raises(ServiceUnavailable) as caught:
                await call
            assert (caught.value.code, caught.value.status_code) == ("store_unavailable", 503)
            assert caught.value.headers is not None
            assert (set(caught.value.headers), caught.value.headers["retry-after"] in RETRY_SOON) == (
                {"retry-after"},
                True,
            )
        with pytest.raises(ServiceUnavailable, match="indisponible"):
            await sessions.revoke_session("x", "1", "fr")


async def test_what_is_done_is_recorded(
    tokens: TokenService, sessions: SessionService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gatekeeper.audit")
    user = someone()
    first = await sessions.create_session(user)
    await tokens.refresh_tokens(await tokens.create_refresh_token(user))
    await sessions.revoke_session(first.jti, user)
    (second,) = await sessions.get_user_sessions(user)
    await sessions.delete_session(second.id, user)

    def told() -> list[dict[str, Any]]:
        return [vars(record) for record in caplog.records if record.name == "gatekeeper.audit"]

    # Words about a session follow the act by a moment.
    await until(lambda: len(told()) >= 5)
    lines = told()
    assert [(line["action"], line["user_id"], line["session_id"], line["reason"]) for line in lines] == [
        ("session_opened", user, first.id, "password"),
        ("session_opened", user, second.id, "password"),
        ("refreshed", user, second.id, None),
        ("session_ended", user, first.id, "logged_out"),
        ("session_ended", user, second.id, "revoked_by_user"),
    ]


async def test_the_application_can_look_into_the_store(engine: Engine, sessions: SessionService) -> None:
    user = someone()
    await sessions.create_session(user)
    client = engine.services.client.get()
    assert client is engine.services.client.get()
    assert await client.exists(f"gk:{{{user}}}:sessions") == 1
