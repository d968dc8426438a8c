"""Read the fields of a request body or query, in every notation that a backend may read it in.

A field is a value with the names that lead to it: `{"user": {"email": "a"}}`, `user[email]=a`, `<user email="a"/>` and
`login(user: {email: "a"})` hold the same one. Which notation the backend reads is not known, and the `Content-Type` is
the client's word, so every notation that the text may be in is read. Reading is lenient, linear and bounded, and a
field that occurs twice is there twice.
"""

from __future__ import annotations

import binascii
import html
import json
import quopri
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes
from xml.parsers import expat

import msgspec

# A body within a body: JSON in a form, JSON in JSON (GraphQL variables), a query of GraphQL in JSON.
_MOST_DEPTH: Final = 3
_MOST_FIELDS: Final = 4096
_MOST_LEXEMES: Final = 16_384
_SPACE: Final = " \t\r\n\ufeff\0"
_STRUCTURE: Final = re.compile(r"""[{\[<"=&:]""")
_BRACKETS: Final = re.compile(r"[\[\]]+|->")
# Quantifiers are possessive: what does not match is found out at once, in linear time.
_LEXEME: Final = re.compile(
    r"""/\*(?:[^*]|\*(?!/))*+(?:\*/)?"""
    r"""|(?P<double>"(?:[^"\\]|\\.)*+"?)"""
    r"""|(?P<single>'(?:[^'\\]|\\.)*+'?)"""
    r"""|(?P<mark>[{}\[\]():=,;&\n])"""
    r"""|(?P<word>[^\s"'{}\[\]():=,;&]++)""",
    re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|u\{([0-9A-Fa-f]{1,6})\}|(.))", re.DOTALL)
_ESCAPED: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "0": "\0", "v": "\v"}
_TAG: Final = re.compile(r"<([/?!]?)([^<>]*+)>?([^<]*+)", re.DOTALL)
_CDATA: Final = re.compile(r"<!\[CDATA\[((?:[^\]]|\](?!\]>))*+)(?:\]\]>)?", re.DOTALL)
_COMMENT: Final = re.compile(r"<!--(?:[^-]|-(?!->))*+(?:-->)?", re.DOTALL)
_XML_ENCODING: Final = re.compile(rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._:-]{1,40})["']""")
_CHARSET: Final = re.compile(rb"""charset\s*=\s*["']?([A-Za-z0-9._:-]{1,40})""", re.IGNORECASE)
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
# Multipart: between two of these stand a head and a content, whatever the boundary is called.
_BOUNDARY: Final = re.compile(rb"(?:\A|\r?\n)--")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_FOLD: Final = re.compile(rb"\r?\n[ \t]+")
_PART_NAME: Final = re.compile(
    rb"""(?:[;\s])name(?P<more>\*[0-9]*\*?)?\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<plain>[^\s;]++))""",
    re.IGNORECASE,
)
_PART_CODING: Final = re.compile(rb"content-transfer-encoding\s*:\s*(base64|quoted-printable)", re.IGNORECASE)
_MOST_PARTS: Final = 1024


class Unsearchable(ValueError):
    """The text is too large, has an unknown encoding, or holds too many candidates."""


class Field(NamedTuple):
    """A value and the names that lead to it, outermost first, as they were written."""

    path: tuple[str, ...]
    value: str


def decoded(octets: bytes, content_types: Sequence[bytes]) -> list[str]:
    """Decode a body as UTF-8, and by the character set that it looks like and those that are declared.

    Raises `Unsearchable` for a declared set that is not known.
    """
    texts = [octets.decode("utf-8", "replace")]
    if b"\0" in octets:
        texts.append(octets.decode(json.detect_encoding(octets), "replace"))
    named = [match[1] for kind in content_types for match in _CHARSET.finditer(kind)]
    named += _XML_ENCODING.findall(octets[:1024])
    for name in named:
        try:
            texts.append(octets.decode(name.decode(), "replace"))
        except (LookupError, UnicodeError):
            # Python raises `LookupError` for a codec that is no character set too, such as `hex`.
            raise Unsearchable from None
    return list(dict.fromkeys(texts))


def fields_of_body(octets: bytes, content_types: Sequence[bytes]) -> list[Field]:
    """Read the fields of a body. Raises `Unsearchable`."""
    kinds = [kind.partition(b";")[0].strip(b" \t").lower() for kind in content_types] or [b""]
    found: list[Field] = []
    for text in decoded(octets, content_types):
        if text and not _STRUCTURE.search(text):
            # A body that is one value.
            found.append(Field((), text))
        for field in _fields(text, kinds, 0):
            found.append(field)
            if len(found) > _MOST_FIELDS:
                raise Unsearchable
    if any(kind.endswith((b"msgpack", b"messagepack")) for kind in kinds):
        found += _message_pack(octets)
    if b"content-disposition" in octets.lower():
        found += _parts(octets)
    return found


