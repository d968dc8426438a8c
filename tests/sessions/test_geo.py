"""Locations by address: from the embedded data set, and from files in MaxMind's format that the tests make.

Rows A-13 and E-04 (what is shown), E-08 (where it comes from); `attacks.md` U01 (markup in the data).
"""

from __future__ import annotations

import random
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from gatekeeper.models import Location
from gatekeeper.sessions.geo import Locator, MmdbLocator, NoLocator, RegistryLocator, open_locator

NOWHERE = Location()
LONDON = "81.2.69.142"
# Asked of every source, whatever is in it: none of these is an address of the public internet.
NO_PLACE = (
    "127.0.0.1", "::1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "fe80::1", "fe80::1%eth0",
    "fd00::1", "100.64.0.1", "0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "ff02::1", "192.0.2.1", "2001:db8::1",
    "::ffff:10.1.2.3", "", "unix:", "unknown", "garbage", "81.2.69.142:443", "[2a02:100::1]", " 81.2.69.142",
    "081.2.69.142", "81.2.69", "1360151950", "81.2.69.142\x00", "<script>", "2a02:100::1%<script>", "é", "\udcff",
    "9" * 65_536,
)  # fmt: skip


def write_mmdb(path: Path, records: dict[str, Any], kind: str = "GeoLite2-City") -> Path:
    """Writes a file of that type from network → record, built like the published ones."""
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type=kind, languages=["en"])
    for network, record in records.items():
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path))
    return path


def place(city: Any, country: Any) -> dict[str, Any]:
    """A record of GeoIP2 City, with other languages and members that a reader must ignore."""
    return {
        "city": {"geoname_id": 2643743, "names": {"de": "anders", "en": city, "fr": "autrement"}},
        "continent": {"code": "EU", "names": {"en": "Europe"}},
        "country": {"iso_code": country, "names": {"en": "a country"}},
        "registered_country": {"iso_code": "US"},
    }


@pytest.fixture
def city_file(tmp_path: Path) -> Path:
    records = {
        "81.2.69.0/24": place("London", "GB"),
        "2a02:100::/32": place("São Paulo", "BR"),
        "8.8.8.0/24": {"country": {"iso_code": "US"}},
        "9.9.9.0/24": {"registered_country": {"iso_code": "US"}},
        "10.0.0.0/8": place("Intranet", "XX"),
        "127.0.0.0/8": place("Home", "GB"),
    }
    return write_mmdb(tmp_path / "city.mmdb", records)


def test_off_knows_no_place() -> None:
    # A-13, E-08: off by default, the address alone is kept.
    assert isinstance(open_locator("off"), NoLocator)
    assert open_locator("off").locate(LONDON) == NOWHERE


@pytest.mark.parametrize(
    ("ip_address", "country"),
    [
        ("193.0.6.139", "NL"),
        ("2001:67c:2e8::1", "NL"),
        ("8.8.8.8", "US"),
        ("::ffff:8.8.8.8", "US"),
        ("133.11.0.1", "JP"),
    ],
)
def test_the_embedded_data_set_knows_the_country_of_an_address(ip_address: str, country: str) -> None:
    # A-13, E-04, E-08
    assert open_locator("country").locate(ip_address) == Location(city="", country=country)


def test_a_region_is_no_country() -> None:
    # E-04: the registries name some networks `EU`, which is no ISO 3166-1 code of a country.
    draw, locator = random.Random(3), open_locator("country")
    countries = {locator.locate(".".join(str(draw.randrange(256)) for _ in range(4))).country for _ in range(50_000)}
    assert {"US", "CN", "DE", ""} <= countries
    assert "EU" not in countries
    assert all(len(country) in {0, 2} for country in countries)


def test_a_city_file_knows_city_and_country(city_file: Path) -> None:
    # A-13, E-04, E-08: the city in English, the country as a code; the country alone where there is no city.
    locator = open_locator(str(city_file))
    assert locator.locate(LONDON) == Location(city="London", country="GB")
    assert locator.locate("::ffff:81.2.69.142") == Location(city="London", country="GB")
    assert locator.locate("2a02:100::1") == Location(city="São Paulo", country="BR")
    assert locator.locate("8.8.8.8") == Location(city="", country="US")
    assert locator.locate("1.1.1.1") == NOWHERE
    assert "GeoLite2-City" in repr(locator)


def test_where_a_network_is_registered_is_not_where_it_is(city_file: Path) -> None:
    # E-04
    assert open_locator(str(city_file)).locate("9.9.9.9") == NOWHERE


def test_a_country_file_and_flat_records_are_read_too(tmp_path: Path) -> None:
    # E-08
    country = write_mmdb(tmp_path / "a.mmdb", {"8.8.8.0/24": {"country": {"iso_code": "US"}}}, "GeoIP2-Country")
    flat = {
        "8.8.8.0/24": {"country_code": "US", "country": "United States", "city": "Dallas"},
        "9.9.9.0/24": {"country": "ch"},
    }
    locator = open_locator(str(write_mmdb(tmp_path / "b.mmdb", flat, "ip-location")))
    assert open_locator(str(country)).locate("8.8.8.8") == Location(country="US")
    assert locator.locate("8.8.8.8") == Location(city="Dallas", country="US")
    assert locator.locate("9.9.9.9") == Location(country="CH")


