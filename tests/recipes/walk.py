"""One walk through the life of sessions in front of a backend: two devices sign in, are listed, one is revoked and
refused, its refresh is refused, the other signs out, and five devices are three.

What a backend and its clients do is in a `Device`; the settings of Gatekeeper are those of the backend's page.
"""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Self

import httpx

from tests.recipes import pages
from tests.stored_index import index
from tests.system.sidecar import Sidecar, Store, sidecar
from tests.tokens import forge
from tests.waiting import HANG_SECONDS

SECRET: Final = forge.SECRET
LISTS: Final = "/api/users/me/sessions"
AT_GATEKEEPER: Final = "at Gatekeeper"
_OURS: Final = frozenset({"session_revoked_or_invalid", "access_token_blacklisted", "refresh_token_invalid"})


class Said(NamedTuple):
    """What a client was answered, as far as the client lets on."""

    status: int
    text: str

    @property
    def good(self) -> bool:
        return 200 <= self.status < 400

    @property
    def refused(self) -> bool:
        """Whether Gatekeeper refused it, because of a session that is over."""
        return self.status == 401 and any(code in self.text for code in _OURS)


def said(response: httpx.Response) -> Said:
    return Said(response.status_code, response.text)


class Device:
    """A client of a backend, with cookies of its own. A backend says what is particular about it."""

    user: ClassVar[str] = "alice"
    """What the backend answers to `ask`, among other things."""
    refreshes: ClassVar[bool] = True
    refusal: ClassVar[str] = ""
    """What a client of the backend looks for in a refusal."""
    door: ClassVar[str] = "yes"
    at_logout: ClassVar[str] = "yes"

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=HANG_SECONDS, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def sign_in(self) -> Said:
        raise NotImplementedError

    def ask(self) -> Said:
        """A request that the backend answers with the user's name."""
        raise NotImplementedError

    def refresh(self) -> Said:
        raise NotImplementedError

    def logout(self) -> Said:
        """At Gatekeeper, where the backend has none."""
        return said(self.at_gatekeeper("DELETE", "/sessions/logout"))

    def restored(self) -> None:
        """Called where the credentials of `http` are from before the client signed out."""

    def at_gatekeeper(self, method: str, path: str) -> httpx.Response:
        """A request to Gatekeeper itself, with whatever credentials the client has."""
        return self.http.request(method, path, headers={"Origin": self.url})

    def sessions(self) -> list[dict[str, Any]]:
        answer = self.at_gatekeeper("GET", LISTS)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        found: list[dict[str, Any]] = answer.json()
        return found


class BearerDevice(Device):
    """A client that keeps tokens and sends one of them with each request."""

    scheme: ClassVar[str] = "Bearer"

    def keep(self, response: httpx.Response, access: str, refresh: str = "") -> Said:
        """Remember the tokens in the members of these names."""
        if response.is_success:
            body = response.json()
            self.bear(body[access])
            self.refresh_token = body.get(refresh) or getattr(self, "refresh_token", "")
        return said(response)

    def bear(self, token: str) -> None:
        self.http.headers["Authorization"] = f"{self.scheme} {token}".strip()


@dataclass(frozen=True)
class Recipe:
    """A backend and how it is tried."""

    name: str
    page: str
    block: str
    serve: Callable[[Path], AbstractContextManager[str]]
    device: type[Device]
    apart: bool = False
    """Whether two sign-ins in one second get the same token, and so the same session."""
    live_settings: Callable[[str, Path], dict[str, str]] = lambda _url, _directory: {}
    """Settings whose values only exist when the test runs, such as the address of a key set, by the backend's URL."""
    secret: str = SECRET
    """What stands in the file `jwt-secret`."""


@dataclass
class Site:
    """A backend with a Gatekeeper in front of it that has the settings of the backend's page."""

    recipe: Recipe
    gate: Sidecar
    store: Store
    prefix: str

    def device(self) -> Device:
        return self.recipe.device(self.gate.url)

    @property
    def live(self) -> int:
        """How many sessions live, without a request that might open one."""
        keys: Any = self.store.client.keys(f"{self.prefix}*:sessions")
        tags = [key.removesuffix(":sessions") for key in keys]
        return sum(score > 0 for tag in tags for score in index(self.store.client, tag).values())

    def moment(self) -> None:
        """Until a second begins, where tokens of one second are the same."""
        if self.recipe.apart:
            time.sleep(1.01 - time.time() % 1)

    def signed_in(self) -> Device:
        self.moment()
        device = self.device()
        answer = device.sign_in()
        assert answer.good, answer
        return device


@contextmanager
def site(recipe: Recipe, backend: str, store: Store, **changed: str) -> Iterator[Site]:
    """Settings that are `changed` are those of the page no more; an empty one is left out."""
    settings = pages.settings_of(recipe.page, recipe.block) | changed
    settings = {name: value for name, value in settings.items() if value}
    with tempfile.TemporaryDirectory(prefix="gk-recipe-") as name:
        directory = Path(name)
        settings |= {"upstream_url": backend} | recipe.live_settings(backend, directory)
        if "jwt_secret_file" in settings:
            secret = directory / "jwt-secret"
            secret.touch(mode=0o600)
            secret.write_text(recipe.secret + "\n")
            settings["jwt_secret_file"] = str(secret)
        prefix = f"{uuid.uuid4().hex[:8]}:"
        with sidecar(redis_url=store.url, key_prefix=prefix, upstream=settings.pop("upstream_url"), **settings) as gate:
            yield Site(recipe, gate, store, prefix)


