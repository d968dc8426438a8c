"""Readers: objects that turn the text of one setting into its value, and describe the accepted texts.

A reader stands in a field's `Annotated[…]`. Its parser gets the text without surrounding spaces and raises
`ValueError` with a verb phrase such as `is under 1s`. The problem line is made from it: the variable, the text that
was read, "which" and the phrase, then the accepted texts. The phrase never quotes a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, SecretStr
from pydantic_core import CoreSchema, core_schema

PREFIX = "GATEKEEPER_"
MASK = "***"

# Long enough for a sensible value, short enough for one line of a terminal.
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, kw_only=True)
class SettingReader:
    """Reads one value. `accepted` completes "accepted: …" in problem lines and the column in docs/settings.md."""

    parse: Callable[[str], object]
    accepted: str

    secret = False

    def read(self, value: object) -> object:
        """Read a value of the environment or of Python code; both pass the same rules and bounds.

        Raises `ValueError` with a verb phrase.
        """
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        elif isinstance(value, (int, float, Path)) and not isinstance(value, bool):
            value = str(value)
        return self.read_text(value) if isinstance(value, str) else value

    def read_text(self, text: str) -> object:
        """Read the text of a variable or a file. Raises `ValueError`."""
        return self.parse(single_line(text))

    def show(self, text: str) -> str:
        """Format an accepted text as `gatekeeper config` prints it."""
        return text.strip()

    def show_refused(self, text: str) -> str:
        """Quote a refused text in a problem line: one line, of bounded length, without the user part of a URL."""
        # Greedy up to the last `@`: a password may hold an unescaped slash or `@`.
        shown = re.sub(r"//\S*@", "//***@", text)
        return repr(shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "...")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))


@dataclass(frozen=True, kw_only=True)
class ListReader(SettingReader):
    """Reads values separated by commas. `parse` reads one of them; no two may have the same `key`.

    `none` is the way to write an empty list. `refused`: there is none. `word`: `none`. `empty`: `none` or an empty
    text, for settings whose default is an empty list. A list with a default can only be emptied by the word, never by
    a template that lost its value (rule 2.3).
    """

    none: Literal["refused", "word", "empty"] = "refused"
    key: Callable[[Any], Hashable] = lambda item: item

    def read(self, value: object) -> object:
        if isinstance(value, (tuple, list)):
            return self._items(list(value))
        return super().read(value)

    def read_text(self, text: str) -> object:
        text = text.strip()
        if (not text and self.none == "empty") or (text.lower() == "none" and self.none != "refused"):
            return ()
        return self._items([item.strip() for item in single_line(text).split(",")])

    def _items(self, values: list[Any]) -> tuple[Any, ...]:
        if not values and self.none == "refused":
            raise ValueError("is empty")
        items = [self._item(value) if isinstance(value, str) else value for value in values]
        seen: set[Hashable] = set()
        for item in items:
            if (key := self.key(item)) in seen:
                raise ValueError(f"names {key!r} twice")
            seen.add(key)
        return tuple(items)

    def _item(self, text: str) -> object:
        try:
            return self.parse(single_line(text))
        except ValueError as error:
            raise ValueError(f"has the item {text!r}, which {error}") from None


def env_name(field: str) -> str:
    """Return the name of the environment variable of a field."""
    return PREFIX + field.upper()


def single_line(text: str) -> str:
    """Strip the spaces around a line of text.

    Raises `ValueError` for empty text, control characters, and bytes that were not UTF-8 (Python turns them into
    surrogates).
    """
    text = text.strip()
    if not text:
        raise ValueError("is empty")
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", text):
        raise ValueError("has a control character")
    if not is_unicode(text):
        raise ValueError("is not UTF-8")
    return text


def is_unicode(text: str) -> bool:
    """Return true where a text has no surrogates, so that it can be written as UTF-8."""
    return not re.search(r"[\ud800-\udfff]", text)


def is_path(text: str) -> bool:
    """Return true only for an unmistakable path: a problem line may show it, and must not show a misplaced secret."""
    return text.isprintable() and text.startswith(("/", "./", "../"))


def free_text(accepted: str, *, most: int = 512) -> SettingReader:
    """A reader of any text of up to `most` characters."""

    def parse(text: str) -> str:
        if len(text) > most:
            raise ValueError(f"has over {most} characters")
        return text

    return SettingReader(parse=parse, accepted=accepted)


def choice(*names: str) -> SettingReader:
    """A reader of one of a few words; letter case does not count."""

    def parse(text: str) -> str:
        if text.lower() not in names:
            raise ValueError("is not one of the accepted words")
        return text.lower()

    return SettingReader(parse=parse, accepted=", ".join(names))


_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def boolean() -> SettingReader:
    """A reader of booleans."""

    def parse(text: str) -> bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError("is neither true nor false")
        return _BOOLEANS[text.lower()]

    return SettingReader(parse=parse, accepted="true or false (also yes, no, on, off, 1, 0)")


def integer(least: int, most: int) -> SettingReader:
    """A reader of whole numbers within bounds, both included."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise ValueError("is not a whole number")
        if int(text) < least:
            raise ValueError(f"is under {least}")
        if int(text) > most:
            raise ValueError(f"is over {most}")
        return int(text)

    return SettingReader(parse=parse, accepted=f"a whole number from {least} to {most}")