def fields_of_query(query: bytes) -> list[Field]:
    """Read the fields of a query, or of a form. Raises `Unsearchable`."""
    if query.count(b"&") + query.count(b";") > _MOST_FIELDS:
        raise Unsearchable
    return [field for pair in _form(query.decode("latin-1")) for field in _with_nested(pair, 0)]


def fields_of_document(document: Any) -> list[Field]:
    """Read the fields of a JSON document that was decoded before."""
    return list(_walked(document))


def _fields(text: str, kinds: Sequence[bytes], depth: int) -> Iterator[Field]:
    start = text.lstrip(_SPACE)[:1]
    is_form = b"application/x-www-form-urlencoded" in kinds
    if "=" in text and (is_form or start not in {"{", "[", "<", '"'}):
        for field in _form(text.encode("utf-8", "replace").decode("latin-1")):
            yield from _with_nested(field, depth)
    if start == "<" or any(kind.endswith(b"xml") for kind in kinds):
        for field in _xml(text):
            yield from _with_nested(field, depth)
    is_other = is_form or b"multipart/form-data" in kinds
    if start in {"{", "[", '"', "'", "(", "/"} or not (start == "<" or is_other):
        for field in _json(text):
            yield from _with_nested(field, depth)


def _with_nested(field: Field, depth: int) -> Iterator[Field]:
    """Yield a field, and the fields of its value where that is itself a text in some notation."""
    yield field
    start = field.value.lstrip(_SPACE)[:1]
    is_query = bool(field.path) and field.path[-1] == "query" and "(" in field.value
    if depth < _MOST_DEPTH and (is_query or (start and start in '{[<"')):
        for path, value in _fields(field.value, [b"application/json"], depth + 1):
            yield Field((*field.path, *path), value)


# JSON, and what is like it


class _Members(list[tuple[str, Any]]):
    """The members of a JSON object, with those of equal names."""


def _json(text: str) -> Iterator[Field]:
    try:
        document = _decoder.decode(text.strip(_SPACE))
    except (ValueError, RecursionError):
        return _lenient(text)
    return _walked(document)


def _walked(document: Any) -> Iterator[Field]:
    waiting: list[tuple[tuple[str, ...], Any]] = [((), document)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, _Members):
            waiting += [((*path, name), member) for name, member in reversed(value)]
        elif isinstance(value, dict):
            waiting += [((*path, str(name)), member) for name, member in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(path, member) for member in reversed(value)]
        elif isinstance(value, (bytes, bytearray)):
            yield Field(path, value.decode("utf-8", "replace"))
        elif value is not None:
            yield Field(path, str(value).lower() if isinstance(value, bool) else str(value))


def _lenient(text: str) -> Iterator[Field]:
    """Read names and values of JSON with faults or extensions, of GraphQL, of lines such as `name: value`.

    A variable of GraphQL is a name for what it stands for: `(username: $u)` gives the field `$alias`, `u` the value
    `username`.
    """
    open_names: list[str | None] = []
    in_list: list[bool] = []
    name = last = None
    for number, match in enumerate(_LEXEME.finditer(text)):
        if number > _MOST_LEXEMES:
            raise Unsearchable
        mark, scalar = match["mark"], _scalar(match)
        if scalar is not None:
            if name is not None or (in_list and in_list[-1]):
                path = (*filter(None, open_names), *([name] if name else []))
                yield from _named_scalar(path, scalar, quoted=match["word"] is None)
            last = scalar
        elif mark is not None and mark in ":=":
            name, last = (last if name is None else name), None
        elif mark is not None and mark in "{[(":
            open_names.append(name if name is not None else last if mark == "(" else None)
            in_list.append(mark == "[")
            name = last = None
        elif mark is not None and mark in "}])":
            if open_names:
                open_names.pop()
                in_list.pop()
            name = last = None
        elif mark is not None and (mark != "\n" or (not open_names and last is not None)):
            # A line ends a pair outside of brackets only, and not between a name and its value.
            name = last = None


def _named_scalar(path: tuple[str, ...], scalar: str, *, quoted: bool) -> Iterator[Field]:
    if quoted:
        yield Field(path, scalar)
    elif scalar.startswith("$"):
        if path:
            yield Field(("$alias", scalar.removeprefix("$")), path[-1])
    elif _NUMBER.fullmatch(scalar):
        yield Field(path, _number(scalar))
    elif scalar != "null" and not (path and path[-1].startswith("$")):
        # Behind `$u:` in GraphQL stands a type.
        yield Field(path, scalar)


def _number(literal: str) -> str:
    """Write a number in one way: `1.5e1`, `15.0` and `15` are the same user name to a backend."""
    if literal.lstrip("-").isdigit():
        return literal
    value = float(literal)
    return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)


_decoder: Final = json.JSONDecoder(
    object_pairs_hook=_Members, parse_int=str, parse_float=_number, parse_constant=str, strict=False
)


