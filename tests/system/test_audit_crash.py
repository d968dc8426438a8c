"""A process that dies between an act and its record has not kept the record to itself."""

from __future__ import annotations

from typing import Any

from tests.system.sidecar import Backend, Store, World, eventually, external_store, sidecar, someone, token


def test_what_a_killed_process_had_done_is_on_record_by_another(backend: Backend) -> None:  # A-24, C-32
    user = someone()
    mine = token(user, jti="the-jti")
    with external_store() as store:
        # Where the stream should be is something else: acts are done and answered, and cannot be put on record.
        store.client.set("gk:audit", "in the way")
        with sidecar(backend.url, redis_url=store.url) as doomed:
            world = World(doomed.url, lambda: backend.reached, store)
            assert world.fetch("/", mine).status == 200
            (session,) = world.session_ids(mine)
            assert world.fetch(f"/sessions/{session}", mine, method="DELETE").status == 200
            assert world.fetch("/", mine).status == 401
            doomed.kill()
        store.client.delete("gk:audit")
        notes: Any = store.client.zrange("gk:outboxes", 0, -1)
        assert len(notes) == 2
        with sidecar(backend.url, redis_url=store.url):
            eventually(lambda: _told(store) == ["session_opened", "session_ended"], seconds=60)
            assert store.client.get("access_token_blacklist:the-jti") == "revoked_by_user"
            eventually(lambda: store.client.exists("gk:outboxes", f"gk:{{{user}}}:outbox") == 0)


def _told(store: Store) -> list[str]:
    entries: Any = store.client.xrange("gk:audit")
    return [fields["event"] for _, fields in entries]