_UNIT_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}


def parse_duration(text: str) -> float:
    """Parse `250ms`, `15s`, `30m`, `24h`, `7d` or a plain number into seconds. Raises `ValueError`."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s?(ms|s|m|h|d)?", text)
    if match is None:
        raise ValueError("is not a duration")
    number, unit = match.groups()
    # Decimal, so that 250ms is the float that 0.25 is.
    return float(Decimal(number) * _UNIT_SECONDS[unit or "s"])


def duration(least: str, most: str) -> SettingReader:
    """A reader of durations within bounds, both included, in seconds."""

    def parse(text: str) -> float:
        value = parse_duration(text)
        if value < parse_duration(least):
            raise ValueError(f"is under {least}")
        if value > parse_duration(most):
            raise ValueError(f"is over {most}")
        return value

    return SettingReader(
        parse=parse, accepted=f"a duration from {least} to {most}, such as 250ms, 15s, 30m, 24h or a number of seconds"
    )


_UNIT_BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4}
_UNIT_BYTES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def parse_size(text: str) -> int:
    """Parse `64KiB`, `10MB` or a plain number into bytes. Raises `ValueError`."""
    match = re.fullmatch(r"([0-9]{1,15})\s?([A-Za-z]{0,3})", text)
    if match is None or match[2].lower() not in _UNIT_BYTES:
        raise ValueError("is not a size")
    return int(match[1]) * _UNIT_BYTES[match[2].lower()]


def size(least: str, most: str) -> SettingReader:
    """A reader of sizes within bounds, both included, in bytes."""

    def parse(text: str) -> int:
        value = parse_size(text)
        if value < parse_size(least):
            raise ValueError(f"is under {least}")
        if value > parse_size(most):
            raise ValueError(f"is over {most}")
        return value

    return SettingReader(
        parse=parse, accepted=f"a size from {least} to {most}, such as 64KiB, 10MB or a number of bytes"
    )


def or_off(reader: SettingReader) -> SettingReader:
    """A reader of `off`, which is `None`, and of all that `reader` accepts."""

    def parse(text: str) -> object:
        return None if text.lower() == "off" else reader.parse(text)

    return SettingReader(parse=parse, accepted=f"{reader.accepted}; or off")


def directory() -> SettingReader:
    """A reader of the path of a directory, which need not exist yet."""

    def parse(text: str) -> Path:
        if text.startswith("~"):
            raise ValueError("starts with ~, which only a shell expands")
        try:
            if Path(text).exists() and not Path(text).is_dir():
                raise ValueError("is not a directory")
        except OSError as error:
            raise ValueError(f"cannot be examined ({error.strerror})") from None
        return Path(text)

    return SettingReader(parse=parse, accepted="the path of a directory")


def ca_file() -> SettingReader:
    """A reader of the path of a file of PEM certificates.

    The file is opened, so that a wrong one fails the start and not the first request.
    """

    def parse(text: str) -> Path:
        if "-----BEGIN CERTIFICATE-----" not in read_file(Path(text)):
            raise ValueError("holds no PEM certificate")
        return Path(text)

    return SettingReader(parse=parse, accepted="the path of a readable file of PEM certificates")


# A bundle of all public authorities is about 250 KiB.
_FILE_CHARACTERS = 4 * 1024 * 1024


def read_file(path: Path) -> str:
    """Read a text file of at most 4 MiB. Raises `ValueError` with the system's reason."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read(_FILE_CHARACTERS + 1)
    except UnicodeDecodeError:
        raise ValueError("names a file that is not UTF-8 text") from None
    except ValueError:
        raise ValueError("is not a path") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if len(text) > _FILE_CHARACTERS:
        raise ValueError("names a file of over 4 MiB")
    return text
