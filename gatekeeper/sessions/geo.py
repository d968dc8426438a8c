"""Locates clients by their address, from local data only: nothing here uses the network.

`off` locates none. `country` is the data of the five regional registries, embedded in the package `iptocc`: the country
in which a network was registered, which for about one address in twenty is not the country where it is used. A file in
MaxMind's format (`.mmdb`) has the places that its publisher knows. Both need the extra `geo`.
"""

from __future__ import annotations

import ipaddress
import unicodedata
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from gatekeeper.models import Location

if TYPE_CHECKING:
    from maxminddb import Reader

_ACCEPTED: Final = "accepted are off, country, and the path of an .mmdb file with cities or countries"
_EXTRA: Final = "needs packages that are not installed: pip install 'gatekeeper-sidecar[geo]'"
_NOWHERE: Final = Location()
_CITY_CHARACTERS: Final = 64
_PUNCTUATION: Final = frozenset(" '’‘ʻ`-–.,()/")
# Codes in data sets that are no countries: regions of registries, proxies, satellites, unknown.
_NO_COUNTRIES: Final = frozenset({"A1", "A2", "AP", "EU", "O1", "T1", "XX", "ZZ"})
# Enough to recognize a file: the first records of every published city or country file have a country.
_LOOKED_AT: Final = 1000


class Locator(Protocol):
    """Locates addresses. `locate` never raises and never uses the network. It returns an empty location for any address
    outside of the public internet, and for text that is no address."""

    def locate(self, ip_address: str) -> Location: ...


def open_locator(setting: str) -> Locator:
    """Opens the source that the setting `GEO` names: `off`, `country`, or the path of an `.mmdb` file.

    Raises `ValueError`, which says what is accepted: the extra is not installed, or the file cannot be read, is of
    another format, or has neither cities nor countries.
    """
    if setting == "off":
        return NoLocator()
    if setting == "country":
        return RegistryLocator()
    return MmdbLocator(setting)


class NoLocator:
    """Locates no address."""

    def __repr__(self) -> str:
        return "<NoLocator>"

    def locate(self, ip_address: str) -> Location:
        return _NOWHERE


class RegistryLocator:
    """The country that the network of an address was registered in (package `iptocc`, 0.6 MB, data of its release)."""

    def __init__(self) -> None:
        try:
            from iptocc import country_code
        except ImportError as error:
            raise ValueError(f"country {_EXTRA}") from error
        self._country_code: Callable[[str], str | None] = country_code

    def __repr__(self) -> str:
        return "<RegistryLocator iptocc>"

    def locate(self, ip_address: str) -> Location:
        address = _public(ip_address)
        return _NOWHERE if address is None else Location(country=_country(self._country_code(address)))


class MmdbLocator:
    """A file in MaxMind's format, memory-mapped: GeoIP2 and GeoLite2 City and Country, and DB-IP's, which have their
    layout, or flat records with `country_code` or `country` and `city`.

    A newer file is read by a restart. It must take the old one's place by a rename, as geoipupdate does it: a file that
    is overwritten changes under the process.
    """

    def __init__(self, path: str) -> None:
        self._reader = _open(path)

    def __repr__(self) -> str:
        metadata = self._reader.metadata()
        return f"<MmdbLocator {_plain(metadata.database_type)!r} of {metadata.build_epoch}>"

    def locate(self, ip_address: str) -> Location:
        address = _public(ip_address)
        if address is None:
            return _NOWHERE
        try:
            return _location(self._reader.get(address))
        except Exception:  # noqa: BLE001 - a damaged file must not stop a sign-in, whichever error it causes
            return _NOWHERE


def _open(path: str) -> Reader:
    try:
        import maxminddb
    except ImportError as error:
        raise ValueError(f"an .mmdb file {_EXTRA}") from error
    if not Path(path).is_file():
        raise ValueError(f"{path!r} is no file; {_ACCEPTED}")
    try:
        # Not the reader in C: a damaged file is a segmentation fault there. A look-up takes 50 µs, once a session.
        reader = maxminddb.open_database(path, maxminddb.MODE_MMAP)
        known = any(_location(record) != _NOWHERE for _, record in islice(reader, _LOOKED_AT))
    except OSError as error:
        raise ValueError(f"{path!r} cannot be read: {error.strerror or error}; {_ACCEPTED}") from error
    except Exception as error:
        # The reader raises errors of many types for a damaged file.
        raise ValueError(f"{path!r} is no .mmdb file, or a damaged one; {_ACCEPTED}") from error
    if not known:
        kind = _plain(reader.metadata().database_type) or "something else"
        reader.close()
        raise ValueError(f"{path!r} has neither cities nor countries, it is {kind!r}; {_ACCEPTED}")
    return reader


def _public(text: str) -> str | None:
    """Returns the address in its usual form, or None outside of the public internet."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        address = address.ipv4_mapped or address
    return str(address) if address.is_global and not address.is_multicast else None


def _location(record: Any) -> Location:
    if not isinstance(record, Mapping):
        return _NOWHERE
    country = _within(record, "country", "iso_code") or record.get("country_code") or record.get("country")
    city = _within(record, "city", "names", "en") or record.get("city")
    return Location(city=_plain(city), country=_country(country))


def _within(record: Mapping[str, Any], *keys: str) -> Any:
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _plain(text: Any) -> str:
    """Keeps letters, marks, digits and the punctuation of place names: no markup, no unprintable text, 64
    characters."""
    if not isinstance(text, str):
        return ""
    kept = (
        each for each in text[: 4 * _CITY_CHARACTERS] if each in _PUNCTUATION or unicodedata.category(each)[0] in "LMN"
    )
    return "".join(kept)[:_CITY_CHARACTERS].strip()


def _country(code: Any) -> str:
    if not isinstance(code, str) or len(code) != 2 or not (code.isascii() and code.isalpha()):
        return ""
    return "" if code.upper() in _NO_COUNTRIES else code.upper()
