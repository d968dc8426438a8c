"""Names of devices: current agents, ua-parser's published fixtures, hints, and hostile input.

Run as a module, `python -m tests.sessions.test_device`, it writes the table of docs/devices.md anew.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import re
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.models import Device
from gatekeeper.sessions import device
from gatekeeper.sessions.device import HINTS_CHARACTERS, device_of, hints_of, prepare

FIXTURES = Path(__file__).parents[1] / "vectors" / "uap-core"
PAGE = Path(__file__).parents[2] / "docs" / "devices.md"
START, END = "<!-- table: python -m tests.sessions.test_device -->\n", "<!-- end of table -->\n"

WINDOWS = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko)"
ANDROID = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko)"
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
IPAD = "Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
CHROME = "Chrome/138.0.0.0 Safari/537.36"
CHROME_ON_WINDOWS = f"{WINDOWS} {CHROME}"
# Agent, kept hints, then what is expected: name, the version that D adds to it, form, type.
AGENTS: list[tuple[str, str, str, str, str, str]] = [
    (CHROME_ON_WINDOWS, "", "Chrome on Windows", "10", "Desktop", "web"),
    (CHROME_ON_WINDOWS, "platform=Windows; version=15.0.0", "Chrome on Windows", "11", "Desktop", "web"),
    (CHROME_ON_WINDOWS, "brand=Brave", "Brave on Windows", "10", "Desktop", "web"),
    (f"{WINDOWS} {CHROME} Edg/138.0.0.0", "", "Edge on Windows", "10", "Desktop", "web"),
    (f"{WINDOWS} {CHROME} OPR/123.0.0.0", "", "Opera on Windows", "10", "Desktop", "web"),
    ("Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0",
     "", "Firefox on Windows", "10", "Desktop", "web"),
    ("Mozilla/5.0 (Windows NT 6.1; WOW64; Trident/7.0; Tablet PC 2.0; rv:11.0) like Gecko",
     "", "Internet Explorer on Windows", "7", "Desktop", "web"),
    (f"{MAC} {CHROME}", "", "Chrome on macOS", "", "Desktop", "web"),
    (f"{MAC} {CHROME}", "platform=macOS; version=15.5.0", "Chrome on macOS", "15.5", "Desktop", "web"),
    (("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
     "Safari/605.1.15"),
     "", "Safari on macOS", "", "Desktop", "web"),
    ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10.14; rv:115.0) Gecko/20100101 Firefox/115.0",
     "", "Firefox on macOS", "10.14", "Desktop", "web"),
    ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
     "", "Firefox on Linux", "", "Desktop", "web"),
    ("Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/115.0",
     "", "Firefox on Linux", "", "Desktop", "web"),
    (f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) {CHROME}",
     "", "Chrome on ChromeOS", "", "Desktop", "web"),
    ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/138.0.0.0 Safari/537.36",
     "", "Headless Chrome on Linux", "", "Desktop", "web"),
    (f"{ANDROID} Chrome/138.0.0.0 Mobile Safari/537.36", "", "Chrome on Android", "", "Mobile", "web"),
    (f"{ANDROID} Chrome/138.0.0.0 Mobile Safari/537.36",
     "platform=Android; version=15.0.0; form=Mobile", "Chrome on Android", "15", "Mobile", "web"),
    (f"{ANDROID} {CHROME}", "", "Chrome on Android", "", "Tablet", "web"),
    (f"{ANDROID} SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36",
     "", "Samsung Internet on Android", "", "Mobile", "web"),
    (("Mozilla/5.0 (Linux; Android 14; Pixel 8; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 "
     "Chrome/138.0.0.0 Mobile Safari/537.36"),
     "", "Chrome on Android", "14", "Mobile", "web"),
    ("Mozilla/5.0 (Android 14; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0",
     "", "Firefox on Android", "14", "Mobile", "web"),
    (("Mozilla/5.0 (Linux; Android 9; AFTMM) AppleWebKit/537.36 (KHTML, like Gecko) Silk/112.5.1 like Chrome/112.0 "
     "Safari/537.36"),
     "", "Amazon Silk on Android", "9", "Other", "web"),
    (f"{IPHONE} Version/17.5 Mobile/15E148 Safari/604.1", "", "Safari on iOS", "17.5", "Mobile", "web"),
    (("Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 "
     "Mobile/15E148 Safari/604.1"),
     "", "Safari on iOS", "", "Mobile", "web"),
    (f"{IPHONE} CriOS/138.0.0.0 Mobile/15E148 Safari/604.1", "", "Chrome on iOS", "17.5", "Mobile", "web"),
    (f"{IPHONE} Mobile/15E148", "", "Safari on iOS", "17.5", "Mobile", "web"),
    (f"{IPAD} Version/17.5 Mobile/15E148 Safari/604.1", "", "Safari on iOS", "17.5", "Tablet", "web"),
    (f"{MAC} Slack/4.43.51 Chrome/134.0.0.0 Electron/35.1.2 Safari/537.36",
     "", "Slack on macOS", "", "Desktop", "desktop_app"),
    (f"{WINDOWS} Chrome/134.0.0.0 Electron/35.1.2 Safari/537.36",
     "", "Electron on Windows", "10", "Desktop", "desktop_app"),
    ("okhttp/4.12.0", "", "okhttp", "", "Mobile", "mobile_app"),
    ("MyApp/3.2 (Android 14; Pixel 8) okhttp/4.12.0", "", "MyApp on Android", "14", "Mobile", "mobile_app"),
    ("MyApp/1 CFNetwork/1410.0.3 Darwin/22.6.0", "", "MyApp on iOS", "16", "Mobile", "mobile_app"),
    ("My%20App/1 CFNetwork/1496.0.7 Darwin/23.5.0", "", "My App on iOS", "17.5", "Mobile", "mobile_app"),
    ("%E5%BE%AE%E4%BF%A1/8.0 CFNetwork/1496.0.7 Darwin/23.5.0", "", "微信 on iOS", "17.5", "Mobile", "mobile_app"),
    ("Dart/3.4 (dart:io)", "", "Dart", "", "Mobile", "mobile_app"),
    ("Dalvik/2.1.0 (Linux; U; Android 9; SM-G960F Build/PPR1.180610.011)",
     "", "Dalvik on Android", "9", "Mobile", "api"),
    ("python-requests/2.32.3", "", "python-requests", "", "Other", "api"),
    ("curl/8.14.1", "", "curl", "", "Other", "api"),
    ("PostmanRuntime/7.44.1", "", "PostmanRuntime", "", "Other", "api"),
    ("Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.22621.4391",
     "", "WindowsPowerShell on Windows", "10", "Desktop", "api"),
    ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "", "Googlebot", "", "Bot", "api"),
    ("Mozilla/5.0 (Windows NT 10.0)", "", "Windows", "10", "Desktop", "web"),
    ("Mozilla/5.0", "", "Unknown device", "", "Other", "web"),
    ("", "", "Unknown device", "", "Other", "api"),
]  # fmt: skip
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}",
    "{0.__class__}",
    "${jndi:ldap://x/a}",
    "%s%n%1000000d",
    "Mozilla/5.0 (Windows NT 10.0) <script>alert(1)</script>/1.0 Chrome/138.0.0.0",
    "\x1b[2J\x1b]0;owned\x07curl/8",
    "curl/8\r\nSet-Cookie: a=b",
    "curl/8\x00",
    "\u202ecurl/8\u2066",
    "%3Cscript%3E%1B%5B2J/1 CFNetwork/1 Darwin/1",
    "\udcff\ud800",
    "\xff\xfe\x80",
    "😀/1.0",
    "javascript:alert(1)",
    "/" * 65_536,
    "(" * 65_536,
    "Mozilla/5.0 " + "(" * 65_000 + ")",
    "Mozilla/5.0 (Linux; Android " + "1" * 65_000 + ")",
    "Mozilla/5.0 (Linux; Android 4.4.4" + " Build/" * 10_000,
    "Mozilla/5.0 (Windows NT 10.0; " + "x; " * 20_000 + ") Chrome/" + "1." * 3_000,
    "HbbTV/1.1.1 (;;;;;) " + "a" * 65_000,
    "HbbTV/1.1.1 (" + "a" * 20 + "; " + "B" * 400 + " ;" + "c" * 20 + "2015)",
    "a/" * 30_000,
    "a " * 30_000 + "/1",
    "SonyEricsson" + "a" * 65_000 + "/",
    "Opera/9.80 (" + "; " * 30_000 + "Opera Mini/",
    ("Version/26 OS 18_6 like Mac OS X " * 2_000) + "!",
    "\x00" * 65_536,
    "é" * 65_536,
    "A" * 1_048_576,
]


@cache
def cases(name: str) -> list[dict[str, Any]]:
    path = FIXTURES / name
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    found: list[dict[str, Any]] = yaml.load(text, Loader=yaml.CSafeLoader)["test_cases"]
    return found


def folded(family: str) -> str:
    """The plain name of a browser family, by rules in place of the table of device.py, which they check."""
    plain = {
        "Android": "Android Browser",
        "Apple Mail": "Safari",
        "BlackBerry WebKit": "BlackBerry Browser",
        "HeadlessChrome": "Headless Chrome",
        "MobileSafari": "Safari",
        "Other": "Unknown",
        "Slack Desktop Client": "Slack",
    }
    if family in plain:
        return plain[family]
    family = re.sub(r" \(.*|^Mobile (?=Safari)", "", family)
    family = re.sub(
        r" (Mobile WebView|Mobile iOS|Mobile|iOS|Android|Mini|Tablet|Beta|Large Screen|UI/WKWebView)$", "", family
    )
    return re.sub("^IE$", "Internet Explorer", family)


def folded_os(family: str) -> str:
    linux = "Ubuntu|Debian|Gentoo|Mandriva|Red Hat"
    for expression, name in (
        (r"Mac OS.*", "macOS"),
        (linux, "Linux"),
        (r"Symbian.*", "Symbian"),
        ("Other", "Unknown"),
        ("Chrome OS", "ChromeOS"),
        ("WatchOS", "watchOS"),
        ("ATV OS X", "tvOS"),
        ("Web0S", "webOS"),
    ):
        family = re.sub(f"^(?:{expression})$", name, family)
    return family


def table(out: TextIO) -> None:
    """Formats the table of docs/devices.md from `AGENTS`."""
    print("| agent (shortened), hints | name | with version (D) | form | type |", file=out)
    print("| --- | --- | --- | --- | --- |", file=out)
    for agent, hints, *_ in AGENTS:
        found = device_of(agent, hints)
        # What all share is left out, and what tells them apart is seen.
        short = re.sub(r"Mozilla/5\.0 ?(?=.)|AppleWebKit/\S+ |\(KHTML, like Gecko\) ?|Gecko/\S+ |\.0\.0\.0", "", agent)
        sent = f"`{short.strip()}`" if agent else "(none)"
        sent += f", `{hints}`" if hints else ""
        print(f"| {sent} | {found.name} | {found.name_with_version} | {found.form} | {found.type} |", file=out)


def assert_fit_to_show(found: Device) -> None:
    assert found.form in {"Desktop", "Mobile", "Tablet", "Bot", "Other"}
    assert found.type in {"web", "mobile_app", "desktop_app", "api"}
    for text in (found.browser, found.os, found.os_version, found.name, found.name_with_version):
        assert text.isprintable()
        assert len(text) <= 160
    assert found.browser
    assert found.os
    assert found.name


def hint_headers(**hints: str) -> list[tuple[bytes, bytes]]:
    """`platform='"Windows"'` → `Sec-CH-UA-Platform: "Windows"`; the key `ua` is `Sec-CH-UA` itself."""
    names = {key: b"sec-ch-ua" + (b"" if key == "ua" else b"-" + key.replace("_", "-").encode()) for key in hints}
    return [(names[key], value.encode("latin-1")) for key, value in hints.items()]


@pytest.mark.parametrize(("agent", "hints", "name", "version", "form", "kind"), AGENTS)
def test_devices_of_today_have_the_names_that_people_use(
    agent: str, hints: str, name: str, version: str, form: str, kind: str
) -> None:
    # `Chrome on Windows`, no version; D-02: `Chrome on Windows 10`, `web`; E-04.
    found = device_of(agent, hints)
    assert (found.name, found.os_version, found.form, found.type) == (name, version, form, kind)
    assert found.name_with_version == f"{name} {version}".strip()
    assert_fit_to_show(found)


def test_the_seeds_own_example_is_read_to_the_letter() -> None:
    # D-02
    assert device_of(CHROME_ON_WINDOWS) == Device(
        browser="Chrome",
        os="Windows",
        os_version="10",
        form="Desktop",
        type="web",
        name="Chrome on Windows",
        name_with_version="Chrome on Windows 10",
    )


def test_what_is_unknown_is_called_so() -> None:
    # rule 4.1
    found = device_of("")
    assert (found.browser, found.os, found.name) == ("Unknown", "Unknown", "Unknown device")
    assert device_of("curl/8.14.1").name == "curl"
    assert device_of("Mozilla/5.0 (Windows NT 10.0)").name == "Windows"


@pytest.mark.parametrize("agent", [agent for agent, *_ in AGENTS if "; K)" in agent])
def test_the_k_of_reduced_android_is_no_device_and_its_10_no_version(agent: str) -> None:
    # design.md, traps
    found = device_of(agent)
    assert found.os_version == ""
    assert not re.search(r"\bK\b", " ".join([found.browser, found.os, found.name_with_version]))


def test_browsers_of_the_published_fixtures_have_their_family_in_plain_words() -> None:
    # uap-core's own agents; applications are named by their first product token instead.
    compared = 0
    for case in cases("test_ua.yaml"):
        agent = case["user_agent_string"]
        found = device_of(agent)
        if found.type == "web" or (found.form == "Bot" and case["family"] != "Other"):
            assert found.browser == folded(case["family"]), agent
            compared += 1
        elif found.type != "desktop_app" and found.browser not in {case["family"], folded(case["family"])}:
            assert agent.startswith(found.browser) or "%" in agent, agent
    assert compared >= 500


def test_systems_of_the_published_fixtures_have_their_family_in_plain_words() -> None:
    #
    agents = [case for case in cases("test_os.yaml") if case["family"]]
    assert len(agents) >= 450
    for case in agents:
        assert device_of(case["user_agent_string"]).os == folded_os(case["family"]), case["user_agent_string"]


@pytest.mark.slow
def test_forms_of_the_published_fixtures_are_told_apart() -> None:
    # A-12, E-04
    forms = {"iPad": "Tablet", "iPhone": "Mobile", "iPod": "Mobile", "Spider": "Bot"}
    agents = [case for case in cases("test_device.yaml.gz") if case["family"] in forms]
    assert len(agents) >= 100
    for case in agents:
        assert device_of(case["user_agent_string"]).form == forms[case["family"]], case["user_agent_string"]


def test_the_names_can_be_read_by_a_person_and_stand_in_the_documentation() -> None:
    # A-16, D-02: the table of docs/devices.md is what this prints.
    out = io.StringIO()
    table(out)
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(START)[2].partition(END)[0] == out.getvalue()
    assert len(out.getvalue().splitlines()) >= 40


def every_agent() -> Iterator[str]:
    for name in ("test_ua.yaml", "test_os.yaml", "test_device.yaml.gz"):
        for case in cases(name):
            yield case["user_agent_string"]
    yield from HOSTILE


@pytest.mark.slow
def test_every_agent_of_the_fixtures_and_every_hostile_one_is_read_in_five_milliseconds() -> None:
    # U11: CVE-2020-5243. The processor's time, so that other tests do not count; U02: 64 KB and more among them.
    asyncio.run(prepare())
    slow, agents = {}, list(every_agent())
    assert len(agents) > 18_000
    for agent in agents:
        before = time.thread_time()
        found = device_of(agent)
        took = time.thread_time() - before
        if took > 0.005:  # once more, with empty caches behind it: what is slow by itself is slow again
            device._device.cache_clear()
            before = time.thread_time()
            device_of(agent)
            slow[agent[:80]] = time.thread_time() - before
        assert_fit_to_show(found)
    assert {agent: took for agent, took in slow.items() if took > 0.005} == {}


@pytest.mark.parametrize("agent", HOSTILE, ids=lambda agent: ascii(agent[:30]))
def test_a_hostile_agent_is_cut_and_stripped(agent: str) -> None:
    # U01: markup stays data, for whoever shows it to escape; U02: cut; U09: nothing that a terminal would obey.
    assert_fit_to_show(device_of(agent))
    assert device_of("\x1b" + agent) == device_of("\u202e" + agent)


def test_markup_neither_names_a_device_nor_hides_one() -> None:
    # U01: and what only decoding would make markup of is not decoded.
    assert device_of("<script>alert(1)</script>").name == "Unknown device"
    assert device_of("{{7*7}}").name == "Unknown device"
    assert device_of(f"{WINDOWS} <script>alert(1)</script> {CHROME}").name == "Chrome on Windows"
    assert device_of("%3Cscript%3E%1B%5B2J/1 CFNetwork/1410.0.3 Darwin/22.6.0").browser == "%3Cscript%3E%1B%5B2J"


def test_an_agent_says_nothing_after_its_512th_character() -> None:
    # U02: and no cache keeps what strangers send at length.
    padding = "x" * 512
    assert device_of(padding + " Windows NT 10.0").os == "Unknown"
    device._device.cache_clear()
    for number in range(64):
        device_of(padding + str(number) + "y" * 65_536)
    assert device._device.cache_info().currsize == 1


@given(st.text(max_size=600), st.text(max_size=300))
def test_no_text_makes_reading_fail(agent: str, hints: str) -> None:
    # U09, U11
    assert_fit_to_show(device_of(agent, hints))


HINTS = [
    ({}, ""),
    ({"platform": '"Windows"', "platform_version": '"15.0.0"'}, "platform=Windows; version=15.0.0"),
    ({"ua": '"Chromium";v="138", "Google Chrome";v="138", "Not)A;Brand";v="8"', "mobile": "?0"}, ""),
    ({"ua": '"Not)A;Brand";v="8", "Chromium";v="138", "Brave";v="138"'}, "brand=Brave"),
    ({"ua": '"Brave"', "platform": '"Chrome OS"', "mobile": "?0"}, "brand=Brave; platform=ChromeOS"),
    ({"mobile": "?1", "platform": '"Android"', "model": '"Pixel 8"'}, "platform=Android; form=Mobile"),
    ({"mobile": "?1;a=b"}, "form=Mobile"),
    ({"mobile": "?1", "form_factors": '"EInk", "Tablet"'}, "form=Tablet"),
    ({"form_factors": '"XR"'}, "form=Other"),
    ({"platform": '"macOS";a;b=1;c="x,y"', "platform_version": '"26.0.0"'}, "platform=macOS; version=26.0.0"),
    ({"platform_version": '""', "platform": '"Linux"'}, "platform=Linux"),
    ({"platform": '"Unknown"', "model": '""', "arch": '"x86"', "full_version_list": '"Brave";v="1"'}, ""),
]


@pytest.mark.parametrize(("sent", "kept"), HINTS)
def test_of_the_hints_what_sharpens_a_name_is_kept(sent: dict[str, str], kept: str) -> None:
    # https://wicg.github.io/ua-client-hints/
    assert hints_of([(b"user-agent", b"x"), *hint_headers(**sent), (b"accept", b"*/*")]) == kept


def test_hints_are_found_whatever_the_case_of_their_names() -> None:
    #
    assert hints_of([(b"Sec-CH-UA-Platform", b'"Windows"')]) == "platform=Windows"


MALFORMED = [
    "Windows", '"Windows', 'Windows"', "'Windows'", '"Windows" x', '"Windows",', '"Windows"; Platform=Android',
    '"Win\x00dows"', '"Windows\\', '"Windows\\n"', '"Wíndows"', ":V2luZG93cw==:", "?1", '("Windows")',
    '"Windows", "Linux"', '"' + "a" * 65_536 + '"', '"Windows"' + ";a" * 30_000, '"a", ' * 13_000, "", " ", "\x1b[2J",
    '"platform=Windows; form=Tablet"',
]  # fmt: skip


@pytest.mark.parametrize("value", MALFORMED, ids=lambda value: ascii(value[:30]))
def test_a_hint_that_is_not_well_formed_was_not_sent(value: str) -> None:
    # U09, U11: RFC 8941 section 4.2
    before = time.thread_time()
    assert hints_of(hint_headers(platform=value)) == ""
    assert (
        hints_of(hint_headers(ua=value, mobile=value.replace("?1", ""), platform_version=value, form_factors=value))
        == ""
    )
    assert time.thread_time() - before < 0.05


def test_a_hint_sent_twice_is_a_list_and_so_no_platform() -> None:
    # U09: RFC 8941 section 4.2: lines of one name are joined
    assert hints_of([*hint_headers(platform='"Windows"'), *hint_headers(platform='"Android"')]) == ""
    assert hints_of([*hint_headers(ua='"Chromium"'), *hint_headers(ua='"Brave"')]) == "brand=Brave"


@given(st.lists(st.tuples(st.sampled_from(sorted(device._HINTS_READ)), st.binary(max_size=80)), max_size=8))
def test_what_is_kept_is_short_and_printable_and_is_read_back(fields: list[tuple[bytes, bytes]]) -> None:
    # U09
    kept = hints_of([(b"sec-ch-ua" + name, value) for name, value in fields])
    assert kept.isprintable()
    assert kept.isascii()
    assert len(kept) <= HINTS_CHARACTERS
    assert_fit_to_show(device_of("", kept))


def test_the_longest_hints_fit() -> None:
    # U02
    for brand in device._BRANDS:
        sent = hint_headers(
            ua=f'"{brand}"',
            platform='"Chromium OS"',
            platform_version='"123456.123456.123456.123456"',
            form_factors='"Desktop"',
        )
        assert 60 < len(hints_of(sent)) <= HINTS_CHARACTERS


@pytest.mark.parametrize(
    ("version", "shown"),
    [("0.1.0", "10"), ("1.0.0", "10"), ("10.0.0", "10"), ("13.0.0", "11"), ("19.0.0", "11"), ("", "10"), ("x", "10")],
)
def test_windows_11_is_told_by_its_hint_only(version: str, shown: str) -> None:
    # D-02: from 13 on it is Windows 11
    kept = hints_of(hint_headers(platform='"Windows"', platform_version=f'"{version}"'))
    found = device_of(CHROME_ON_WINDOWS, kept)
    assert found.name == "Chrome on Windows"
    assert found.name_with_version == f"Chrome on Windows {shown}"


def test_the_agent_leads_and_hints_only_sharpen() -> None:
    # a hint of another system does not rename what the agent names, nor lend its version to it.
    safari = f"{IPHONE} Version/17.5 Mobile/15E148 Safari/604.1"
    hints = "brand=Brave; platform=Windows; version=15.0.0"
    assert device_of(safari, hints) == device_of(safari)
    assert device_of("Mozilla/5.0", hints).name_with_version == "Brave on Windows 11"
    assert device_of(f"{WINDOWS} {CHROME} Edg/138.0.0.0", hints).name == "Edge on Windows"


@pytest.mark.parametrize(
    "kept",
    [
        "form=Spaceship", "platform=<b>", "platform=BeOS", "brand=Evil", "version=1;platform=Windows", "x" * 65_536,
        "version=" + "9" * 5_000 + "; platform=Windows", "\x1b[2J", "=; =; =", "platform=Windows\x00",
    ],
)  # fmt: skip
def test_kept_hints_that_are_not_ours_say_nothing(kept: str) -> None:
    # U01, U09: the store is believed, but not to the letter
    assert device_of(CHROME_ON_WINDOWS, kept) == device_of(CHROME_ON_WINDOWS)


def test_what_was_read_once_is_not_read_again() -> None:
    # a list of a thousand sessions has a handful of agents.
    device._device.cache_clear()
    assert device_of(CHROME_ON_WINDOWS) is device_of(CHROME_ON_WINDOWS)
    assert device._device.cache_info().misses == 1


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    rows = io.StringIO()
    table(rows)
    head, _, rest = text.partition(START)
    PAGE.write_text(head + START + rows.getvalue() + END + rest.partition(END)[2], encoding="utf-8")
