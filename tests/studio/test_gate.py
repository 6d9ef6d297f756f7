from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from moongate.studio import gate as gates
from moongate.studio.gate import ATTEMPTS, PERIOD_S, SECURITY, Gate, is_loopback


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{len(await request.body())} bytes")


async def channel(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("hello")
    await socket.close()


INSIDE = Starlette(routes=[Route("/", page, methods=["GET", "POST"]), WebSocketRoute("/channel", channel)])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def visitor() -> Callable[..., TestClient]:
    def make(**options: Any) -> TestClient:
        return TestClient(Gate(app=INSIDE, **options), base_url="http://127.0.0.1:8080", follow_redirects=False)

    return make


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080"])
def test_this_computer_is_answered_under_its_own_names(visitor: Callable[..., TestClient], host: str) -> None:
    assert visitor().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8080", "", "[", "x@"]
)
def test_a_name_that_another_site_has_pointed_here_is_refused(visitor: Callable[..., TestClient], host: str) -> None:
    assert visitor().get("/", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8080", "http://[", "127.0.0.1:8080"],
)
def test_what_another_page_sends_is_refused(visitor: Callable[..., TestClient], origin: str) -> None:
    client = visitor()
    assert client.post("/", headers={"origin": origin}).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        client.websocket_connect("/channel", headers={"origin": origin}),
    ):
        pass
    assert refused.value.code == 1008


def test_own_pages_may_send_and_a_link_from_elsewhere_may_lead_here(visitor: Callable[..., TestClient]) -> None:
    client, own = visitor(), {"origin": "http://127.0.0.1:8080"}
    assert client.post("/", headers=own).status_code == 200
    with client.websocket_connect("/channel", headers={**own, "host": "127.0.0.1:8080"}) as socket:
        assert socket.receive_text() == "hello"
    elsewhere = {"sec-fetch-site": "cross-site"}
    assert client.get("/", headers={**elsewhere, "sec-fetch-mode": "navigate"}).status_code == 200
    assert client.get("/", headers={**elsewhere, "sec-fetch-mode": "no-cors"}).status_code == 403
    assert client.post("/", headers={**elsewhere, "sec-fetch-mode": "navigate"}).status_code == 403


def test_every_answer_lets_browsers_load_from_here_alone(visitor: Callable[..., TestClient]) -> None:
    for answer in (visitor().get("/"), visitor().get("/", headers={"host": "x"}), visitor(password="p").get("/")):
        assert {name: answer.headers[name] for name in SECURITY} == SECURITY
    directives = SECURITY["content-security-policy"].split("; ")
    assert "default-src 'self'" in directives
    assert "http" not in SECURITY["content-security-policy"]


def test_a_body_that_is_too_large_is_refused_with_and_without_its_length(
    visitor: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "MAX_UPLOAD_BYTES", 10)
    client = visitor()
    assert client.post("/", content=b"x" * 10).text == "10 bytes"
    assert client.post("/", content=b"x" * 11).status_code == 413
    with pytest.raises(ClientDisconnect):  # whoever reads the body sees that the connection has ended
        client.post("/", content=iter([b"x" * 6, b"x" * 6]))


def test_without_the_password_nothing_is_seen(visitor: Callable[..., TestClient]) -> None:
    client = visitor(password="sesame")
    answer = client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert client.post("/").status_code == 303
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/channel"):
        pass
    assert client.get("/", headers={"cookie": "moongate=guess"}).status_code == 303
    assert 'type="password"' in client.get("/login").text


def test_with_the_password_all_is_seen_under_any_name(visitor: Callable[..., TestClient]) -> None:
    client = visitor(password="sésame")
    assert client.post("/login", data={"password": "wrong"}).status_code == 401
    entered = client.post("/login", data={"password": "sésame"})
    assert entered.status_code == 303
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"host": "studio.example"}).status_code == 200


def test_wrong_passwords_are_limited_and_the_right_one_waits_too(visitor: Callable[..., TestClient]) -> None:
    clock = Clock()
    client = visitor(password="sesame", clock=clock)
    for _ in range(ATTEMPTS):
        assert client.post("/login", data={"password": "wrong"}).status_code == 401
    refused = client.post("/login", data={"password": "sesame"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, str(PERIOD_S))
    clock.now = PERIOD_S + 1
    assert client.post("/login", data={"password": "sesame"}).status_code == 303


def test_a_password_of_any_length_is_not_read(visitor: Callable[..., TestClient]) -> None:
    assert visitor(password="sesame").post("/login", content=b"password=" + b"x" * 10_000).status_code == 413


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.2", False), ("example.org", False)],
)  # fmt: skip
def test_only_addresses_of_this_computer_need_no_password(host: str, is_own: bool) -> None:
    assert is_loopback(host) is is_own