def assert_admitted(device: Device) -> None:
    answer = device.ask()
    assert answer.good, answer
    assert device.user in answer.text, answer


def assert_over(site: Site, device: Device) -> None:
    """Neither its token nor its refresh token is worth anything, and asking changes nothing."""
    before = site.live
    answer = device.ask()
    assert answer.refused, answer
    assert device.refusal in answer.text, answer
    if device.refreshes:
        answer = device.refresh()
        assert answer.refused, answer
    # A client may have forgotten its token by now.
    answer = device.ask()
    assert answer.status == 401, answer
    assert site.live == before


class Walk:
    """The steps in their order; each is a column of the table, and begins where the one before has ended."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.faults: dict[str, str] = {}
        self._steps = (self.door, self.list, self.revoke, self.refresh, self.logout, self.limit)

    def row(self) -> pages.Row:
        """Walk. A step that fails is `no`, with the reason among the faults."""
        row = {}
        with ExitStack() as self._open:
            for column, step in zip(pages.COLUMNS, self._steps, strict=True):
                try:
                    row[column] = step()
                except (AssertionError, AttributeError, httpx.HTTPError) as fault:
                    row[column], self.faults[column] = "no", f"{type(fault).__name__}: {fault}"
        return row

    def _sign_in(self) -> Device:
        return self._open.enter_context(self.site.signed_in())

    def door(self) -> str:
        self.laptop = self._sign_in()
        assert self.site.live == 1, "no session before the first request"
        assert_admitted(self.laptop)
        assert self.site.live == 1, self.site.live
        return self.laptop.door

    def list(self) -> str:
        self.phone = self._sign_in()
        for device in (self.laptop, self.phone):
            rows = device.sessions()
            assert sorted(row["is_current"] for row in rows) == [False, True], rows
        return "yes"

    def revoke(self) -> str:
        (lost,) = [row["id"] for row in self.phone.sessions() if not row["is_current"]]
        answer = self.phone.at_gatekeeper("DELETE", f"{LISTS}/{lost}")
        assert answer.status_code == 200, answer.text
        assert_over(self.site, self.laptop)
        assert_admitted(self.phone)
        # Who was revoked may sign in again.
        self.laptop = self._sign_in()
        assert_admitted(self.laptop)
        assert self.site.live == 2, self.site.live
        return "yes"

    def refresh(self) -> str:
        if not self.phone.refreshes:
            return "–"
        for _ in range(2):
            self.site.moment()
            answer = self.phone.refresh()
            assert answer.good, answer
            assert_admitted(self.phone)
            assert self.site.live == 2, "a refresh is a new device"
        return "yes"

    def logout(self) -> str:
        # The client forgets what it had; a thief would not.
        kept = Credentials(self.phone)
        answer = self.phone.logout()
        assert answer.good, answer
        assert self.site.live == 1, self.site.live
        kept.restore()
        assert_over(self.site, self.phone)
        return self.phone.at_logout

    def limit(self) -> str:
        devices = [self.laptop, *(self._sign_in() for _ in range(4))]
        assert self.site.live == 3, self.site.live
        for device in devices[:2]:
            assert_over(self.site, device)
        for device in devices[2:]:
            assert_admitted(device)
        return "yes"


class Credentials:
    """What a client holds, kept from before it signed out."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._headers = dict(device.http.headers)
        self._cookies = [(each.name, each.value, each.path) for each in device.http.cookies.jar]

    def restore(self) -> None:
        self._device.http.headers.update(self._headers)
        for name, value, path in self._cookies:
            self._device.http.cookies.set(name, value or "", domain="127.0.0.1", path=path)
        self._device.restored()


def walk(recipe: Recipe, backend: str, store: Store) -> tuple[str, dict[str, str]]:
    """Returns the recipe's line of the table, and what failed."""
    with site(recipe, backend, store) as running:
        steps = Walk(running)
        row = steps.row()
        return pages.line_of(recipe.page, recipe.name, row), steps.faults


def assert_as_the_page_says(recipe: Recipe, backend: str, store: Store) -> None:
    line, faults = walk(recipe, backend, store)
    told = pages.rows(pages.INDEX.read_text(encoding="utf-8")).get(recipe.name)
    assert line == told, json.dumps(faults, indent=1)


def assert_found_without_settings(recipe: Recipe, backend: str, store: Store) -> None:
    """Its row is the same where nothing says in which places its tokens are."""
    unnamed = dict.fromkeys(("login_token_pointers", "login_refresh_pointers", "refresh_token_sources"), "")
    with site(recipe, backend, store, **unnamed) as running:
        steps = Walk(running)
        line = pages.line_of(recipe.page, recipe.name, steps.row())
    assert line == pages.rows(pages.INDEX.read_text(encoding="utf-8"))[recipe.name], json.dumps(steps.faults, indent=1)
