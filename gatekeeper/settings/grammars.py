"""Parsers of structured settings: addresses, URLs, networks, path patterns, header names.

Each parser takes one text without surrounding spaces and raises `ValueError` with a verb phrase (see `types`). All run
in linear time. Operators write no regular expressions, so no setting can be a slow or an unanchored one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from gatekeeper.http.grammar import TOKEN_CHAR
from gatekeeper.settings.types import parse_duration

# Names of header fields, and of cookies (RFC 6265 section 4.1.1).
_TOKEN = re.compile(f"{TOKEN_CHAR.decode()}{{1,128}}")
_QUERY_NAME = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?")
# `sun_path` holds 108 bytes, the final zero included (unix(7)).
_SOCKET_PATH_BYTES = 107

ALGORITHMS = {
    "hmac": ("HS256", "HS384", "HS512"),
    "public": (
        *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
        *("ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448"),
    ),
}

# Claims that Gatekeeper sets in the tokens it issues, and claims that tell the kind of a token (rule 5.1).
OWN_CLAIMS = (
    *("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "sid", "auth_time"),
    *("token_type", "token_use", "type", "typ"),
)

PATTERN_WORDS = (
    "patterns separated by commas, such as /health, /static/*, */docs or GET /docs/*; or none for no path at all"
)
LOGIN_CHECK_WORDS = "a path of the backend, such as /internal/login, or an http:// or https:// URL without a user"

# Gatekeeper or HTTP uses these headers: an identity in one of them would break the request or be lost.
_RESERVED_HEADERS = frozenset(
    {
        *("authorization", "connection", "content-encoding", "content-length", "content-type", "cookie", "date"),
        *("expect", "host", "keep-alive", "origin", "proxy-authorization", "proxy-connection", "range", "te"),
        *("trailer", "transfer-encoding", "upgrade", "via", "forwarded", "x-forwarded-for", "x-forwarded-host"),
        *("x-forwarded-port", "x-forwarded-prefix", "x-forwarded-proto", "x-http-method-override"),
        *("x-original-url", "x-real-ip", "x-request-id", "x-rewrite-url"),
    }
)


@dataclass(frozen=True)
class ListenAddress:
    """An address to listen on: `host` and `port` (0: any free port), or else the `path` of a Unix socket, or `fd`, the
    number of an inherited socket."""

    host: str | None = None
    port: int | None = None
    path: str | None = None
    fd: int | None = None

    def __str__(self) -> str:
        if self.fd is not None:
            return f"fd:{self.fd}"
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in (self.host or "") else f"{self.host}:{self.port}"


class IdentityHeader(NamedTuple):
    """A header for the backend. `kind`: `sub`, `session`, `roles` or `claim`; with the last, `claim` is its name."""

    name: str
    kind: str
    claim: str | None


def parse_listen(text: str) -> ListenAddress:
    """Parse `host:port`, `[v6]:port`, `unix:/path` or `fd:3`."""
    if inherited := re.fullmatch(r"fd:([0-9]{1,9})", text):
        if int(inherited[1]) in (1, 2):
            raise ValueError("is where the logs go")
        return ListenAddress(fd=int(inherited[1]))
    if text.startswith("unix:"):
        return ListenAddress(path=_socket_path(text.removeprefix("unix:")))
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("has no port from 0 to 65535 after its last colon")
    if not host or host == "*":
        raise ValueError(f"names no host (write 0.0.0.0:{port} or [::]:{port} for every address)")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("has an IPv6 address without brackets")
    _check_host(host)
    return ListenAddress(host=host, port=int(port))


def parse_upstream(text: str) -> str:
    """Parse `http://host[:port]`, `https://…` or `http+unix:///path`. A single slash at the end is dropped."""
    scheme, _, rest = text.partition("://")
    if scheme.lower() == "http+unix":
        if not rest.startswith("/"):
            raise ValueError("does not have three slashes before the socket's path")
        return f"http+unix://{_socket_path(rest)}"
    parts = split_url(text, ("http", "https"))
    if parts.path not in ("", "/"):
        raise ValueError("has a path")
    if "?" in text:
        raise ValueError("has a query")
    return text.removesuffix("/")


def parse_key_set_url(text: str) -> str:
    """Parse an http or https URL without a user."""
    split_url(text, ("http", "https"))
    return text


def parse_login_check(text: str) -> str:
    """Parse a path of the backend, or an http or https URL without a user."""
    if not text.startswith("/"):
        split_url(text, ("http", "https"))
        return text
    if "?" in text or "#" in text:
        raise ValueError("has a query or a fragment")
    if "*" in text:
        raise ValueError("is a pattern, not a path")
    _check_path(text)
    return text


def parse_page(text: str) -> str:
    """Parse where people are sent: a path of this origin, or an https URL."""
    if text.startswith("/"):
        _check_path(text.partition("?")[0])
        return text
    split_url(text, ("https",))
    return text


def split_url(text: str, schemes: tuple[str, ...], *, userinfo: bool = False) -> SplitResult:
    """Split a URL that has one of `schemes`, a host, no fragment, and a user part only where `userinfo` is true."""
    # `urlsplit` drops tabs and newlines silently, and accepts spaces in a host.
    if re.search(r"[\x00-\x20\x7f-\U0010ffff\\]", text):
        raise ValueError("has a space, a backslash, or a character outside ASCII")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL with a port from 1 to 65535") from None
    if parts.scheme not in schemes or not text[len(parts.scheme) :].startswith("://"):
        raise ValueError(f"does not start with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if "@" in parts.netloc and not userinfo:
        raise ValueError("has a user or password")
    if "#" in text:
        raise ValueError("has a fragment")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("has no port from 1 to 65535 after its colon")
    _check_host(parts.hostname or "")
    return parts


def is_loopback(host: str | None) -> bool:
    """Return true where a host name or address certainly means this host."""
    if host is None:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Parse a network in CIDR form, or a single address; never all addresses."""
    if text == "*":
        raise ValueError("lets every client choose its own address")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is not a network") from None
    if network.prefixlen == 0:
        raise ValueError("lets every client choose its own address")
    if "/" in text and str(ip_address(text.partition("/")[0])) != str(network.network_address):
        raise ValueError(f"is an address inside {network} (write the network, or the address alone)")
    return network


