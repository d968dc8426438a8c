"""Warnings about tokens that cannot be used: one a kind for each process, with names and never a value (rule 5.15)."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

from gatekeeper.tokens.diagnosis import explained, shown_place

_log = logging.getLogger(__name__)
# Names come from outside, and each new set of them is a kind.
_MOST_KINDS: Final = 64


class UnusableToken(NamedTuple):
    """A token of a response that cannot be used: its place, its text, and the rule that it broke."""

    place: str
    text: str
    why: str


class TokenWarnings:
    """Logs each kind of warning once."""

    def __init__(self) -> None:
        self._logged: set[Hashable] = set()

    def __repr__(self) -> str:
        return f"<TokenWarnings {len(self._logged)} logged>"

    def refused(self, why: str, token: str) -> None:
        """Warn of a request that was refused because its token broke a rule."""
        if self._is_new(why):
            _log.warning("client token refused: %s (logged once)", explained(why, token))

    def unusable(self, what: str, tokens: Sequence[UnusableToken], names: Sequence[str]) -> None:
        """Warn of a response to a login or a refresh (`what`) of which no token can be used. `names` are those of its
        members."""
        for place, text, why in tokens:
            if self._is_new((what, why)):
                fault = f"{shown_place(place)}: {explained(why, text)}; members of the response: {_shown(names)}"
                _log.warning("backend %s opened no session: %s (logged once)", what, fault)

    def nothing_found(self, what: str, names: Sequence[str]) -> None:
        """Warn of a response that may hold a token and does not say where. `names` are those of its members."""
        shown = _shown(names)
        if self._is_new((what, shown)):
            _log.warning(
                "backend %s opened no session: no token found among the members %s; "
                "see GATEKEEPER_LOGIN_TOKEN_POINTERS (logged once)",
                what,
                shown,
            )

    def _is_new(self, kind: Hashable) -> bool:
        if kind in self._logged or len(self._logged) >= _MOST_KINDS:
            return False
        self._logged.add(kind)
        return True


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(shown_place, names)) or "none"
