"""The admin page in a real browser: log in, look at a thief, ban it, change the threshold."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from defense.service.application import ADMIN, Service, as_json, foreign_images, known_images
from defense.service.browser import browsing, chromium
from defense.service.serving import served


@pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
def test_an_administrator_finds_and_bans_a_thief(tmp_path: Path) -> None:
    service = Service(tmp_path)
    thief = service.make_key("mallory")
    with served(service.app) as address, browsing(tmp_path / "profile") as browser:
        for key, images in [(service.key, known_images(9)), (thief, known_images(4)), (thief, foreign_images(7))]:
            headers = {"Authorization": f"Bearer {key}"}
            httpx.post(f"{address}/v1/predict", json=as_json(images), headers=headers).raise_for_status()

        browser.open(f"{address}/admin")
        browser.fill("#key", "not the key at all, sorry")
        browser.click("button")
        assert "not the administrator" in browser.text()
        browser.fill("#key", ADMIN)
        browser.click("button")
        keep(browser.screenshot(), "accounts.png")
        names = "[...document.querySelectorAll('tbody a')].map(a => a.textContent)"
        assert browser.evaluate(names) == ["mallory", "alice"]
        assert browser.evaluate("[...document.querySelectorAll('tr.flagged a')].map(a => a.textContent)") == ["mallory"]
        assert browser.evaluate("document.cookie") == ""  # out of reach of scripts
        # The style sheet is in force: the bar of the flagged account has the colour of danger.
        red = "getComputedStyle(document.querySelector('.over')).fill"
        assert browser.evaluate(red) == "rgb(179, 38, 30)"
        browser.prefer("dark")
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
        keep(browser.screenshot(), "accounts-dark.png")
        browser.prefer("light")

        browser.click("tbody a")
        assert "Flagged requests" in browser.text()
        keep(browser.screenshot(), "account.png")
        widths = "[...document.querySelectorAll('article svg .plain')].map(r => r.width.baseVal.value)"
        assert max(browser.evaluate(widths)) == 90
        browser.click("button.danger")
        assert service.store.account("mallory").status == "banned"  # type: ignore[union-attr]
        assert browser.evaluate("document.querySelector('h1 .badge').textContent") == "banned"

        browser.click("header .home")
        browser.fill("#threshold", "7.5")
        browser.click(".panel button")
        assert service.store.setting("threshold") == "7.5"
        assert "Back to the calibrated" in browser.text()

        assert all(url.startswith((address, "data:")) for url in browser.requested)
        assert [said for said in browser.complaints if "401" not in said] == []  # the wrong key above


def keep(picture: bytes, name: str) -> None:
    """Keep a picture for people, where they ask for it."""
    assert picture.startswith(b"\x89PNG")
    if folder := os.environ.get("STILLROOM_SCREENSHOTS"):
        Path(folder, name).write_bytes(picture)