def parse_pattern(text: str) -> str:
    """Parse `/exact`, `/prefix/*` or `*/glob`, optionally after a method in capitals and one space."""
    method, space, pattern = text.rpartition(" ")
    if space and not re.fullmatch(r"[A-Z]{1,20}(?:-[A-Z]{1,20})?", method):
        raise ValueError("does not have a method in capitals and one space before its path")
    if not pattern.startswith(("/", "*")):
        raise ValueError("does not start with / or *")
    if "?" in pattern or "#" in pattern:
        raise ValueError("has a query or a fragment")
    if re.search(r"[/(]\.\*|\$$", pattern) or re.search(r"[\[\]{}|^\\]", pattern):
        raise ValueError("looks like a regular expression")
    # Paths are also matched with their dot segments resolved (rule 3.2), so a pattern with one would never match.
    _check_path(pattern)
    return text


def _check_path(path: str) -> None:
    if not re.fullmatch(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%(?!00)[0-9A-Fa-f]{2})+", path):
        raise ValueError("has a character that is not allowed in a path (percent-encode it)")
    if re.search(r"//|/\.\.?(?:/|$)", path):
        raise ValueError("has a doubled slash or a dot segment")


def parse_credential_pattern(text: str) -> str:
    """Parse a pattern of login, refresh or logout paths. Requests for them pass unchecked, so it must not match all."""
    if matches_everything(parse_pattern(text)):
        raise ValueError("lets every request pass unchecked")
    return text


def matches_everything(pattern: str) -> bool:
    """Return true for a pattern that matches every path, such as `*`, `/*` or `GET /*`."""
    return pattern.rpartition(" ")[2].strip("*") in ("", "/") and "*" in pattern


