"""The texts of the scripts that are sent to the store."""

from __future__ import annotations

from hashlib import sha1

from gatekeeper.sessions import audit, indexes, lists, login_attempts, recent_revocations, sign_ins, store
from gatekeeper.sessions.scripts import SCRIPTS, load
from gatekeeper.store.command import Script


def test_every_script_of_sessions_begins_with_the_law() -> None:
    """Every Lua file is part of a script: one that is never loaded would state a law that does not hold."""
    law = "".join((SCRIPTS / f"{name}.lua").read_text() for name in ("audit", "common"))
    modules = (store, lists, sign_ins, recent_revocations)
    of_sessions = {loaded for module in modules for loaded in vars(module).values() if isinstance(loaded, Script)}
    assert len(of_sessions) == 19
    # A check has one thing in front of it: what is plain already.
    touch = (SCRIPTS / "touch.lua").read_text()
    assert all(loaded.source.removeprefix(touch).startswith(law) for loaded in of_sessions)
    sources = [loaded.source for loaded in (*of_sessions, login_attempts.ATTEMPTS, audit.TRIM, indexes.LEARN)]
    for path in SCRIPTS.glob("*.lua"):
        assert any(path.read_text() in source for source in sources), path.name


def test_a_script_is_known_by_the_hash_of_its_text() -> None:
    loaded = load("common", "list")
    assert loaded.sha == sha1(loaded.source.encode(), usedforsecurity=False).hexdigest()
