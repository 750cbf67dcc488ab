"""The administrator's endpoints and pages: behind their own key, and safe to keep open in a browser."""

from __future__ import annotations

import re

import httpx
import pytest

from defense.service.application import ADMIN, MakeService, Service, as_json, foreign_images, known_images

pytestmark = pytest.mark.anyio


async def steal(service: Service, account: str = "eve") -> None:
    async with service.client(service.make_key(account)) as client:
        await client.post("/v1/predict", json=as_json(known_images(4)))
        await client.post("/v1/predict", json=as_json(foreign_images(6)))


ENDPOINTS = [
    ("GET", "/v1/admin/status"),
    ("GET", "/v1/admin/accounts"),
    ("GET", "/v1/admin/accounts/alice"),
    ("GET", "/v1/admin/accounts/alice/keys"),
    ("PUT", "/v1/admin/accounts/alice/status"),
    ("GET", "/v1/admin/decisions"),
    ("POST", "/v1/admin/keys"),
    ("DELETE", "/v1/admin/keys/0123456789abcdef"),
    ("GET", "/v1/admin/threshold"),
    ("PUT", "/v1/admin/threshold"),
]


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_every_endpoint_wants_the_administrators_key(service: Service, method: str, path: str) -> None:
    for key in ("", service.key, ADMIN[:-1], ADMIN + "x"):
        async with service.client(key) as client:
            response = await client.request(method, path, json={})
        assert response.status_code == 401
        assert response.json() == {"detail": "the administrator's key is missing or wrong"}


async def test_no_endpoint_was_left_out_above(service: Service) -> None:
    paths = service.app.openapi()["paths"]
    known = {(verb.upper(), path) for path, verbs in paths.items() for verb in verbs if path.startswith("/v1/admin")}
    shown = {
        (m, re.sub("(?<=accounts/)alice", "{name}", p).replace("0123456789abcdef", "{key_id}")) for m, p in ENDPOINTS
    }
    assert known == shown


async def test_accounts_come_by_score_page_by_page(service: Service) -> None:
    await steal(service, "eve")
    async with service.client() as client:
        await client.post("/v1/predict", json=as_json(known_images(8)))
    async with service.admin() as admin:
        page = (await admin.get("/v1/admin/accounts")).json()
        second = (await admin.get("/v1/admin/accounts?offset=1&limit=1&order=score")).json()
        status = (await admin.get("/v1/admin/status")).json()
    assert [account["name"] for account in page["accounts"]] == ["eve", "alice"]
    assert page["accounts"][0]["score"] > page["threshold"] > page["accounts"][1]["score"]
    assert second["accounts"] == page["accounts"][1:]
    assert status["counts"]["watched"] == 2
    assert status["counts"]["decisions"] == 1


async def test_decisions_are_listed_for_one_account(service: Service) -> None:
    await steal(service, "eve")
    await steal(service, "mallory")
    async with service.admin() as admin:
        everything = (await admin.get("/v1/admin/decisions")).json()["decisions"]
        own = (await admin.get("/v1/admin/decisions?account=eve")).json()["decisions"]
    assert [decision["account"] for decision in everything] == ["mallory", "eve"]
    assert own == everything[1:]


async def test_a_released_account_starts_with_an_empty_window(service: Service) -> None:
    await steal(service, "alice")
    async with service.admin() as admin, service.client() as client:
        banned = await admin.put("/v1/admin/accounts/alice/status", json={"status": "banned"})
        assert banned.json()["status"] == "banned"
        assert (await client.post("/v1/predict", json=as_json(known_images(1)))).status_code == 403
        released = await admin.put("/v1/admin/accounts/alice/status", json={"status": "watched"})
        assert released.json()["score"] is None
        await client.post("/v1/predict", json=as_json(foreign_images(3)))
        assert (await admin.get("/v1/admin/accounts/alice")).json()["score"] is None
        await client.post("/v1/predict", json=as_json(foreign_images(1)))
        assert (await admin.get("/v1/admin/accounts/alice")).json()["score"] > 0.1


async def test_keys_are_shown_once(service: Service) -> None:
    async with service.admin() as admin:
        made = await admin.post("/v1/admin/keys", json={"account": "carol"})
        assert made.status_code == 201
        key, key_id = made.json()["key"], made.json()["key_id"]
        listed = await admin.get("/v1/admin/accounts/carol/keys")
        assert [item["key_id"] for item in listed.json()["keys"]] == [key_id]
        assert key.split("_", 2)[2] not in listed.text
    async with service.client(key) as client:
        assert (await client.post("/v1/predict", json=as_json(known_images(1)))).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/admin/accounts/nobody", None, 404),
        ("PUT", "/v1/admin/accounts/nobody/status", {"status": "banned"}, 404),
        ("PUT", "/v1/admin/accounts/alice/status", {"status": "gone"}, 422),
        ("GET", "/v1/admin/accounts?order=name", None, 422),
        ("GET", "/v1/admin/accounts?limit=0", None, 422),
        ("GET", "/v1/admin/accounts?offset=99999999999999999999", None, 422),
        ("POST", "/v1/admin/keys", {"account": "a b"}, 422),
        ("POST", "/v1/admin/keys", {"account": "a\n"}, 422),
        ("PUT", "/v1/admin/threshold", {"threshold": "high"}, 422),
        ("PUT", "/v1/admin/threshold", {}, 422),
        ("DELETE", "/v1/admin/keys/0123", None, 422),
    ],
)
async def test_impossible_requests_are_refused_in_one_line(
    service: Service, method: str, path: str, body: dict[str, object] | None, status: int
) -> None:
    async with service.admin() as admin:
        response = await admin.request(method, path, json=body)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"detail"}
    assert "\n" not in response.json()["detail"]