def parse_identity_header(text: str) -> IdentityHeader:
    """Parse `Header-Name=kind`; the kind is `sub`, `session`, `roles` or `claim:<name>`."""
    name, equals, kind = text.partition("=")
    if not equals:
        raise ValueError("has no =")
    if not _TOKEN.fullmatch(name):
        raise ValueError("does not start with a header name")
    folded = fold_header(name)
    if folded in _RESERVED_HEADERS or folded.startswith("x-gatekeeper-"):
        raise ValueError("names a header that Gatekeeper or HTTP itself uses")
    if kind in ("sub", "session", "roles"):
        return IdentityHeader(name, kind, None)
    if kind.startswith("claim:") and kind != "claim:":
        return IdentityHeader(name, "claim", kind.removeprefix("claim:"))
    raise ValueError("does not end in sub, session, roles or claim:<name>")


def parse_address_header(text: str) -> str:
    """Parse the name of a header, in lower case."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("is not the name of a header")
    return text.lower()


def fold_header(name: str) -> str:
    """Normalise a header name as lenient backends do: `X_User.Id` is `x-user-id` to CGI, WSGI and PHP."""
    return re.sub(r"[_.]", "-", name.lower())


def parse_token_source(text: str) -> str:
    """Parse `header`, `subprotocol`, `scheme:NAME`, `header:NAME`, `cookie:NAME` or `query:NAME`."""
    kind, colon, name = text.partition(":")
    if text in ("header", "subprotocol", "scheme:"):
        return text
    if not colon or kind not in ("scheme", "header", "cookie", "query"):
        raise ValueError("is not a token source")
    if not (_QUERY_NAME if kind == "query" else _TOKEN).fullmatch(name):
        raise ValueError("is not a token source")
    if kind == "scheme" and name.lower() == "bearer":
        raise ValueError("is the source header")
    if kind == "header" and ((folded := fold_header(name)) in _RESERVED_HEADERS or folded.startswith("x-gatekeeper-")):
        raise ValueError("names a header that Gatekeeper or HTTP itself uses")
    return text


def parse_token_place(text: str) -> str:
    """Parse a JSON pointer, `header:NAME` or `cookie:NAME`."""
    if text.startswith("/"):
        return parse_pointer(text)
    kind, colon, name = text.partition(":")
    if colon and kind in ("header", "cookie") and _TOKEN.fullmatch(name):
        return text
    raise ValueError("is neither a JSON pointer nor header:NAME nor cookie:NAME")


def parse_algorithm(text: str) -> str:
    """Parse the name of a JWS algorithm."""
    if text not in (*ALGORITHMS["hmac"], *ALGORITHMS["public"]):
        raise ValueError("is not an accepted algorithm")
    return text


def parse_error_body(text: str) -> str:
    """Parse a JSON template of an error body."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    return text


