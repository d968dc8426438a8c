"""Names the device behind a `User-Agent` and its client hints, for the lists of sessions.

A record keeps the header itself, so an update of Gatekeeper improves old sessions too. The families are those of
ua-parser (uap-core), mapped to the names that people use; docs/devices.md shows the outcome. The agent decides; hints
add only what an agent leaves open: the brand behind `Chrome`, the system behind `Linux`, versions of Windows and macOS.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

from gatekeeper.models import Device

if TYPE_CHECKING:
    from ua_parser import Result

UNKNOWN: Final = "Unknown"
HINTS_CHARACTERS: Final = 200

# Longer than the agent of any browser. Without a limit, clients could fill the cache with long ones.
_AGENT_CHARACTERS: Final = 512
_NAME_CHARACTERS: Final = 64

# Firefox names its distribution and Chrome does not: on one machine both are Linux.
_LINUX: Final = (
    "Arch Linux", "BackTrack", "CentOS", "Debian", "Fedora", "Gentoo", "Kubuntu", "Linux Mint", "Lubuntu", "Mageia",
    "Mandriva", "PCLinuxOS", "Puppy", "Red Hat", "SUSE", "Slackware", "Ubuntu", "openSUSE",
)  # fmt: skip
_OS_NAMES: Final[Mapping[str, str]] = dict.fromkeys(_LINUX, "Linux") | {
    "ATV OS X": "tvOS",
    "Chrome OS": "ChromeOS",
    "Mac OS": "macOS",
    "Mac OS X": "macOS",
    "Other": UNKNOWN,
    "Symbian OS": "Symbian",
    "Symbian^3": "Symbian",
    "Symbian^3 Anna": "Symbian",
    "Symbian^3 Belle": "Symbian",
    "WatchOS": "watchOS",
    "Web0S": "webOS",
}
_BROWSER_NAMES: Final[Mapping[str, str]] = {
    "Android": "Android Browser",
    # The name that ua-parser gives every WebKit view on macOS whose application adds no name.
    "Apple Mail": "Safari",
    "BlackBerry WebKit": "BlackBerry Browser",
    "Chrome Mobile": "Chrome",
    "Chrome Mobile WebView": "Chrome",
    "Chrome Mobile iOS": "Chrome",
    "DuckDuckGo Mobile": "DuckDuckGo",
    "Ecosia Android": "Ecosia",
    "Ecosia iOS": "Ecosia",
    "Edge Mobile": "Edge",
    "Firefox Beta": "Firefox",
    "Firefox Mobile": "Firefox",
    "Firefox iOS": "Firefox",
    # Not mapped to Chrome: in a list of sessions, a program that drives a browser should stand out.
    "HeadlessChrome": "Headless Chrome",
    "IE": "Internet Explorer",
    "IE Large Screen": "Internet Explorer",
    "IE Mobile": "Internet Explorer",
    "Mobile Safari": "Safari",
    "Mobile Safari UI/WKWebView": "Safari",
    "MobileSafari": "Safari",
    "Opera Mini": "Opera",
    "Opera Mobile": "Opera",
    "Opera Tablet": "Opera",
    "Other": UNKNOWN,
    "QQ Browser Mini": "QQ Browser",
    "QQ Browser Mobile": "QQ Browser",
    "Slack Desktop Client": "Slack",
    "Slack_SSB": "Slack",
}
_DESKTOP_OS: Final = frozenset({"Windows", "macOS", "Linux", "ChromeOS", "FreeBSD", "OpenBSD", "NetBSD", "Solaris"})
_MOBILE_OS: Final = frozenset({
    "BlackBerry OS", "Bada", "Firefox OS", "HarmonyOS", "KaiOS", "MeeGo", "Nokia Series 30 Plus", "Nokia Series 40",
    "Sailfish", "Symbian", "Windows Mobile", "Windows Phone", "iOS",
})  # fmt: skip
_OTHER_OS: Final = frozenset({"tvOS", "watchOS", "webOS"})
# The agent of these has the number of a kernel or a build, which is not known as their version.
_UNVERSIONED_OS: Final = frozenset({UNKNOWN, "Linux", "ChromeOS"})

_BROWSER: Final = re.compile(
    r"(?:Mozilla|Opera)/\d|(?:Lynx|w3m|ELinks|Links|Dillo|NetSurf)[/ ]"
    r"|.*(?:\bProfile/MIDP|\bUP\.(?:Browser|Link)|\bObigo|\bNetFront/|\bOpera (?:Mini|Mobi)|\bUC ?(?:WEB|Browser))"
)
_SCRIPT: Final = re.compile(r"\bPowerShell/|WindowsPowerShell/")
_MOBILE_APP: Final = re.compile(r"\bokhttp/|\bCFNetwork/|\bDart/", re.IGNORECASE)
_ELECTRON: Final = re.compile(r"\b(?:Electron|AtomShell)/")
# The name of an application: with spaces, or percent-encoded by CFNetwork. A token without a version is a product too
# (RFC 9110 section 10.1.5).
_PRODUCT: Final = re.compile(r"([\w%][\w %.+!&'-]{0,199}?)/\S")
_DECODED: Final = re.compile(r"[\w .+!&'-]+")
_BARE_PRODUCT: Final = re.compile(r"(?!Mozilla\b)([A-Za-z][\w.+-]{0,63})(?:\s|\Z)")
_OF_THE_ENGINE: Final = frozenset(
    {"Mozilla", "AppleWebKit", "AtomShell", "Chrome", "Electron", "Mobile", "Safari", "Version"}
)
_TELEVISION: Final = re.compile(
    r"TV\b|HbbTV|Web0S|BRAVIA|\bAFT[A-Z]\w*\b|\bCrKey\b|\bRoku|PlayStation|\bXbox\b|Nintendo|\bQuest\b"
)
# Internet Explorer says `Tablet PC` on any Windows 7 with pen services.
_TABLET: Final = re.compile(r"\biPad|\bTablet\b(?! PC)|\bKindle\b|\bSilk/|\bPlayBook\b")
_MOBILE: Final = re.compile(r"\bMobile\b|\biPhone\b|\biPod\b|\bPhone\b|Opera M(?:ini|obi)|\bMIDP")
# Versions that browsers send whatever the real one is: macOS 10.15 (Chrome, Firefox and Safari since 2020), `Android
# 10; K` (Chromium's reduced agent, `K` in place of every model), iOS 18.6 and 18.7 (Safari 26 and later). Windows 10 is
# frozen too, but the product whose dialect shows versions shows that one (D-02).
_FROZEN: Final = re.compile(
    r"Mac OS X 10[._]1[56](?:[._]7)?[;)]|Android 10; K[;)]"
    r"|OS 18_[67](?:_\d)? like Mac OS X.*\bVersion/(?:2[6-9]|[3-9]\d)"
)

# The hints that are kept. Brands: only of browsers whose agent equals Chrome's, because the agent names all others. A
# list of known brands also excludes the made-up ones that Chromium adds.
_BRANDS: Final[Mapping[str, str]] = {
    "AVG Secure Browser": "AVG Secure Browser",
    "Avast Secure Browser": "Avast Secure Browser",
    "Brave": "Brave",
    "DuckDuckGo": "DuckDuckGo",
    "HeadlessChrome": "Headless Chrome",
    "Norton Private Browser": "Norton Private Browser",
    "Opera GX": "Opera GX",
    "Vivaldi": "Vivaldi",
}
_PLATFORMS: Final[Mapping[str, str]] = {
    "Android": "Android",
    "Chrome OS": "ChromeOS",
    "Chromium OS": "ChromeOS",
    "Fuchsia": "Fuchsia",
    "Linux": "Linux",
    "Windows": "Windows",
    "iOS": "iOS",
    "macOS": "macOS",
}
# Of several form factors the first of these decides: `"Tablet", "EInk"` is a tablet.
_FORM_FACTORS: Final[Mapping[str, str]] = {
    "Tablet": "Tablet",
    "Mobile": "Mobile",
    "Desktop": "Desktop",
    "Automotive": "Other",
    "EInk": "Other",
    "Watch": "Other",
    "XR": "Other",
}
_VERSION: Final = re.compile(r"\d{1,6}(?:\.\d{1,6}){0,3}", re.ASCII)
# RFC 8941: a string (section 3.3.3), and parameters after it (section 3.1.2), which are not used.
_STRING: Final = r'"((?:[ !#-\[\]-~]|\\["\\])*)"'
_MEMBER: Final = re.compile(rf'{_STRING}(?:;[ ]*[a-z*][a-z0-9_.*-]*(?:={_STRING}|=[^",; ]+)?)*')
_COMMA: Final = re.compile(r"[ \t]*,[ \t]*")
_HINTS_READ: Final = (b"", b"-platform", b"-platform-version", b"-form-factors", b"-mobile")
_HINT_BYTES: Final = 512
_KEPT: Final = re.compile(r"(brand|platform|version|form)=([A-Za-z0-9. ]+)(?:; |\Z)")


class _Hints(NamedTuple):
    """The kept hints, in the names used here; empty where unknown."""

    brand: str
    platform: str
    version: str
    form: str


def device_of(user_agent: str, hints: str = "") -> Device:
    """Names the device behind a `User-Agent` header and the hints that `hints_of` kept; `Unknown` where they do not
    say.

    Never raises. Every field is printable and has at most 160 characters; markup is not interpreted.
    """
    return _device(_printable(user_agent, _AGENT_CHARACTERS), hints[:HINTS_CHARACTERS])


def hints_of(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """Extracts from the client hints (https://wicg.github.io/ua-client-hints/) those that `device_of` reads.

    Printable ASCII of at most `HINTS_CHARACTERS`, such as `platform=Windows; version=15.0.0`; empty where there are
    none. A malformed field counts as not sent (RFC 8941 section 4.2). The model is not kept: no list shows it, and it
    would make users recognizable.
    """
    fields: dict[bytes, bytes] = {}
    for key, value in headers:
        if key[:9].lower() == b"sec-ch-ua":
            # Field lines of one name are one field (RFC 8941 section 4.2): a repeated single value is malformed.
            name = key[9:].lower()
            fields[name] = fields[name] + b", " + value if name in fields else value
    if not fields:
        return ""
    return _kept(*(_field(fields.get(name, b"")) for name in _HINTS_READ))


async def prepare() -> None:
    """Loads ua-parser and its expressions (about 150 ms and 15 MiB) off the event loop, once. To be awaited before
    `device_of` is used on one: most processes check sessions and list none for a long time."""
    if not _is_loaded.is_set():
        await asyncio.to_thread(_load)


def _load() -> None:
    with _loading:
        if not _is_loaded.is_set():
            _parse("Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0")
            _is_loaded.set()


def _parse(user_agent: str) -> Result:
    from ua_parser import parse

    return parse(user_agent)


_loading: Final = threading.Lock()
_is_loaded: Final = threading.Event()


def _printable(text: str, length: int) -> str:
    text = text[: 4 * length]
    if not text.isprintable():
        text = "".join(character for character in text if character.isprintable())
    return text[:length].strip()


@lru_cache(maxsize=4096)
def _device(user_agent: str, kept: str) -> Device:
    parsed, hints = _parse(user_agent), _read(kept)
    is_browser = _BROWSER.match(user_agent) is not None and _SCRIPT.search(user_agent) is None
    os = _os(parsed, hints)
    os_version = _os_version(user_agent, parsed, os, hints)
    form = _form(user_agent, parsed, os, hints, is_browser=is_browser)
    browser = _browser(user_agent, parsed, hints, is_browser=is_browser)
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
    known = [part for part in dict.fromkeys((browser, os)) if part != UNKNOWN]
    return " on ".join(known) or "Unknown device"


def _os(parsed: Result, hints: _Hints) -> str:
    family = parsed.os.family if parsed.os else UNKNOWN
    # Some expressions take the family from the agent itself, in any length.
    os = _printable(_OS_NAMES.get(family, family), _NAME_CHARACTERS) or UNKNOWN
    return hints.platform if hints.platform and os in {UNKNOWN, "Linux"} else os


def _os_version(user_agent: str, parsed: Result, os: str, hints: _Hints) -> str:
    if os in _UNVERSIONED_OS:
        return ""
    hinted = _hinted_version(hints) if hints.platform == os else ""
    if hinted or parsed.os is None or not parsed.os.major or _FROZEN.search(user_agent):
        return hinted
    # The version of a distribution named Linux here, or of Android behind a hint, is not that of the named system.
    if _OS_NAMES.get(parsed.os.family, parsed.os.family) != os:
        return ""
    return _major_minor(parsed.os.major, parsed.os.minor or "")


def _hinted_version(hints: _Hints) -> str:
    major, _, rest = hints.version.partition(".")
    if not major:
        return ""
    if hints.platform == "Windows":
        # learn.microsoft.com/microsoft-edge/web-platform/how-to-detect-win11: 1 to 10 are Windows 10, 13 and later are
        # Windows 11; 0.1 to 0.3 are Windows 7, 8 and 8.1, which the agent names.
        return "11" if int(major) >= 13 else "10" if int(major) else ""
    return _major_minor(major, rest.partition(".")[0]) if hints.platform in {"macOS", "Android"} else ""


def _major_minor(major: str, minor: str) -> str:
    return _printable(major if minor in {"", "0"} else f"{major}.{minor}", 16)


def _browser(user_agent: str, parsed: Result, hints: _Hints, *, is_browser: bool) -> str:
    # An application is named by its first product; ua-parser finds its HTTP library instead. For crawlers ua-parser is
    # right: they are often named by their second product.
    family = "" if is_browser or _is_bot(parsed) else _product(user_agent)
    if _ELECTRON.search(user_agent):
        family = _electron_product(user_agent)
    if not family:
        bare = None if is_browser else _BARE_PRODUCT.match(user_agent)
        family = parsed.user_agent.family if parsed.user_agent else bare[1] if bare else UNKNOWN
    browser = _printable(_BROWSER_NAMES.get(family, family).partition(" (")[0], _NAME_CHARACTERS) or UNKNOWN
    return hints.brand if hints.brand and browser in {UNKNOWN, "Chrome", "Chromium"} else browser


def _is_bot(parsed: Result) -> bool:
    return parsed.device is not None and parsed.device.family == "Spider"


def _product(user_agent: str) -> str:
    match = _PRODUCT.match(user_agent)
    if match is None or match[1] == "Mozilla":
        return ""
    product = match[1].removesuffix(" Mozilla")
    decoded = unquote(product)
    # A name that would become markup by decoding stays encoded.
    return _printable(decoded if _DECODED.fullmatch(decoded) else product, _NAME_CHARACTERS)


def _electron_product(user_agent: str) -> str:
    # "Mozilla/5.0 (…) AppleWebKit/… (KHTML, like Gecko) Slack/4.35 Chrome/… Electron/… Safari/…"
    for token in user_agent.split():
        product, slash, _ = token.partition("/")
        if slash and product not in _OF_THE_ENGINE and _PRODUCT.fullmatch(product + "/1"):
            return product
    return "Electron"


def _form(user_agent: str, parsed: Result, os: str, hints: _Hints, *, is_browser: bool) -> str:
    model = parsed.device.family if parsed.device else ""
    if _is_bot(parsed):
        return "Bot"
    if hints.form:
        return hints.form
    if os in _OTHER_OS or _TELEVISION.search(user_agent):
        return "Other"
    if model == "iPad" or _TABLET.search(user_agent):
        return "Tablet"
    if model in {"iPhone", "iPod"} or os in _MOBILE_OS or _MOBILE.search(user_agent):
        return "Mobile"
    if os == "Android":
        # Browsers send `Mobile` on a phone and not on a tablet; applications send it on neither.
        return "Tablet" if is_browser else "Mobile"
    if os == UNKNOWN and _MOBILE_APP.search(user_agent):
        return "Mobile"
    return "Desktop" if os in _DESKTOP_OS else "Other"


def _type(user_agent: str, *, is_browser: bool) -> str:
    if _MOBILE_APP.search(user_agent):
        return "mobile_app"
    if _ELECTRON.search(user_agent):
        return "desktop_app"
    return "web" if is_browser else "api"


def _field(value: bytes) -> str:
    # Chromium sends three brands in 70 bytes.
    return value.decode("latin-1") if len(value) <= _HINT_BYTES else ""


@lru_cache(maxsize=1024)
def _kept(brands: str, platform: str, version: str, form_factors: str, mobile: str) -> str:
    forms = _strings(form_factors)
    kept = {
        "brand": next((_BRANDS[brand] for brand in _strings(brands) if brand in _BRANDS), ""),
        "platform": _PLATFORMS.get(_string(platform), ""),
        "version": _version(_string(version)),
        "form": next((form for factor, form in _FORM_FACTORS.items() if factor in forms), ""),
    }
    # `?0` is sent by tablets and desktop computers alike.
    if not kept["form"] and mobile.partition(";")[0].strip(" ") == "?1":
        kept["form"] = "Mobile"
    return "; ".join(f"{name}={value}" for name, value in kept.items() if value)


def _read(kept: str) -> _Hints:
    said = dict(_KEPT.findall(kept))
    return _Hints(
        brand=_known(said.get("brand", ""), _BRANDS),
        platform=_known(said.get("platform", ""), _PLATFORMS),
        version=_version(said.get("version", "")),
        form=_known(said.get("form", ""), _FORM_FACTORS),
    )


def _known(name: str, names: Mapping[str, str]) -> str:
    return name if name in names.values() else ""


def _version(text: str) -> str:
    return text if _VERSION.fullmatch(text) else ""


def _strings(field: str) -> list[str]:
    """Parses a structured field that is a list of strings; empty for a malformed one."""
    field, position, members = field.strip(" "), 0, []
    while match := _MEMBER.match(field, position):
        members.append(match[1])
        if match.end() == len(field):
            return members
        comma = _COMMA.match(field, match.end())
        if comma is None:
            break
        position = comma.end()
    return []


def _string(field: str) -> str:
    members = _strings(field)
    return members[0] if len(members) == 1 else ""