async def test_a_threshold_that_is_no_number_is_refused(service: Service) -> None:
    async with service.admin() as admin:
        for text in (b'{"threshold": NaN}', b'{"threshold": 1e999}'):
            response = await admin.put(
                "/v1/admin/threshold", content=text, headers={"Content-Type": "application/json"}
            )
            assert response.status_code == 422
        assert (await admin.get("/v1/admin/threshold")).json()["threshold"] == 0.1


async def test_a_defence_without_threshold_says_so(make_service: MakeService) -> None:
    async with make_service(defended=False).admin() as admin:
        assert (await admin.put("/v1/admin/threshold", json={"threshold": 3.0})).status_code == 409
        assert (await admin.get("/v1/admin/threshold")).json() == {"threshold": None, "calibrated": None}


async def log_in(client: httpx.AsyncClient) -> str:
    """Log in and return the token of the forms."""
    response = await client.post("/admin/login", data={"key": ADMIN})
    assert response.status_code == 303
    found = re.search(r'name="token" value="([0-9a-f]{64})"', (await client.get("/admin")).text)
    assert found
    return found[1]


async def test_the_pages_want_a_login(service: Service) -> None:
    async with service.client("") as client:
        front = await client.get("/admin")
        assert "Log in" in front.text
        assert "alice" not in front.text
        assert (await client.get("/admin/accounts/alice")).status_code == 303
        wrong = await client.post("/admin/login", data={"key": service.key})
        assert wrong.status_code == 401
        assert "set-cookie" not in wrong.headers
        for path in ("threshold", "logout", "accounts/alice/status"):
            refused = await client.post(f"/admin/{path}", data={"token": "0" * 64, "status": "banned"})
            assert refused.status_code == 401


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(service: Service) -> None:
    async with service.client("") as client:
        response = await client.post("/admin/login", data={"key": ADMIN})
        cookie = response.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/admin", "Max-Age=28800"} <= set(cookie.split("; "))
        assert "Secure" not in cookie  # over plain HTTP it would be lost
        secure = await client.post("https://guard/admin/login", data={"key": ADMIN})
        assert "Secure" in secure.headers["set-cookie"]
        assert ADMIN not in cookie


async def test_forms_need_the_token_of_their_session(service: Service) -> None:
    async with service.client("") as client, service.client("") as other:
        await log_in(client)
        foreign = await log_in(other)
        for token in ("", foreign):
            data = {"token": token, "status": "banned"}
            assert (await client.post("/admin/accounts/alice/status", data=data)).status_code in (403, 422)
    async with service.admin() as admin:
        assert (await admin.get("/v1/admin/accounts/alice")).json()["status"] == "watched"


async def test_the_forms_do_what_they_say(service: Service) -> None:
    await steal(service, "eve")
    async with service.client("") as client, service.admin() as admin:
        token = await log_in(client)
        for status in ("trusted", "banned", "watched"):
            done = await client.post("/admin/accounts/eve/status", data={"token": token, "status": status})
            assert done.headers["location"] == "/admin/accounts/eve"
            assert (await admin.get("/v1/admin/accounts/eve")).json()["status"] == status
        for given, expected in (("2.5", 2.5), ("", 0.1)):
            done = await client.post("/admin/threshold", data={"token": token, "threshold": given})
            assert done.status_code == 303
            assert (await admin.get("/v1/admin/threshold")).json()["threshold"] == expected
        wrong = await client.post("/admin/threshold", data={"token": token, "threshold": "<b>nan"})
        assert wrong.status_code == 422
        assert "must be a number" in wrong.text
        assert (await client.post("/admin/logout", data={"token": token})).status_code == 303
        assert "Log in" in (await client.get("/admin")).text


async def test_pages_load_nothing_from_elsewhere_and_run_nothing(service: Service) -> None:
    await steal(service, "eve")
    async with service.client("") as client:
        await log_in(client)
        for path in ("/admin", "/admin/accounts/eve", "/admin?order=queries"):
            page = await client.get(path)
            assert page.status_code == 200
            assert "<script" not in page.text
            assert " style=" not in page.text  # the policy forbids it
            assert not re.search(r"(?:https?:)?//", page.text)
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert page.headers["cache-control"] == "no-store"


async def test_an_empty_page_says_what_to_do(service: Service) -> None:
    async with service.client("") as client:
        await log_in(client)
        assert "No account has asked yet" in (await client.get("/admin")).text
        account = (await client.get("/admin/accounts/alice")).text
        assert "No request of this account was flagged" in account
