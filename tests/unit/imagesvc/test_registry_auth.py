from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesvc.references import parse_reference
from imagesvc.registry import auth
from imagesvc.registry.auth import Challenge, choose, parse_challenges, parse_token, token_request
from imagesvc.registry.credentials import ANONYMOUS, Auth, Credentials, from_auth, from_files
from proto.errors import Code, CrispError

BEARER = Challenge("bearer", {"realm": "https://auth.example/token", "service": "reg"})


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            ['Bearer realm="https://a/t",service="s",scope="repository:x/y:pull,push"'],
            [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x/y:pull,push"})],
        ),
        (['Basic realm="a \\"quoted\\" one"'], [("basic", {"realm": 'a "quoted" one'})]),
        (['Basic realm="b", Bearer realm="c"'], [("basic", {"realm": "b"}), ("bearer", {"realm": "c"})]),
        (["Negotiate"], [("negotiate", {})]),
        (["BEARER Realm=plain"], [("bearer", {"realm": "plain"})]),
        (["", "  ", "=", '"'], []),
    ],
)
def test_challenges(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(c.scheme, c.parameters) for c in parse_challenges(headers)] == expected


@given(st.lists(st.text()))
def test_no_header_is_too_strange(headers: list[str]) -> None:
    choose(parse_challenges(headers))


def test_bearer_is_chosen_before_basic() -> None:
    assert choose([Challenge("basic", {}), BEARER]) is BEARER
    assert choose([Challenge("negotiate", {})]) is None


def test_token_requests() -> None:
    anonymous = token_request(BEARER, ANONYMOUS, ["repository:a:pull"], https=True)
    assert anonymous.method == "GET"
    assert anonymous.url == "https://auth.example/token?service=reg&scope=repository%3Aa%3Apull"
    assert "Authorization" not in anonymous.headers
    named = token_request(BEARER, Credentials("u", "p:w"), ["s"], https=True)
    assert base64.b64decode(named.headers["Authorization"].removeprefix("Basic ")) == b"u:p:w"
    assert named.url.endswith("&account=u")
    refresh = token_request(BEARER, Credentials(identity_token="r"), ["a", "b"], https=True)
    assert refresh.method == "POST"
    assert b"grant_type=refresh_token" in refresh.body
    assert b"scope=a+b" in refresh.body


@pytest.mark.parametrize("realm", ["", "ftp://x", "relative", "http://elsewhere.example/token"])
def test_realms_that_get_no_password(realm: str) -> None:
    with pytest.raises(CrispError) as caught:
        token_request(Challenge("bearer", {"realm": realm}), Credentials("u", "p"), [], https=True)
    assert caught.value.code is Code.UNAUTHENTICATED


def test_tokens() -> None:
    assert parse_token(b'{"token": "t", "expires_in": 300}', 1000.0).expires == 1290.0
    assert parse_token(b'{"access_token": "t"}', 0.0).expires == 50.0
    for bad in (b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a\\r\\nb"}', b"[" * 100_000):
        with pytest.raises(CrispError):
            parse_token(bad, 0.0)


def test_secrets_are_not_shown() -> None:
    secrets = ("hunter2", "refresh-1", "bearer-1")
    auth = Auth("u", *secrets[:2], identity_token=secrets[1], registry_token=secrets[2])
    request = token_request(BEARER, Credentials("u", "hunter2"), [], https=True)
    shown = repr((Credentials("u", *secrets), auth, request))
    shown += repr(parse_token(b'{"token": "bearer-1"}', 0))
    assert not any(secret in shown for secret in secrets)


def test_auth_config() -> None:
    assert from_auth(None) is ANONYMOUS
    assert from_auth(Auth()) is ANONYMOUS
    assert from_auth(Auth("u", "p")) == Credentials("u", "p")
    assert from_auth(Auth(auth=base64.b64encode(b"u:p").decode())) == Credentials("u", "p")
    assert from_auth(Auth("u", "p", identity_token="i", server_address="https://r.example/v1/")) == Credentials(
        "u", identity_token="i", host="r.example"
    )
    for bad in ("!", base64.b64encode(b"nocolon").decode()):
        with pytest.raises(CrispError):
            from_auth(Auth(auth=bad))


def test_credentials_keep_to_their_host() -> None:
    hub = Credentials("u", "p", host="index.docker.io")
    assert hub.for_host("registry-1.docker.io") is hub
    assert hub.for_host("mirror.example") is ANONYMOUS
    assert Credentials("u", "p").for_host("mirror.example").username == "u"
    key = b"k" * 32
    assert hub.fingerprint(key) != ANONYMOUS.fingerprint(key) != hub.fingerprint(b"x" * 32)


def test_files(tmp_path: object) -> None:
    path = f"{tmp_path}/config.json"
    pair = base64.b64encode(b"u:p").decode()
    auths = {
        "https://index.docker.io/v1/": {"auth": pair},
        "quay.io/team": {"username": "team", "password": "x"},
        "quay.io": {"identitytoken": "whole"},
        "broken.example": {},
    }
    with open(path, "w") as out:
        json.dump({"auths": auths}, out)
    paths = [f"{tmp_path}/missing", path]
    assert from_files(parse_reference("nginx"), paths).username == "u"
    assert from_files(parse_reference("quay.io/team/app"), paths).username == "team"
    assert from_files(parse_reference("quay.io/teams/app"), paths).identity_token == "whole"
    assert from_files(parse_reference("broken.example/x"), paths) is ANONYMOUS
    assert from_files(parse_reference("quay.io/team/app"), paths).host == "quay.io"
    with open(path, "w") as out:
        out.write("{")
    with pytest.raises(CrispError, match=r"config\.json"):
        from_files(parse_reference("nginx"), paths)


def test_scopes() -> None:
    assert auth.pull_scope("a/b") == "repository:a/b:pull"
    assert auth.push_scope("a/b") == "repository:a/b:pull,push"
