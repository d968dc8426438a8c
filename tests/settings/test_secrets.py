"""Keys and secrets: the accepted forms, and no output that shows one."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import SecretStr, ValidationError

from gatekeeper.settings import IntrospectionClient, Settings, describe, load, warnings
from tests.settings.reading import (
    BASE,
    OTHER_SECRET,
    PEM,
    PRIVATE_KEY,
    PRIVATE_PEM,
    ROOT,
    SECRET,
    problem,
    problems,
    read,
)

EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_PEM = EC_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
EC_PEM = EC_KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
EC_PARAMETERS = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"


def test_algorithms_default_by_the_kind_of_key() -> None:
    assert load(BASE).algorithms == ("HS256",)
    assert load({"GATEKEEPER_JWT_PUBLIC_KEY": PEM}).algorithms == ("RS256", "ES256", "EdDSA")
    both = {"GATEKEEPER_JWKS_URL": "https://idp.example.com/jwks", "GATEKEEPER_JWT_PUBLIC_KEY": PEM}
    assert load(both).algorithms == ("RS256", "ES256", "EdDSA")
    assert load(BASE | {"GATEKEEPER_JWT_ALGORITHMS": "HS512,HS256"}).algorithms == ("HS512", "HS256")


@pytest.mark.parametrize("text", ["RS256", "HS256,RS256", "none", "hs256", "ES256K", "HS256,none", ","])
def test_algorithms_that_do_not_fit_a_secret_are_refused(text: str) -> None:  # C02
    assert problem("JWT_ALGORITHMS", text).startswith(f"GATEKEEPER_JWT_ALGORITHMS: read {text!r}, which ")


def test_hmac_algorithms_do_not_go_with_a_public_key() -> None:
    [line] = problems({"GATEKEEPER_JWT_PUBLIC_KEY": PEM, "GATEKEEPER_JWT_ALGORITHMS": "RS256,HS256"})
    assert "does not fit GATEKEEPER_JWT_PUBLIC_KEY; accepted: RS256" in line


@pytest.mark.parametrize("other", [{"GATEKEEPER_JWT_PUBLIC_KEY": PEM}, {"GATEKEEPER_JWKS_URL": "https://idp"}])
def test_a_secret_and_public_keys_together_are_a_problem(other: dict[str, str]) -> None:
    [line] = problems(BASE | other)
    assert line.startswith(f"GATEKEEPER_JWT_SECRET and {next(iter(other))}: set together; accepted: ")
    assert line in problems(other | {"GATEKEEPER_JWT_SECRET": "short"})


def test_several_secrets_are_written_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_bytes(f"{SECRET}\r\n{OTHER_SECRET}\r\n".encode())
    expected = (SECRET.encode(), OTHER_SECRET.encode())
    assert load({"GATEKEEPER_JWT_SECRET_FILE": str(file)}).hmac_secrets == expected
    assert load({"GATEKEEPER_JWT_SECRET": f"{SECRET}\n{OTHER_SECRET}"}).hmac_secrets == expected


@pytest.mark.parametrize(
    ("secret", "why"),
    [  # T28, C02
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("8 bytes!", "has 8 bytes, fewer than 32"),
        ("R5vQ8mZk2Xw7Lp4Tn9Bc3Hd6Jf1Gs0Y", "has 31 bytes"),
        ("changeme", "well-known placeholder"),
        ("Change-Me-and-make-me-32-bytes-long", "well-known placeholder"),
        ("your-256-bit-secret", "well-known placeholder"),
        ("a-string-secret-at-least-256-bits-long", "well-known placeholder"),
        ("k" * 64, "repeats a few characters"),
        ("secret-" * 8, "repeats a few characters"),
        (f" {SECRET}", "starts or ends with a space"),
        (f"{SECRET}\nshort", "in line 2 of 2 has 5 bytes"),
        (PEM, "belongs in GATEKEEPER_JWT_PUBLIC_KEY"),
        (PRIVATE_PEM, "holds a PEM key"),
        ('{"kty": "oct",\n "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"}', "is a JSON Web Key"),
        ('{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}', "is a JSON Web Key"),
        ("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC7", "not a secret"),
        ("\udcff" * 40, "is not UTF-8"),
    ],
)
def test_a_bad_secret_is_refused_and_not_shown(secret: str, why: str) -> None:
    [line] = problems({"GATEKEEPER_JWT_SECRET": secret})
    assert why in line
    assert line.startswith(("GATEKEEPER_JWT_SECRET: read ***, which ", "GATEKEEPER_JWT_SECRET: read '', which "))
    assert not secret.strip() or secret not in line
    with pytest.raises(ValidationError) as caught:
        Settings(jwt_secret=(secret,))
    assert len(secret) < 8 or secret not in str(caught.value)


@pytest.mark.parametrize("spell", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_secret_may_be_base64(tmp_path: Path, spell: Callable[[bytes], bytes]) -> None:
    octets = hashlib.sha256(b"a").digest() + b"\xff\xfe\xfb\x00"
    text = spell(octets).decode()
    for written in (f"base64:{text}", f"base64:{text.rstrip('=')}", f"BASE64:{text}", f"Base64:{text}"):
        assert load({"GATEKEEPER_JWT_SECRET": written}).hmac_secrets == (octets,)
        assert load(BASE | {"GATEKEEPER_SIGNING_KEY": written}).signing_secrets == (octets,)
        file = tmp_path / "secrets"
        file.write_text(f"{SECRET}\n{written}\n")
        assert load({"GATEKEEPER_JWT_SECRET_FILE": str(file)}).hmac_secrets == (SECRET.encode(), octets)


@pytest.mark.parametrize(
    ("encoded", "why"),
    [  # T28
        ("", "is not base64 after its prefix"),
        ("====", "is not base64 after its prefix"),
        ("a" * 45, "is not base64 after its prefix"),
        ("with spaces and more than 32 bytes of them", "is not base64 after its prefix"),
        ("+/-_" * 12, "is not base64 after its prefix"),
        (base64.b64encode(b"8 bytes!").decode(), "has 8 bytes, fewer than 32"),
        (base64.b64encode(SECRET[:31].encode()).decode(), "has 31 bytes, fewer than 32"),
        (base64.b64encode(b"Change-Me-and-make-me-32-bytes-long").decode(), "well-known placeholder"),
        (base64.b64encode(b"\x00" * 64).decode(), "repeats a few characters"),
        (base64.b64encode(b"k" * 64).decode(), "repeats a few characters"),
    ],
)
def test_a_bad_secret_in_base64_is_refused(encoded: str, why: str) -> None:
    for name in ("JWT_SECRET", "SIGNING_KEY"):
        for prefix in ("base64:", "BASE64:"):
            line = problem(name, f"{prefix}{encoded}")
            assert why in line
            assert not encoded or encoded not in line


def test_the_floor_of_secrets_can_be_lowered_with_a_warning() -> None:  # T28
    short = SECRET[:20]
    lowered = load({"GATEKEEPER_JWT_SECRET": short, "GATEKEEPER_JWT_SECRET_FLOOR": "16"})
    assert lowered.hmac_secrets == (short.encode(),)
    assert [line for line in warnings(lowered) if line.startswith("GATEKEEPER_JWT_SECRET_FLOOR: ")]
    assert not [line for line in warnings(load(BASE)) if "FLOOR" in line]
    assert "has 20 bytes, fewer than 24" in problem("JWT_SECRET", short, JWT_SECRET_FLOOR="24")
    assert "has 15 bytes, fewer than 16" in problem("JWT_SECRET", SECRET[:15], JWT_SECRET_FLOOR="16")
    for floor in ("15", "33", "off"):
        assert "GATEKEEPER_JWT_SECRET_FLOOR" in problem("JWT_SECRET_FLOOR", floor)
    for weak in ("changeme-changeme", "k" * 20):
        assert "which" in problem("JWT_SECRET", weak, JWT_SECRET_FLOOR="16")


@pytest.mark.parametrize("name", ["JWT_SECRET", "SIGNING_KEY", "INTROSPECTION_CLIENTS"])
def test_the_example_files_secret_is_refused(name: str) -> None:  # T28
    found = re.findall(rf"^#?GATEKEEPER_{name}=(.*)$", (ROOT / "config" / "gatekeeper.env").read_text(), re.MULTILINE)
    assert len(found) == 1
    assert "well-known placeholder" in problem(name, found[0])


def test_public_keys_are_pem_or_a_path(tmp_path: Path) -> None:
    file = tmp_path / "keys.pem"
    file.write_text(f"# two keys\n{PEM}\n{OTHER_PEM}")
    escaped = PEM.replace("\n", "\\n")
    for name, text in (("", PEM), ("", escaped)):
        assert load({f"GATEKEEPER_JWT_PUBLIC_KEY{name}": text}).jwt_public_key == PEM
    for name in ("GATEKEEPER_JWT_PUBLIC_KEY", "GATEKEEPER_JWT_PUBLIC_KEY_FILE"):
        assert load({name: str(file)}).public_keys_pem == (PEM.strip(), OTHER_PEM.strip())


def test_a_bad_public_key_is_refused_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text(PRIVATE_PEM)
    for text, why in (
        (PRIVATE_PEM, "holds a private key"),
        (PEM + PRIVATE_PEM, "holds a private key"),
        (PEM.replace("END", "FIN"), "is neither PEM public keys nor the path of a file of them"),
        (PEM.replace("PUBLIC KEY", "SSH2 PUBLIC KEY"), "is neither PEM public keys nor the path of a file of them"),
        (SECRET, "cannot be read"),
        (str(file), "holds a private key"),
    ):
        [line] = problems({"GATEKEEPER_JWT_PUBLIC_KEY": text})
        assert why in line
        assert (str(file) in line) == (text == str(file))
        assert PRIVATE_PEM.splitlines()[1] not in line
        assert SECRET not in line


def test_signing_keys_are_secrets_or_private_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{PRIVATE_PEM}\n{EC_PARAMETERS}{EC_PEM}")
    keys = (PRIVATE_PEM.strip(), EC_PEM.strip())
    assert load(BASE | {"GATEKEEPER_SIGNING_KEY_FILE": str(file)}).signing_keys_pem == keys
    for text in (PRIVATE_PEM, PRIVATE_PEM.replace("\n", "\\n"), PRIVATE_PEM.replace("\n", "\r\n")):
        [key] = load(BASE | {"GATEKEEPER_SIGNING_KEY": text}).signing_keys_pem
        assert key.replace("\r", "") == keys[0]
    file.write_text(f"{SECRET}\n{OTHER_SECRET}\n")
    expected = (SECRET.encode(), OTHER_SECRET.encode())
    assert load(BASE | {"GATEKEEPER_SIGNING_KEY_FILE": str(file)}).signing_secrets == expected


def test_a_bad_signing_key_is_refused_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "a-file-whose-name-is-as-long-as-a-secret"
    file.write_text(PRIVATE_PEM)
    locked = PRIVATE_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw")).decode()
    older = EC_KEY.private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"pw")
    ).decode()
    openssh = PRIVATE_KEY.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    for text, why in (
        ("\n", "is empty"),
        ("8 bytes!", "has 8 bytes, fewer than 32"),
        (f"{SECRET}\nchangeme", "in line 2 of 2 is a well-known placeholder"),
        ('{"kty": "OKP", "d": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"}', "is a JSON Web Key, which is not supported"),
        (PEM, "holds a public key or a certificate"),
        (PRIVATE_PEM + PEM, "holds a public key or a certificate"),
        (locked, "holds an encrypted private key"),
        (older, "holds an encrypted private key"),
        (openssh, "holds PEM that is not a private key of an accepted form"),
        (EC_PARAMETERS, "holds PEM that is not a private key of an accepted form"),
        (PRIVATE_PEM.replace("END", "FIN"), "holds PEM that is not a private key of an accepted form"),
        (f"{SECRET}\n{PRIVATE_PEM}", "has text beside its PEM keys"),
        (str(file), "is a path (which belongs in GATEKEEPER_SIGNING_KEY_FILE)"),
        ("/etc/gatekeeper/secrets/signing-key.pem", "is a path (which belongs in GATEKEEPER_SIGNING_KEY_FILE)"),
    ):
        line = problem("SIGNING_KEY", text)
        assert why in line
        assert line.startswith(("GATEKEEPER_SIGNING_KEY: read ***, which ", "GATEKEEPER_SIGNING_KEY: read '', which "))
        assert line.endswith("private keys as PEM without a password (PRIVATE KEY, RSA PRIVATE KEY, EC PRIVATE KEY)")
        assert PRIVATE_PEM.splitlines()[1] not in line
        assert SECRET not in line


def test_a_random_secret_may_look_like_a_path() -> None:
    secret = "/8Zk2Xw7Lp4Tn9Bc/Hd6Jf1Gs0YaR5vQ8mZk2Xw7Lp4T"
    assert load(BASE | {"GATEKEEPER_SIGNING_KEY": secret}).signing_secrets == (secret.encode(),)


def test_clients_that_may_ask_are_written_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "clients"
    file.write_text(f"billing:{SECRET}\r\n\nA.b_c~d-9:a:colon,{SECRET}\n")
    clients = (
        IntrospectionClient("billing", SecretStr(SECRET)),
        IntrospectionClient("A.b_c~d-9", SecretStr(f"a:colon,{SECRET}")),
    )
    assert load(BASE | {"GATEKEEPER_INTROSPECTION_CLIENTS_FILE": str(file)}).introspection_clients == clients
    assert read("INTROSPECTION_CLIENTS", f"billing:{SECRET}") == clients[:1]
    made = Settings(jwt_secret=(SecretStr(SECRET),), introspection_clients=clients)
    assert made.introspection_clients == clients


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("\n", "is empty"),
        (SECRET, "has no colon between an id and a secret"),
        (f":{SECRET}", "has an id that is not 1 to 128 characters of"),
        (f" billing:{SECRET}", "has an id that is not 1 to 128 characters of"),
        (f"{'x' * 129}:{SECRET}", "has an id that is not 1 to 128 characters of"),
        (f"b%C3%BC:{SECRET}", "has an id that is not 1 to 128 characters of"),
        ("billing:", "has a secret that has 0 bytes, fewer than 32"),
        ("billing:8-bytes!", "has a secret that has 8 bytes, fewer than 32"),
        (f"billing:{'k' * 64}", "has a secret that repeats a few characters"),
        (f"billing:{SECRET} {SECRET}", "has a secret with a space or a character outside printable ASCII"),
        (f"billing:{SECRET}\u00e9", "has a secret with a space or a character outside printable ASCII"),
        (f"billing:{SECRET}\nreports:short", "in line 2 of 2 has a secret that has 5 bytes"),
        (f"billing:{SECRET}\nbilling:{SECRET[::-1]}", "has the same id twice"),
    ],
)
def test_other_clients_are_refused_and_not_shown(text: str, why: str) -> None:
    line = problem("INTROSPECTION_CLIENTS", text)
    assert why in line
    assert "accepted: id:secret, one a line" in line
    assert SECRET not in line


@pytest.mark.parametrize(
    "url",
    [
        *("redis://127.0.0.1:6379/0", "redis://h", "rediss://user:p%40ss@h:6380/15", "redis://:pw@h?db=3"),
        *("unix:///run/valkey.sock", "unix:///run/valkey.sock?db=1&password=pw", "unix://user:pw@/run/valkey.sock"),
        *(
            "redis+sentinel://u:p%2Fw@h:26379,[::1]:26380/main/3",
            "rediss+sentinel://h,i/main",
            "redis+sentinel://h/a.b_c",
        ),
        *("redis+cluster://h:1", "rediss+cluster://:pw@h:1,i:2,[::1]:3/0"),
    ],
)
def test_store_urls(url: str) -> None:
    assert read("REDIS_URL", url).get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        *("http://h:hunter2@x", "localhost:6379", "redis+sentinel://u:hunter2@h:26379", "redis+cluster://h:hunter2"),
        *("redis+sentinel://u:hunter2@h:1,h:2/", "redis+sentinel://u:hunter2@h/a b", "redis+sentinel://h/main/hunter2"),
        *("redis+sentinel://u:hunter2@h,/main", "redis+sentinel://u:hunter2@h/main?db=1", "redis+nodes://:hunter2@h"),
        *(
            "redis+cluster://u:hunter2@h/1",
            "redis+cluster://:hun/ter2@h",
            "redis+cluster://h,i:hunter2",
            "redis+cluster://",
        ),
        *("redis+cluster://u:hun#ter2@h:1", "redis+sentinel://u:hun ter2@h:1/main", "unix+cluster://:hunter2@/h"),
        *(
            "redis://",
            "redis://u:hunter2@h/x",
            "redis://u:hun#ter2@h",
            "redis://u:hunter2@h:0",
            "redis://h/0?x=hunter2",
        ),
        *("rediss://h?ssl_cert_reqs=none", "redis://h?db=x", "unix://run/x.sock", "unix:///", "redis://u:hun ter2@h"),
    ],
)
def test_other_store_urls_are_refused_without_their_password(url: str) -> None:
    line = problem("REDIS_URL", url)
    assert "accepted: redis://" in line
    assert "rediss instead of redis for TLS" in line
    assert "ter2" not in line


def test_a_secret_and_its_file_together_are_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    [line] = problems(BASE | {"GATEKEEPER_JWT_SECRET_FILE": str(file)})
    assert line == "GATEKEEPER_JWT_SECRET and GATEKEEPER_JWT_SECRET_FILE: both are set; accepted: one of them"


def test_a_secret_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:  # C01
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    large = tmp_path / "large"
    large.write_text("x" * (4 * 1024 * 1024 + 1))
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for path, why in (
        ("/does/not/exist", "read '/does/not/exist', which cannot be read (No such file or directory)"),
        (str(tmp_path), "cannot be read (Is a directory)"),
        (str(binary), "not UTF-8"),
        (str(large), "over 4 MiB"),
        (str(empty), "is empty"),
        ("", "is empty"),
        (SECRET, "read ***, which cannot be read"),  # the secret itself, given by mistake
        ("/a\0b", "is not a path"),
    ):
        [line] = problems({"GATEKEEPER_JWT_SECRET_FILE": path})
        assert line.startswith("GATEKEEPER_JWT_SECRET_FILE: read ")
        assert why in line


def test_no_secret_is_shown_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("redis://gate:hunter2@store.internal:6379/1\n")
    environ = BASE | {
        "GATEKEEPER_REDIS_URL_FILE": str(file),
        "GATEKEEPER_WORKERS": "2",
        "GATEKEEPER_SIGNING_KEY": PRIVATE_PEM,
        "GATEKEEPER_INTROSPECTION_CLIENTS": f"billing:{SECRET[::-1]}",
    }
    settings = load(environ)
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://gate:hunter2@store.internal:6379/1"
    shown = [repr(settings), str(settings), str(settings.model_dump()), str(describe(environ)), str(warnings(settings))]
    for text in shown:
        assert SECRET not in text
        assert SECRET[::-1] not in text
        assert PRIVATE_PEM.splitlines()[1] not in text
        assert "hunter2" not in text
    assert repr(settings) == (
        "Settings(workers=2, redis_url=SecretStr('**********'), jwt_secret=(SecretStr('**********'),), "
        "signing_key=(SecretStr('**********'),), "
        "introspection_clients=(IntrospectionClient(id='billing', secret=SecretStr('**********')),))"
    )