def parse_required_claim(text: str) -> tuple[str, str]:
    """Parse `name=value`: a claim, or a dotted path to it, and the value that it must have."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise ValueError("is not a claim and its value, such as type=access")
    if len(text) > 512:
        raise ValueError("has over 512 characters")
    return name.strip(), value.strip()


def parse_header_type(text: str) -> str:
    """Parse a `typ` of the header of a token, as a media type in lower case without `application/`."""
    name = text.lower().removeprefix("application/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}", name):
        raise ValueError("is not a media type, such as access or example+jwt")
    if name in ("logout+jwt", "dpop+jwt", "secevent+jwt"):
        raise ValueError("is that of a token which is never an access token")
    return name


def parse_exemption(text: str) -> str:
    """Parse a user, or `role:<name>`."""
    if text == "role:":
        raise ValueError("names no role")
    if len(text.encode()) > 512:
        raise ValueError("has over 512 bytes")
    return text


def parse_dotted_claim(text: str) -> str:
    """Parse the name of a claim, or a path of names joined by dots."""
    if "" in text.split("."):
        raise ValueError("has an empty part between its dots")
    return text


def parse_login_claim(text: str) -> str:
    """Parse the name of a claim that a login check may supply."""
    if text in OWN_CLAIMS:
        raise ValueError("is reserved for Gatekeeper")
    if len(text) > 256:
        raise ValueError("has over 256 characters")
    return text


def parse_pointer(text: str) -> str:
    """Parse a JSON pointer (RFC 6901 section 3) to a member. The empty pointer means the document, so it is refused."""
    if not text.startswith("/"):
        raise ValueError("does not start with /")
    if re.search(r"~(?![01])", text):
        raise ValueError("has a ~ that is neither ~0 (for ~) nor ~1 (for /)")
    if len(text) > 512:
        raise ValueError("has over 512 characters")
    return text


def parse_key_prefix(text: str) -> str:
    """Parse the prefix of the keys in the store."""
    # Braces would change the hash slot of a user's keys; the other characters are wildcards of KEYS and SCAN.
    if not re.fullmatch(r"[!-~]{1,64}", text) or re.search(r"[{}*?\[\]\\]", text):
        raise ValueError("has a brace, a wildcard, a space, or over 64 characters")
    return text


def _socket_path(path: str) -> str:
    if not path.startswith("/") or path == "/":
        raise ValueError("does not name a socket by its absolute path")
    if len(path.encode()) > _SOCKET_PATH_BYTES:
        raise ValueError(f"has a socket path of over {_SOCKET_PATH_BYTES} bytes")
    if re.search(r"[?#%]", path):
        raise ValueError("has a query, a fragment or percent-encoding in its socket path")
    return path


def _check_host(host: str) -> None:
    try:
        ip_address(host)
    except ValueError:
        # Digits and dots alone are a mistyped address: no host name ends in a number (RFC 1123 section 2.1).
        if not _HOST_NAME.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
            raise ValueError("has no host name or address") from None


def parse_origin(text: str) -> str:
    """Parse an origin as browsers send it (RFC 6454 section 6.2): scheme, host, and the port unless the default."""
    if text == "*":
        raise ValueError("lets every page read the responses to a signed-in user")
    parts = split_url(text, ("http", "https"))
    default_port = {"http": 80, "https": 443}[parts.scheme]
    if parts.path or "?" in text or text != text.lower() or parts.port == default_port:
        raise ValueError("is not in the form that browsers send (lower case, no path, no query, no default port)")
    return text


def parse_rate(text: str) -> tuple[int, float]:
    """Parse `50/s` or `10/15m` into a number of calls and the seconds of the period."""
    match = re.fullmatch(r"([0-9]{1,7})/([0-9]*)(s|m|h)", text)
    if match is None or int(match[1]) < 1:
        raise ValueError("is not a rate")
    number, count, unit = match.groups()
    seconds = int(count or 1) * {"s": 1, "m": 60, "h": 3600}[unit]
    if not 0 < seconds <= 86400:
        raise ValueError("has a period that is not from 1s to 24h")
    return int(number), float(seconds)


def parse_retention(text: str) -> tuple[int | None, float | None]:
    """Parse a number of events, or a duration with its unit: (events, None) or (None, seconds)."""
    if re.fullmatch(r"[0-9]{1,10}", text):
        if not 1 <= int(text) <= 1_000_000_000:
            raise ValueError("is not a number of events from 1 to 1000000000")
        return int(text), None
    if text[-1:].isdigit():
        raise ValueError("is neither a whole number nor a duration with its unit")
    seconds = parse_duration(text)
    if not 1 <= seconds <= 3650 * 86_400:
        raise ValueError("is not a duration from 1s to 3650d")
    return None, seconds


def parse_failure_status(text: str) -> int:
    """Parse a status by which a backend refuses a login."""
    if not re.fullmatch(r"[2-5][0-9]{2}", text):
        raise ValueError("is not a status from 200 to 599")
    return int(text)


def parse_field_name(text: str) -> str:
    """Parse the name of a member of a body, without the names of the objects around it."""
    if not re.fullmatch(r"[^\s\[\]{}\"'=:&;<>/]{1,128}", text) or not re.search(r"\w", text):
        raise ValueError("is not the name of a member, such as username")
    return text


def parse_geo(text: str) -> str:
    """Parse `off`, `country`, or the path of an existing file."""
    if text in {"off", "country"}:
        return text
    if not Path(text).is_file():
        raise ValueError(
            "is not a file" if "/" in text or text.endswith(".mmdb") else "is not one of the accepted words"
        )
    return text
