"""Readers of settings that are secrets or contain one. They mask everything that must not be shown."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import SecretStr

from gatekeeper.settings.grammars import split_url
from gatekeeper.settings.types import MASK, SettingReader, is_path, is_unicode, read_file, single_line

# RFC 7518 section 3.2: a key as long as the hash. 32 bytes is that of HS256; rule 2.4 takes it for all three.
_SECRET_BYTES = 32

# Placeholders of examples (config/gatekeeper.env among them), compared without case and punctuation.
_PLACEHOLDERS = (
    *("changeme", "changethis", "changeit", "replaceme", "replacethis", "replacewith", "placeholder"),
    *("yoursecret", "yoursupersecret", "yourjwtsecret", "your256bit", "insertsecret", "examplesecret"),
)
# Published secrets that are long enough to pass: those of jwt.io and of the FastAPI tutorial.
_PUBLISHED_SECRETS = frozenset(
    {
        "a-string-secret-at-least-256-bits-long",
        "a-valid-string-secret-that-is-at-least-512-bits-long-which-is-very-long",
        "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    }
)

_PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\s[A-Za-z0-9+/=\s]+-----END \1-----")
_KEY_LABELS = ("PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE")
# PKCS#8, and the two older forms that openssl still writes; it also writes the curve in front of an EC key.
_PRIVATE_KEY_LABELS = ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY")
_EC_PARAMETERS = "EC PARAMETERS"

# Without a colon, which ends the id, and without characters that the Basic scheme or a form would encode.
_CLIENT_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")


@dataclass(frozen=True, kw_only=True)
class SecretReader(SettingReader):
    """Reads a setting of which no part is ever shown."""

    secret = True

    def show(self, text: str) -> str:
        return MASK

    def show_refused(self, text: str) -> str:
        return MASK if text.strip() else "''"


@dataclass(frozen=True, kw_only=True)
class SecretLinesReader(SecretReader):
    """Reads secrets, one a line: a comma or a space may be part of a secret."""

    def read(self, value: object) -> object:
        if isinstance(value, (tuple, list)):
            # The validation of the field refuses values of another type.
            if not value:
                return ()
            texts = [self._text(item) for item in value]
            return self._values(texts) if all(isinstance(text, str) for text in texts) else value
        return super().read(value)

    def read_text(self, text: str) -> object:
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        return self._values([line for line in lines if line])

    def _text(self, item: object) -> Any:
        return item.get_secret_value() if isinstance(item, SecretStr) else item

    def _values(self, texts: list[str]) -> tuple[object, ...]:
        """Return the values of the field for these texts. Raises `ValueError`."""
        if not texts:
            raise ValueError("is empty")
        for number, text in enumerate(texts, 1):
            if why := self._fault(text):
                raise ValueError(why if len(texts) == 1 else f"in line {number} of {len(texts)} {why}")
        return tuple(SecretStr(text) for text in texts)

    def _fault(self, text: str) -> str | None:
        """Return a verb phrase where a text is refused, else `None`."""
        return _weakness(text)


_HMAC_WORDS = f"secrets of at least {_SECRET_BYTES} bytes, as text or as base64:…, one a line"
_BASE64_PREFIX = "base64:"


def _is_base64(text: str) -> bool:
    # In any case: as it stands, `BASE64:…` would be another key than the one that was meant.
    return text[: len(_BASE64_PREFIX)].lower() == _BASE64_PREFIX


def secret_octets(text: str) -> bytes:
    """Return the bytes of an HMAC secret: its UTF-8, or after `base64:` what it decodes to. Raises `ValueError`."""
    if not _is_base64(text):
        return text.encode()
    encoded = text[len(_BASE64_PREFIX) :].rstrip("=")
    if not encoded or not re.fullmatch(r"[A-Za-z0-9+/]+|[A-Za-z0-9_-]+", encoded) or len(encoded) % 4 == 1:
        raise ValueError("is not base64 after its prefix")
    return base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_" if set("-_") & set(encoded) else None)


def hmac_weakness(text: str) -> str | None:
    """Return a verb phrase where a text is no HMAC secret, else `None`. The length is for `conflicts` to judge, by
    `JWT_SECRET_FLOOR`."""
    try:
        octets = secret_octets(text)
    except (ValueError, UnicodeError) as error:
        return str(error) if _is_base64(text) else _weakness(text, least=0)
    if not _is_base64(text):
        return _weakness(text, least=0)
    decoded = octets.decode("latin-1")
    return _weakness(decoded, least=0) if decoded.isascii() and decoded.isprintable() else _repetition(decoded)


@dataclass(frozen=True, kw_only=True)
class HmacSecretsReader(SecretLinesReader):
    """Reads HMAC secrets."""

    def _fault(self, text: str) -> str | None:
        return hmac_weakness(text)

    def read_text(self, text: str) -> object:
        if "-----BEGIN" in text:
            raise ValueError("holds a PEM key (a public key belongs in GATEKEEPER_JWT_PUBLIC_KEY)")
        if _is_jwk(text):
            raise ValueError(_JWK_WHY)
        return super().read_text(text)


def hmac_secret_reader() -> SettingReader:
    """The reader of HMAC secrets."""
    accepted = f"{_HMAC_WORDS}, such as `openssl rand -base64 48` makes"
    return HmacSecretsReader(parse=lambda text: text, accepted=accepted)


@dataclass(frozen=True, kw_only=True)
class SigningKeysReader(SecretLinesReader):
    """Reads either HMAC secrets, or PEM private keys one after another."""

    def read_text(self, text: str) -> object:
        if is_pem(text):
            return _private_keys(text.replace("\\n", "\n"))
        if _is_jwk(text):
            raise ValueError("is a JSON Web Key, which is not supported (write it as PEM)")
        return super().read_text(text)

    def _values(self, texts: list[str]) -> tuple[object, ...]:
        # Python code gives one block an item. A secret among PEM keys is refused there as text beside them.
        return _private_keys("\n".join(texts)) if any(map(is_pem, texts)) else super()._values(texts)

    def _fault(self, text: str) -> str | None:
        if _names_key_file(text):
            return "is a path (which belongs in GATEKEEPER_SIGNING_KEY_FILE)"
        return hmac_weakness(text)


def signing_key_reader() -> SettingReader:
    """The reader of signing keys."""
    accepted = f"{_HMAC_WORDS}, or private keys as PEM without a password ({', '.join(_PRIVATE_KEY_LABELS)})"
    return SigningKeysReader(parse=lambda text: text, accepted=accepted)


class IntrospectionClient(NamedTuple):
    """A client that may introspect and revoke tokens: its id and its secret."""

    id: str
    secret: SecretStr


@dataclass(frozen=True, kw_only=True)
class IntrospectionClientsReader(SecretLinesReader):
    """Reads clients as `id:secret`, one a line; the secret may contain colons."""

    def _text(self, item: object) -> Any:
        # The validation of the field would accept looser forms, without the rules below.
        if not isinstance(item, (str, IntrospectionClient)):
            raise ValueError("has an item that is not a client")  # noqa: TRY004 - as for every other value
        return item if isinstance(item, str) else f"{item.id}:{super()._text(item.secret)}"

    def _values(self, texts: list[str]) -> tuple[object, ...]:
        super()._values(texts)
        pairs = [text.partition(":") for text in texts]
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise ValueError("has the same id twice")
        return tuple(IntrospectionClient(name, SecretStr(secret)) for name, _, secret in pairs)

    def _fault(self, text: str) -> str | None:
        name, colon, secret = text.partition(":")
        if not colon:
            return "has no colon between an id and a secret"
        if not _CLIENT_ID.fullmatch(name):
            return "has an id that is not 1 to 128 characters of A-Z a-z 0-9 . _ ~ -"
        if not re.fullmatch(r"[!-~]*", secret):
            return "has a secret with a space or a character outside printable ASCII"
        why = super()._fault(secret)
        return f"has a secret that {why}" if why else None


def introspection_client_reader() -> SettingReader:
    """The reader of introspection clients."""
    accepted = (
        f"id:secret, one a line, each id once, the secrets of at least {_SECRET_BYTES} printable ASCII characters"
    )
    return IntrospectionClientsReader(parse=lambda text: text, accepted=accepted)


_JWK_WHY = "is a JSON Web Key (a key set is read from GATEKEEPER_JWKS_URL)"


def _is_jwk(text: str) -> bool:
    return text.lstrip().startswith(("{", "[")) and re.search(r'"(?:kty|keys)"\s*:', text) is not None


def _weakness(secret: str, *, least: int = _SECRET_BYTES) -> str | None:
    """Return a verb phrase where a text is too weak for a secret or is none, else `None`."""
    if not is_unicode(secret):
        return "is not UTF-8"
    if "-----BEGIN" in secret or secret.startswith(("ssh-", "ecdsa-sha2-")):
        return "is a public or private key, not a secret"
    if _is_jwk(secret):
        return _JWK_WHY
    if "\n" in secret:
        return "has a line break"
    if secret != secret.strip():
        return "starts or ends with a space"
    letters = re.sub(r"[^a-z0-9]", "", secret.lower())
    if secret in _PUBLISHED_SECRETS or any(word in letters for word in _PLACEHOLDERS):
        return "is a well-known placeholder"
    if why := _repetition(secret):
        return why
    if (size := len(secret.encode())) < least:
        return f"has {size} bytes, fewer than {least}"
    return None


def _repetition(secret: str) -> str | None:
    # A text repeats its first n characters where it equals itself shifted by n.
    if any(secret[size:] == secret[:-size] for size in range(1, min(9, len(secret)))):
        return "repeats a few characters"
    return None


@dataclass(frozen=True, kw_only=True)
class PublicKeyReader(SecretReader):
    """Reads PEM public keys, or the path of a file of them. The text may be a private key by mistake, so only an
    unmistakable path is shown."""

    def read_text(self, text: str) -> object:
        # Many tools can only write PEM in one line, with `\n` for the line breaks.
        text = text.replace("\\n", "\n").strip()
        if "-----BEGIN" not in text:
            text = read_file(Path(single_line(text)))
        return _public_keys(text)

    def show(self, text: str) -> str:
        return text.strip() if is_path(text) else f"PEM, {text.count('-----BEGIN')} key(s)"

    def show_refused(self, text: str) -> str:
        return repr(text[:120]) if is_path(text) else super().show_refused(text)


def public_key_reader() -> SettingReader:
    """The reader of public keys."""
    return PublicKeyReader(
        parse=lambda text: text, accepted="public keys or certificates as PEM, or the path of a file of them"
    )


def is_pem(text: str) -> bool:
    """Return true where a text is meant to be PEM, valid or not."""
    return "-----BEGIN" in text


def split_pem(text: str) -> tuple[str, ...]:
    """Split a text into its PEM blocks."""
    return tuple(match.group() for match in _PEM_BLOCK.finditer(text))


def _public_keys(text: str) -> str:
    labels = [match.group(1) for match in _PEM_BLOCK.finditer(text)]
    if "PRIVATE KEY" in text:
        raise ValueError("holds a private key (give its public half only)")
    if not labels or len(labels) != text.count("-----BEGIN") or not set(labels) <= set(_KEY_LABELS):
        raise ValueError("is neither PEM public keys nor the path of a file of them")
    return "\n".join(split_pem(text)) + "\n"


def _private_keys(text: str) -> tuple[SecretStr, ...]:
    """Split a text into its PEM private keys. Their content is checked when they are loaded (`tokens.signing_keys`)."""
    blocks = list(_PEM_BLOCK.finditer(text))
    labels = {block.group(1) for block in blocks}
    if "ENCRYPTED" in text:
        raise ValueError("holds an encrypted private key (decrypt it: no password can be given)")
    if not labels.isdisjoint(_KEY_LABELS):
        raise ValueError("holds a public key or a certificate, and only private keys sign")
    keys = [block.group() for block in blocks if block.group(1) != _EC_PARAMETERS]
    if not keys or len(blocks) != text.count("-----BEGIN") or not labels <= {*_PRIVATE_KEY_LABELS, _EC_PARAMETERS}:
        raise ValueError("holds PEM that is not a private key of an accepted form")
    # Else a secret among the keys, or a key that lost a line, would be dropped silently.
    if _PEM_BLOCK.sub("", text).strip():
        raise ValueError("has text beside its PEM keys")
    return tuple(SecretStr(key) for key in keys)


def _names_key_file(text: str) -> bool:
    """Return true where a text is a file's path and not a key. A random secret may start with a slash too, but it does
    not end in `.pem` or `.key` and names no existing file."""
    try:
        return is_path(text) and (text.endswith((".pem", ".key")) or Path(text).is_file())
    except OSError:  # too long for a file name
        return False


@dataclass(frozen=True, kw_only=True)
class StoreUrlReader(SecretReader):
    """Reads the URL of the store and masks the user and the password in it."""

    def show(self, text: str) -> str:
        if several := _SEVERAL_SERVERS.fullmatch(text.strip()):
            masked = f"{MASK}@" if several["user"] else ""
            return f"{several['scheme']}://{masked}{several['hosts']}{several['path']}"
        parts = urlsplit(text.strip())
        host = parts.netloc.rpartition("@")[2]
        query = re.sub(r"((?:username|password)=)[^&]*", rf"\1{MASK}", parts.query)
        shown = parts._replace(netloc=f"{MASK}@{host}" if "@" in parts.netloc else host, query=query)
        # `urlunsplit` writes `unix:/path` for a URL without a host.
        return f"{shown.scheme}://{shown.netloc}{shown.path}{'?' if query else ''}{query}"

    def show_refused(self, text: str) -> str:
        scheme = re.match(r"\s*([a-z][a-z0-9+.-]*)://", text)
        return f"'{scheme.group(1)}://{MASK}'" if scheme else super().show_refused(text)


def store_url_reader() -> SettingReader:
    """The reader of the store's URL."""
    return StoreUrlReader(
        parse=_store_url,
        accepted="redis://[[user]:password@]host[:port][/db], unix://[[user]:password@]/path[?db=0], "
        "redis+sentinel://[[user]:password@]host[:port],host[:port]/service[/db] or "
        "redis+cluster://[[user]:password@]host[:port],host[:port]; rediss instead of redis for TLS; "
        "a password is percent-encoded",
    )