def _scalar(match: re.Match[str]) -> str | None:
    if match["word"] is not None:
        return match["word"]
    quoted = match["double"] or match["single"]
    return None if quoted is None else _ESCAPE.sub(_unescaped, quoted[1:].removesuffix(quoted[0]))


def _unescaped(match: re.Match[str]) -> str:
    digits = match[1] or match[2] or match[3]
    if digits is None:
        return _ESCAPED.get(match[4], match[4])
    return chr(min(int(digits, 16), 0x10FFFF))


# Forms


def _form(text: str) -> Iterator[Field]:
    """Read the pairs of a form or a query. `text` has one character for each byte."""
    pairs = text.split("&")
    if ";" in text:
        # Some frameworks separate pairs by semicolons too.
        pairs += [part for pair in pairs if ";" in pair for part in pair.split(";")]
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if equals:
            yield Field(_path(_percent_decoded(name)), _percent_decoded(value))


def _percent_decoded(text: str) -> str:
    return unquote_to_bytes(text.replace("+", " ").encode("latin-1")).decode("utf-8", "replace")


def _path(name: str) -> tuple[str, ...]:
    """Split `user[email]`, as PHP and Rails do."""
    return tuple(part for part in _BRACKETS.split(name.strip(_SPACE)) if part)


def _parts(octets: bytes) -> Iterator[Field]:
    """Read the parts of a multipart body, in the transfer coding and the character set of each."""
    pieces = _BOUNDARY.split(octets)
    if len(pieces) > _MOST_PARTS:
        raise Unsearchable
    for piece in pieces:
        head, *contents = _HEAD_END.split(b"\r\n" + piece.partition(b"\n")[2], maxsplit=1)
        head = _FOLD.sub(b" ", head)
        names = _part_names(head) if b"content-disposition" in head.lower() else []
        if not (names and contents):
            continue
        octets_of = [contents[0], *_transferred(head, contents[0])]
        for text in dict.fromkeys(text for each in octets_of for text in decoded(each, [head])):
            for name in names:
                yield from _with_nested(Field(_path(name), text), 0)


def _part_names(head: bytes) -> list[str]:
    """Read the name of a part: quoted or not, percent-encoded (RFC 8187), in pieces (RFC 2231)."""
    names: list[bytes] = []
    pieces: list[bytes] = []
    for match in _PART_NAME.finditer(head):
        value = match["quoted"] if match["quoted"] is not None else match["plain"]
        if match["more"]:
            pieces.append(unquote_to_bytes(value.rpartition(b"'")[2]))
        names.append(re.sub(rb"\\(.)", rb"\1", unquote_to_bytes(value)))
    return [name.decode("utf-8", "replace") for name in (*names, *([b"".join(pieces)] if pieces else []))]


def _transferred(head: bytes, content: bytes) -> Iterator[bytes]:
    coding = _PART_CODING.search(head)
    if coding is None:
        return
    if coding[1].lower() != b"base64":
        yield quopri.decodestring(content)
        return
    try:
        yield binascii.a2b_base64(content)
    except binascii.Error:
        raise Unsearchable from None


# XML


def _xml(text: str) -> Iterator[Field]:
    """Read elements and attributes by local name, entities and CDATA resolved: as XML, else as HTML is read."""
    reader = _XmlReader()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(text.lstrip(_SPACE).encode("utf-8", "replace"), True)
    except expat.ExpatError:
        return _markup(text)
    return iter(reader.found)


class _XmlReader:
    """Collects the fields of an XML document."""

    def __init__(self) -> None:
        self.found: list[Field] = []
        self._path: list[str] = []
        self._texts: list[list[str]] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(tag.rpartition(":")[2])
        self._texts.append([])
        for name, value in attributes.items():
            self.found.append(Field((*self._path, name.rpartition(":")[2]), value))

    def end(self, _: str) -> None:
        content = "".join(self._texts.pop())
        if content.strip(_SPACE):
            self.found.append(Field(tuple(self._path), content))
        self._path.pop()
        if len(self.found) > _MOST_FIELDS:
            raise Unsearchable

    def text(self, content: str) -> None:
        if self._texts:
            self._texts[-1].append(content)


def _markup(text: str) -> Iterator[Field]:
    """Read tags, their attributes and the text behind them in what is not well-formed."""
    plain = _CDATA.sub(lambda match: html.escape(match[1]), _COMMENT.sub("", text))
    for number, (kind, tag, content) in enumerate(_TAG.findall(plain)):
        if number > _MOST_FIELDS:
            raise Unsearchable
        name = tag.split(maxsplit=1)[0].rstrip("/").rpartition(":")[2] if tag.strip() else ""
        if kind in {"/", "?", "!"}:
            continue
        for path, value in _lenient(tag):
            yield Field((name, *path), html.unescape(value))
        yield Field((name,), html.unescape(content))


# MessagePack


def _message_pack(octets: bytes) -> Iterator[Field]:
    try:
        document = msgspec.msgpack.decode(octets)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise Unsearchable from None
    return _walked(document)
