"""What a `User-Agent` tells, and that none of them is trouble."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.models import Device
from gatekeeper.sessions.device import device_of

VECTORS = Path(__file__).parents[1] / "vectors" / "uap-core"
WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
WINDOWS = "Mozilla/5.0 (Windows NT 10.0; Win64; x64)"
MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)"
ANDROID = "Mozilla/5.0 (Linux; Android 10; K)"
APPLE = "AppleWebKit/605.1.15 (KHTML, like Gecko)"


def test_chrome_on_windows_10_is_what_dialect_d_shows() -> None:
    # D-02
    assert device_of(f"{WINDOWS} {WEBKIT} Chrome/126.0.0.0 Safari/537.36") == Device(
        browser="Chrome",
        os="Windows",
        os_version="10",
        form="Desktop",
        type="web",
        name="Chrome on Windows",
        name_with_version="Chrome on Windows 10",
    )


# (user agent, browser, os, form, type)
DEVICES = [
    (f"{WINDOWS} {WEBKIT} Chrome/126.0 Safari/537.36 Edg/126.0", "Edge", "Windows", "Desktop", "web"),
    (f"{MAC} {APPLE} Version/17.5 Safari/605.1.15", "Safari", "macOS", "Desktop", "web"),
    ("Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
     "Firefox", "Linux", "Desktop", "web"),
    (f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {WEBKIT} Chrome/126.0 Safari/537.36",
     "Chrome", "ChromeOS", "Desktop", "web"),
    (f"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) {APPLE} Version/17.5 Mobile/15E148 Safari/604.1",
     "Safari", "iOS", "Mobile", "web"),
    (f"Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) {APPLE} Version/16.6 Mobile/15E148 Safari/604.1",
     "Safari", "iOS", "Tablet", "web"),
    # Chrome's reduced user agent: every device is a "K" under Android 10
    (f"{ANDROID} {WEBKIT} Chrome/126.0.0.0 Mobile Safari/537.36", "Chrome", "Android", "Mobile", "web"),
    (f"{ANDROID} {WEBKIT} Chrome/126.0.0.0 Safari/537.36", "Chrome", "Android", "Tablet", "web"),
    (f"Mozilla/5.0 (Linux; Android 14; SM-S918B) {WEBKIT} SamsungBrowser/25.0 Chrome/121.0 Mobile Safari/537.36",
     "Samsung Internet", "Android", "Mobile", "web"),
    ("okhttp/4.12.0", "okhttp", "Unknown", "Other", "mobile_app"),
    ("MyBank/3.2 CFNetwork/1494.0.7 Darwin/23.4.0", "MyBank", "iOS", "Mobile", "mobile_app"),
    ("Dart/3.4 (dart:io)", "Dart", "Unknown", "Other", "mobile_app"),
    (f"{MAC} {WEBKIT} Slack/4.35.126 Chrome/120.0 Electron/28.0.0 Safari/537.36",
     "Slack", "macOS", "Desktop", "desktop_app"),
    (f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} Chrome/120.0 Electron/28.0.0 Safari/537.36",
     "Electron", "Linux", "Desktop", "desktop_app"),
    ("curl/8.5.0", "curl", "Unknown", "Other", "api"),
    ("python-requests/2.32.3", "python-requests", "Unknown", "Other", "api"),
    ("PostmanRuntime/7.39.0", "PostmanRuntime", "Unknown", "Other", "api"),
    ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Googlebot", "Unknown", "Bot", "api"),
]  # fmt: skip


@pytest.mark.parametrize(("user_agent", "browser", "os", "form", "kind"), DEVICES)
def test_a_user_agent_is_told_in_the_words_of_the_lists(
    user_agent: str, browser: str, os: str, form: str, kind: str
) -> None:
    # contract 4.1
    device = device_of(user_agent)
    assert (device.browser, device.os, device.form, device.type) == (browser, os, form, kind)
    assert device.name == (browser if os == "Unknown" else f"{browser} on {os}")
    assert device.name_with_version.startswith(device.name)


@pytest.mark.parametrize("user_agent", ["", " ", "junk", "/", "Mozilla", "()", "\x00\x1b[2J\r\n", "\ud800", "é😀"])
def test_what_tells_nothing_is_an_unknown_device(user_agent: str) -> None:
    # contract 4.1: unknown browser and os are `Unknown`, the name then `Unknown device`
    device = device_of(user_agent)
    assert (device.browser, device.os, device.os_version, device.form, device.type) == (
        "Unknown", "Unknown", "", "Other", "api",
    )  # fmt: skip
    assert device.name == device.name_with_version == "Unknown device"


def test_with_only_the_system_known_the_name_is_that() -> None:
    # contract 4.1
    device = device_of("(Windows NT 10.0)")
    assert (device.browser, device.name, device.name_with_version) == ("Unknown", "Windows", "Windows 10")


HOSTILE = [
    "Mozilla/5.0 (" + "A" * 65_536,
    "Mozilla/5.0 " + "(" * 65_536,
    "Mozilla/5.0 (Linux; Android " + "1." * 32_768 + ") AppleWebKit",
    "Mozilla/5.0 (Linux; U; Android 4.0; " + "x;" * 32_768 + ") Build/",
    "a" * 65_536 + "/1",
    "a " * 32_768,
    " ".join(f"Product{number}/{number}" for number in range(6_000)),
    "Opera/9.80 (" + ";" * 65_536 + ") Version/",
    "\x00" * 65_536,
    "é" * 65_536,
    "\ud800" * 65_536,
    "Windows NT " * 6_000,
]


@pytest.mark.parametrize("user_agent", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_user_agent_is_read_all_the_same(user_agent: str) -> None:
    # U11; without a regular expression that can be made to take long, the suite's time-out is never near
    assert device_of(user_agent).type in {"web", "api", "mobile_app", "desktop_app"}


def test_the_user_agents_of_uap_core_are_all_read() -> None:
    # U11
    read = 0
    for path in sorted(VECTORS.glob("*.yaml")):
        for found in re.finditer(r"user_agent_string: ?(['\"]?)(.*)\1$", path.read_text(), re.MULTILINE):
            device = device_of(found[2])
            assert device.type in {"web", "api", "mobile_app", "desktop_app"}
            assert device.form in {"Desktop", "Mobile", "Tablet", "Bot", "Other"}
            assert device.name
            assert device.browser
            assert device.os
            read += 1
    assert read > 2_000


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_no_user_agent_raises(user_agent: str) -> None:
    # U11
    assert device_of(user_agent).name