# A list of sentinels or cluster nodes, which `urlsplit` cannot split.
_SEVERAL_SERVERS = re.compile(
    r"(?P<scheme>(?P<first>rediss?)\+(?P<kind>sentinel|cluster))://(?P<user>[^/]*@)?(?P<hosts>[^/@?]*)(?P<path>/[^?]*)?"
    r"(?P<query>\?.*)?"
)
_SERVICE = re.compile(r"/[A-Za-z0-9._-]{1,128}(?:/[0-9]{0,5})?")


def store_servers(url: str) -> list[SplitResult]:
    """Split the store's URL into one URL a server, each with the user and the password.

    The path is left out where there are several. Raises `ValueError`.
    """
    several = _SEVERAL_SERVERS.fullmatch(url)
    if several is None:
        return [urlsplit(url)]
    first, user = several["first"], several["user"] or ""
    return [split_url(f"{first}://{user}{host}", (first,), userinfo=True) for host in several["hosts"].split(",")]


def _store_url(text: str) -> SecretStr:
    if several := _SEVERAL_SERVERS.fullmatch(text):
        _check_several_servers(text, several)
        return SecretStr(text)
    scheme, _, rest = text.partition("://")
    if scheme == "unix":
        parts = urlsplit(text)
        if parts.netloc and not parts.netloc.endswith("@"):
            raise ValueError("does not have three slashes before the socket's path")
        if len(parts.path) < 2 or "#" in rest:
            raise ValueError("does not name a socket by its absolute path")
    else:
        parts = split_url(text, ("redis", "rediss"), userinfo=True)
        if not re.fullmatch(r"(?:/[0-9]{0,5})?", parts.path):
            raise ValueError("has a path that is not a database number")
    _check_query(parts)
    return SecretStr(text)


def _check_several_servers(text: str, several: re.Match[str]) -> None:
    if several["query"] or "#" in text:
        raise ValueError("has options or a fragment")
    path = several["path"] or ""
    if several["kind"] == "sentinel" and not _SERVICE.fullmatch(path):
        raise ValueError("does not have /service, or /service and the number of a database, after the sentinels")
    if several["kind"] == "cluster" and path not in ("", "/", "/0"):
        raise ValueError("has a path, although a cluster has one database only")
    if not all(several["hosts"].split(",")):
        raise ValueError("has an empty item in its list of hosts")
    store_servers(text)


def _check_query(parts: SplitResult) -> None:
    # redis-py reads every argument of its client from here, `ssl_cert_reqs=none` and timeouts included.
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in ("db", "username", "password"):
            raise ValueError("has an option other than db, username and password")
        if name == "db" and not re.fullmatch(r"[0-9]{1,5}", value):
            raise ValueError("has a db that is not a number")