@pytest.mark.parametrize("ip_address", NO_PLACE, ids=lambda text: ascii(text[:30]))
def test_what_is_not_of_the_public_internet_is_nowhere(city_file: Path, ip_address: str) -> None:
    # private, loopback, link-local, the peer of a unix socket, garbage. The file has records for some of them.
    sources: list[Locator] = [NoLocator(), RegistryLocator(), MmdbLocator(str(city_file))]
    assert [source.locate(ip_address) for source in sources] == [NOWHERE] * 3


@pytest.mark.parametrize(
    ("city", "country", "expected"),
    [
        ("<script>alert(1)</script>", "GB", Location("scriptalert(1)/script", "GB")),
        ('"><img src=x onerror=alert(1)>', "GB", Location("img srcx onerroralert(1)", "GB")),
        ("{{7*7}}", "{{", Location("77", "")),
        ("Lon\x1b[2Jdon\r\n\u202e\x00", "G\x00", Location("Lon2Jdon", "")),
        ("a" * 100_000, "GB", Location("a" * 64, "GB")),
        ("Saint-Jérôme (Québec), N'Djaména", "CA", Location("Saint-Jérôme (Québec), N'Djaména", "CA")),
        ("कोलकाता", "in", Location("कोलकाता", "IN")),
        (7, 7, NOWHERE),
        (["London"], {"iso_code": "GB"}, NOWHERE),
        ("", "EU", NOWHERE),
        ("", "GBR", NOWHERE),
        ("", "ß1", NOWHERE),
    ],
)
def test_nothing_but_names_comes_out_of_a_file(tmp_path: Path, city: Any, country: Any, expected: Location) -> None:
    # U01: markup, terminal escapes and what does not end stay behind; so does what is not of the expected type.
    records = {"8.8.8.0/24": place("Anywhere", "US"), "81.2.69.0/24": place(city, country)}
    assert open_locator(str(write_mmdb(tmp_path / "hostile.mmdb", records))).locate(LONDON) == expected


def test_a_record_of_another_shape_is_nowhere(tmp_path: Path) -> None:
    # U01
    shapes = [
        "London",
        7,
        ["GB"],
        {"country": ["GB"], "city": {"names": "London"}},
        {"city": {"names": {"fr": "Londres"}}},
    ]
    records = {f"81.2.{index}.0/24": shape for index, shape in enumerate(shapes)}
    locator = open_locator(str(write_mmdb(tmp_path / "a.mmdb", records | {"8.8.8.0/24": place("Anywhere", "US")})))
    assert {locator.locate(f"81.2.{index}.1") for index in range(len(shapes))} == {NOWHERE}


def test_a_setting_that_names_no_file_is_refused_in_words(tmp_path: Path) -> None:
    # E-08
    for setting in ("on", "Country", "", str(tmp_path), str(tmp_path / "missing.mmdb"), "a\x00b"):
        with pytest.raises(ValueError, match=r"is no file; accepted are off, country, and the path of an \.mmdb file"):
            open_locator(setting)


def test_a_file_of_another_kind_is_refused_in_words(tmp_path: Path) -> None:
    # E-08
    numbers = {"8.8.8.0/24": {"autonomous_system_number": 15169, "autonomous_system_organization": "GOOGLE"}}
    path = write_mmdb(tmp_path / "asn.mmdb", numbers, "GeoLite2-ASN")
    with pytest.raises(ValueError, match="has neither cities nor countries, it is 'GeoLite2-ASN'; accepted are off"):
        open_locator(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"not a database", b"\x00" * 4096, b"\xab\xcd\xefMaxMind.com", b"\xff" * 70_000]
)
def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    # E-08
    path = tmp_path / "broken.mmdb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is no \.mmdb file, or a damaged one; accepted are off"):
        open_locator(str(path))


def test_a_damaged_file_is_refused_or_answers_but_nothing_else(city_file: Path, tmp_path: Path) -> None:
    # U01: cut short at every length, and with any byte changed, opening says ValueError and a look-up never raises.
    whole, draw = city_file.read_bytes(), random.Random(5)
    damaged = [whole[:length] for length in range(0, len(whole), 29)]
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        damaged.append(bytes(changed))
    opened = 0
    for number, content in enumerate(damaged):
        path = tmp_path / f"{number}.mmdb"
        path.write_bytes(content)
        try:
            locator = open_locator(str(path))
        except ValueError as error:
            assert "accepted are off" in str(error)  # noqa: PT017 - most open and some do not: both are right
            continue
        opened += 1
        for ip_address in (LONDON, "2a02:100::1", "8.8.8.8", "1.1.1.1"):
            location = locator.locate(ip_address)
            assert len(location.city) <= 64
            assert len(location.country) in {0, 2}
    assert opened > 50


@pytest.mark.parametrize(("setting", "package"), [("country", "iptocc"), ("city.mmdb", "maxminddb")])
def test_without_the_extra_the_error_says_what_to_install(
    city_file: Path, monkeypatch: pytest.MonkeyPatch, setting: str, package: str
) -> None:
    # E-08
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ValueError, match=r"needs packages that are not installed: pip install 'gatekeeper-sidecar\[geo\]'"
    ):
        open_locator(setting if setting == "country" else str(city_file))


def test_no_source_asks_the_network(city_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # E-08: "by an outside service" is what Gatekeeper does not do.
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a locator opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for setting in ("off", "country", str(city_file)):
        locator = open_locator(setting)
        for ip_address in (LONDON, "8.8.8.8", "example.org", "garbage"):
            locator.locate(ip_address)
