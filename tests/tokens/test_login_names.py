"""The user names of a login are found however they are written: each is how a backend reads them (rule 5.10, S22)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.tokens.body_fields import Unsearchable, fields_of_body, fields_of_query
from gatekeeper.tokens.login_names import LoginNames, counted_name

JSON, FORM, XML = b"application/json", b"application/x-www-form-urlencoded", b"text/xml"
PARTS = b"multipart/form-data; boundary=xx"
GRAPHQL = "mutation L($u: String!, $p: String!) { login(username: $u, password: $p) { token } }"


def found(body: bytes | str, kind: bytes = JSON, query: bytes = b"", *fields: str) -> tuple[str, ...]:
    octets = body if isinstance(body, bytes) else body.encode()
    names = LoginNames(fields) if fields else LoginNames()
    return names.find([*fields_of_body(octets, [kind]), *fields_of_query(query)])


def part(head: str, content: str) -> str:
    return f"--xx\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n--xx--\r\n"


WAYS: dict[str, tuple[bytes | str, bytes]] = {
    "a member": ('{"username":"Bob","password":"x"}', JSON),
    "a list": ('{"username":["bob"],"password":"x"}', JSON),
    "a list of lists": ('{"username":[["bob"]]}', JSON),
    "an operator": ('{"username":{"$eq":"bob"},"password":{"$ne":""}}', JSON),
    "an object around it": ('{"user":{"email":"bob","password":"x","remember_me":"1"}}', JSON),
    "JSON:API": ('{"data":{"type":"logins","attributes":{"email":"bob","password":"x"}}}', JSON),
    "an object under it": ('{"username":{"first":"bob"},"password":"x"}', JSON),
    "two words": ('{"user":{"name":"bob","password":"x"}}', JSON),
    "pairs of names and values": ('[{"name":"username","value":"bob"},{"name":"password","value":"x"}]', JSON),
    "escapes": ('{"\\u0075sername":"b\\u006fb"}', JSON),
    "full width": ('{"ｕｓｅｒｎａｍｅ":"ｂｏｂ"}', JSON),
    "upper case": ('{"USER_NAME":"BOB"}', JSON),
    "an invisible character": ('{"username":"bo\\u200bb\\u0000"}', JSON),
    "much space": ('{"username":"' + " " * 9_000 + 'bob"}', JSON),
    "JSON in JSON": ('{"data":"{\\"username\\":\\"bob\\"}"}', JSON),
    "JSON as a text": ('"{\\"username\\":\\"bob\\"}"', JSON),
    "single quotes": ("{'username': 'bob', 'password': 'x'}", JSON),
    "no quotes": ("{username: bob, password: x}", JSON),
    "a comma too many": ('{"username":"bob",}', JSON),
    "a comment": ('/* " */ {"username":"bob"}', JSON),
    "something behind it": ('{"username":"bob"} {', JSON),
    "an escape and a fault": ('{"user\\u006eame":"b\\x6fb",,}', JSON),
    "JSON said to be XML": ('{"username":"bob"}', XML),
    "JSON said to be a form": ('{"username":"bob"}', FORM),
    "UTF-16": ('{"username":"bob"}'.encode("utf-16"), JSON),
    "UTF-16 without BOM": ('{"username":"bob"}'.encode("utf-16-be"), JSON),
    "UTF-32": ('{"username":"bob"}'.encode("utf-32"), JSON),
    "UTF-7": ('+AHs-"+AHUAcw-ername":"bob"}', JSON + b"; charset=utf-7"),
    "EBCDIC": ('{"username":"bob"}'.encode("cp037"), JSON + b'; charset="cp037"'),
    "a form": ("username=bob&password=x", FORM),
    "a form without a type": ("username=bob&password=x", b""),
    "a percent-encoded name": ("%75ser%6Eame=b%6Fb&password=x", FORM),
    "a plus": ("+username=+bob+&password=x", FORM),
    "brackets": ("username[]=bob&password=x", FORM),
    "encoded brackets": ("username%5B0%5D=bob&password=x", FORM),
    "an operator in brackets": ("username[$ne]=bob&password[$ne]=x", FORM),
    "a scope, as in Rails": ("user[email]=bob&user[password]=x&user[remember_me]=1", FORM),
    "a scope that is a name": ("account[email]=bob&account[password]=x&account[remember_me]=1", FORM),
    "a dot": ("user.email=bob&user.password=x", FORM),
    "JSON in a form": ('variables={"username":"bob"}', FORM),
    "multipart": (part('name="username"', "bob"), PARTS),
    "multipart without quotes": (part("name=username", "bob"), PARTS),
    "multipart, folded": (part('\r\n name="username"', "bob"), PARTS),
    "multipart, encoded": (part("name*=utf-8''user%6eame", "bob"), PARTS),
    "multipart, in pieces": (part('name*0="user"; name*1="name"', "bob"), PARTS),
    "multipart, another boundary": (part('name="username"', "bob"), b"multipart/form-data; boundary=yy"),
    "multipart with JSON": (part('name="data"\r\nContent-Type: application/json', '{"username":"bob"}'), PARTS),
    "multipart, a scope": (part('name="user[email]"', "bob"), PARTS),
    "an element": ("<login><username>bob</username><password>x</password></login>", XML),
    "a namespace": ('<a:login xmlns:a="u"><a:UserName>bob</a:UserName><a:Password>x</a:Password></a:login>', XML),
    "an attribute": ('<login username="bob" password="x"/>', XML),
    "character references": ("<l><username>&#98;&#x6f;b</username></l>", XML),
    "an entity of its own": ('<!DOCTYPE l [<!ENTITY u "bob">]><l><username>&u;</username></l>', XML),
    "CDATA": ("<l><username>b<![CDATA[ob]]></username></l>", XML),
    "a comment inside": ("<l><username>b<!-- -->ob</username></l>", XML),
    "XML that is not well-formed": ("<l><username>b<!-- -->&#x6f;b<password>x</l>", XML),
    "XML said to be a form": ("<l><username>bob</username></l>", FORM),
    "XML in UTF-16": ("<l><username>bob</username></l>".encode("utf-16"), XML),
    "XML-RPC": (
        "<struct><member><name>username</name><value><string>bob</string></value></member></struct>",
        XML,
    ),
    "a property list": ("<plist><dict><key>username</key><string>bob</string></dict></plist>", XML),
    "GraphQL": ('{"query":"mutation { login(username: \\"bob\\", password: \\"x\\") { token } }"}', JSON),
    "GraphQL variables": (json.dumps({"query": GRAPHQL, "variables": {"u": "bob", "p": "x"}}), JSON),
    "GraphQL, variables first": (json.dumps({"variables": {"u": "bob", "p": "x"}, "query": GRAPHQL}), JSON),
    "GraphQL, an input": (
        json.dumps(
            {
                "query": "mutation ($i: I!) { login(input: $i) { t } }",
                "variables": {"i": {"username": "bob", "password": "x"}},
            }
        ),
        JSON,
    ),
    "GraphQL, a default": ('{"query":"mutation ($u: String! = \\"bob\\") { login(username: $u) { t } }"}', JSON),
    "GraphQL alone": ('mutation { login(username: "bob", password: "x") { token } }', b"application/graphql"),
    "YAML": ("username: bob\npassword: x\n", b"application/yaml"),
    "MessagePack": (b"\x82\xa8username\xa3bob\xa8password\xa1x", b"application/msgpack"),
}


@pytest.mark.parametrize(("body", "kind"), WAYS.values(), ids=WAYS)
def test_a_name_is_found_once_and_alone_however_it_is_written(body: bytes | str, kind: bytes) -> None:
    """Alone: a success resets the count only where one name was found, and a password is no name."""
    assert found(body, kind) == ("bob",)


@pytest.mark.parametrize(
    "query",
    [b"username=bob", b"user%5Bemail%5D=bob&user%5Bpassword%5D=x", b'variables={"username":"bob"}', b"LOGIN[]=Bob"],
)
def test_a_name_in_the_query_is_found(query: bytes) -> None:
    assert found('{"password":"x"}', JSON, query) == ("bob",)


@pytest.mark.parametrize("number", ["123", "123.0", "123.000", "1.23e2", "12300E-2", '"123"', "[123]", '{"$eq":123}'])
@pytest.mark.parametrize("fault", ["", ","])
def test_a_number_is_the_text_of_it(number: str, fault: str) -> None:
    assert found(f'{{"username":{number}{fault}}}') == ("123",)


@pytest.mark.parametrize("name", ["+33 6 12 34 56 78", "(33) 612-34-56-78", "33.612.345.678", "33612345678"])
def test_a_telephone_number_is_its_digits(name: str) -> None:
    assert found(json.dumps({"phone": name})) == ("33612345678",)


def test_every_name_counts_and_more_than_sixteen_are_refused() -> None:
    assert found('{"username":"a","username":"b","email":["c","d"]}', JSON, b"login=e&login=f") == tuple("abcdef")
    many = [f"n{number}" for number in range(17)]
    assert len(found(json.dumps({"username": many[:16]}))) == 16
    for body, kind in [
        (json.dumps({"username": many}), JSON),
        ("&".join(f"username={name}" for name in many), FORM),
        ("{" + ",".join(f'"username":"{name}"' for name in many) + "}", JSON),
        ("<l>" + "".join(f"<username>{name}</username>" for name in many) + "</l>", XML),
    ]:
        with pytest.raises(Unsearchable):
            found(body, kind)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"password":"x","device":{"name":"phone 7"}}', JSON),
        ('{"username":null,"email":""}', JSON),
        ("password=x&next=/home", FORM),
        ('{"query":"query { me { name } }"}', JSON),
        ("<l><password>x</password></l>", XML),
    ],
)
def test_what_is_no_user_name_is_not_counted(body: str, kind: bytes) -> None:
    """Such a value would be the same for many people, and their failures would add up."""
    assert found(body, kind) == ()


def test_an_object_without_a_name_of_its_own_counts_as_a_whole() -> None:
    assert found('{"account":{"id":5,"password":"x","remember":true}}') == ("5",)
    assert found('{"phone":{"country":"+33","number":"612345678"}}') == ("33612345678",)


def test_the_names_are_a_setting() -> None:
    assert found('{"user-id":"bob","username":"ann"}', JSON, b"", "userId") == ("bob",)


@pytest.mark.parametrize("kind", [JSON + b"; charset=martian", JSON + b"; charset=hex", b"application/msgpack"])
def test_what_cannot_be_decoded_cannot_be_searched(kind: bytes) -> None:
    with pytest.raises(Unsearchable):
        found(b'\xc1{"username":"bob"}', kind)


@given(st.binary(max_size=200), st.sampled_from([JSON, FORM, XML, PARTS, b"", b"application/msgpack", b"text/plain"]))
def test_no_body_raises_anything_else(body: bytes, kind: bytes) -> None:
    try:
        names = found(body, kind, body)
    except Unsearchable:
        return
    assert all(name == counted_name(name) and name for name in names)


FLOODS = {
    "quotes": b'"' * 65_536,
    "objects": b'{"a' * 21_000,
    "backslashes": b'"\\' * 32_768,
    "angles": b"<" * 65_536,
    "tags": b"<a " * 20_000,
    "comments": b"/*" * 32_768,
    "pairs": b"a=b&" * 16_000,
    "lists": b"[" * 65_536,
    "colons": b"a:" * 32_768,
    "boundaries": b"\n--" * 20_000,
    "CDATA": b"<![CDATA[" * 7_000,
    "comments of XML": b"<!--" * 16_000,
    "dispositions": b"Content-Disposition: x\n" * 2_800,
    "names of a part": b"Content-Disposition: form-data" + b"; name=x" * 7_000 + b"\n\nv",
    "calls": b"(a" * 30_000,
    "references": b"&amp;" * 13_000,
    "nested GraphQL": b'{"query":"' + b"a(" * 32_000 + b'"}',
    "entities": b"<!DOCTYPE a [<!ENTITY a 'aaaaaaaaaaaaaaaaaaaa'><!ENTITY b '"
    + b"&a;" * 2_000
    + b"'>]><a>"
    + b"&b;" * 2_000
    + b"</a>",
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
@pytest.mark.parametrize("kind", [JSON, FORM, XML, PARTS])
def test_no_body_costs_more_than_its_length(flood: bytes, kind: bytes) -> None:
    """D04: each takes a fraction of a second; by a rule with a square in it, minutes."""
    try:
        names = found(flood, kind)
    except Unsearchable:
        names = ()
    assert names == ()
