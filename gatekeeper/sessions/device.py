"""What a `User-Agent` tells of a device, in the words of the session lists.

A record keeps the header, not what was read from it: a better reading of an old header is had by an update. The
families are those of ua-parser (uap-core), folded into the names that people use.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from ua_parser import Result, parse

from gatekeeper.models import Device

UNKNOWN: Final = "Unknown"

_OS_NAMES: Final = {
    "Mac OS X": "macOS",
    "Mac OS": "macOS",
    "iPadOS": "iPadOS",
    "Chrome OS": "ChromeOS",
    "Ubuntu": "Linux",
    "Debian": "Linux",
    "Fedora": "Linux",
    "Arch Linux": "Linux",
    "Red Hat": "Linux",
    "SUSE": "Linux",
    "Other": UNKNOWN,
}
_BROWSER_NAMES: Final = {
    "Mobile Safari": "Safari",
    "Mobile Safari UI/WKWebView": "Safari",
    "Chrome Mobile": "Chrome",
    "Chrome Mobile iOS": "Chrome",
    "Chrome Mobile WebView": "Chrome",
    "HeadlessChrome": "Chrome",
    "Firefox Mobile": "Firefox",
    "Firefox iOS": "Firefox",
    "Edge Mobile": "Edge",
    "Opera Mobile": "Opera",
    "Opera Mini": "Opera",
    "Samsung Internet": "Samsung Internet",
    "Other": UNKNOWN,
}
_DESKTOP_OS: Final = frozenset({"Windows", "macOS", "Linux", "ChromeOS", "FreeBSD", "OpenBSD", "NetBSD", "Solaris"})
_MOBILE_APP: Final = re.compile(r"\bokhttp/|\bCFNetwork/|\bDart/", re.IGNORECASE)
_ELECTRON: Final = re.compile(r"\bElectron/")
_PRODUCT: Final = re.compile(r"([A-Za-z][A-Za-z0-9 ._-]{0,39}?)/\S")
_BROWSER_SHAPE: Final = re.compile(r"(?:Mozilla|Opera)/\d")
_TABLET: Final = re.compile(r"\biPad\b|\bTablet\b|\bKindle\b|\bSilk/|\bPlayBook\b")
_MOBILE: Final = re.compile(r"\bMobile\b|\biPhone\b|\biPod\b|\bPhone\b")


@lru_cache(maxsize=4096)
def device_of(user_agent: str) -> Device:
    """The device behind a `User-Agent` header; `Unknown` where it does not tell. Never raises."""
    # What reads it is written in Rust, where a string holds no surrogates.
    user_agent = user_agent.encode(errors="replace").decode()
    parsed = parse(user_agent)
    is_browser = _BROWSER_SHAPE.match(user_agent) is not None
    os, os_version = _os(parsed), _os_version(parsed)
    form = _form(user_agent, parsed, os)
    browser = _browser(user_agent, parsed, is_browser=is_browser)
    return Device(
        browser=browser,
        os=os,
        os_version=os_version,
        form=form,
        type=_type(user_agent, is_browser=is_browser and form != "Bot"),
        name=_name(browser, os),
        name_with_version=_name(browser, f"{os} {os_version}".strip()),
    )


def _name(browser: str, os: str) -> str:
    known = [part for part in (browser, os) if part != UNKNOWN]
    return " on ".join(known) or "Unknown device"


def _os(parsed: Result) -> str:
    if parsed.os is None:
        return UNKNOWN
    return _OS_NAMES.get(parsed.os.family, parsed.os.family)


def _os_version(parsed: Result) -> str:
    if parsed.os is None or not parsed.os.major:
        return ""
    return ".".join(part for part in (parsed.os.major, parsed.os.minor) if part)


def _browser(user_agent: str, parsed: Result, *, is_browser: bool) -> str:
    # An application names itself in its first product token; what ua-parser makes of the rest is its HTTP library.
    if not is_browser or _ELECTRON.search(user_agent):
        product = _product(user_agent)
        if product:
            return product
    if parsed.user_agent is None:
        return UNKNOWN
    return _BROWSER_NAMES.get(parsed.user_agent.family, parsed.user_agent.family)


def _product(user_agent: str) -> str:
    if _BROWSER_SHAPE.match(user_agent):
        # Electron: "Mozilla/5.0 (…) AppleWebKit/… (KHTML, like Gecko) Slack/4.35 Chrome/… Electron/…"
        _, _, user_agent = user_agent.partition("Gecko) ")
        if user_agent.startswith(("Chrome/", "Electron/")):
            return "Electron"
    match = _PRODUCT.match(user_agent)
    return match[1] if match else ""


def _form(user_agent: str, parsed: Result, os: str) -> str:
    if parsed.device is not None and parsed.device.family == "Spider":
        return "Bot"
    if _TABLET.search(user_agent) or (os == "Android" and not _MOBILE.search(user_agent)):
        return "Tablet"
    if os in {"Android", "iOS", "Windows Phone"} or _MOBILE.search(user_agent):
        return "Mobile"
    return "Desktop" if os in _DESKTOP_OS else "Other"


def _type(user_agent: str, *, is_browser: bool) -> str:
    if _MOBILE_APP.search(user_agent):
        return "mobile_app"
    if _ELECTRON.search(user_agent):
        return "desktop_app"
    return "web" if is_browser else "api"
