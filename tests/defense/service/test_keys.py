"""API keys are stored as hashes, and wrong ones cost what right ones cost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.defense.service.keys import account_of, hash_admin_key, is_admin_key, new_key
from stillroom.defense.service.sessions import Sessions
from stillroom.defense.service.settings import Settings
from stillroom.defense.service.store import Key, Limits
from stillroom.errors import InputError

DIGEST = bytes(32)
SECRET = b"0123456789abcdef"


class Keys:
    """Keys by their public part, and what was looked up."""

    def __init__(self, *keys: Key) -> None:
        self.known, self.asked = {key.key_id: key for key in keys}, list[str]()

    def find_key(self, key_id: str) -> Key | None:
        self.asked.append(key_id)
        return self.known.get(key_id)


def test_a_key_opens_its_account_and_no_other() -> None:
    (first, one), (second, two) = new_key("acme"), new_key("umbrella")
    keys = Keys(one, two)
    assert account_of(keys, first) == "acme"
    assert account_of(keys, second) == "umbrella"
    mixed = f"sr_{one.key_id}_{second.split('_', 2)[2]}"
    assert account_of(keys, mixed) is None


def test_what_is_kept_does_not_hold_the_secret() -> None:
    text, key = new_key("acme")
    secret = text.split("_", 2)[2]
    assert secret not in repr(key)
    assert len(key.digest) == 32
    assert len(secret) >= 43  # 256 bits


@pytest.mark.parametrize(
    "presented", ["", "sr_", "sr_0123456789abcdef_", "x" * 5_000, "sr_0123456789abcdef_" + "a" * 43]
)
def test_unknown_and_malformed_keys_are_looked_up_like_right_ones(presented: str) -> None:
    text, key = new_key("acme")
    keys = Keys(key)
    assert account_of(keys, presented) is None
    assert account_of(keys, text[:-1] + ("A" if text[-1] != "A" else "B")) is None
    assert account_of(keys, text) == "acme"
    assert len(keys.asked) == 3


@settings(max_examples=100, derandomize=True)
@given(st.text(max_size=80))
def test_no_text_opens_anything(presented: str) -> None:
    assert account_of(Keys(new_key("acme")[1]), presented) is None
    assert not is_admin_key(presented, hash_admin_key("an-administrators-key-of-tests"))


@pytest.mark.parametrize("name", ["", "a b", "../etc", "é", "x" * 65, "-a", "a\n"])
def test_odd_names_of_accounts_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot name an account"):
        new_key(name)


def test_short_administrators_keys_are_refused() -> None:
    with pytest.raises(InputError, match="at least 24"):
        hash_admin_key("password")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"secret": b"short"}, "16 bytes"),
        ({"admin_digest": b"plain key"}, "hash_admin_key"),
        ({"answers": "soft-ish"}, "kind of answers"),
        ({"max_images": 0}, "max_images"),
        ({"body_seconds": float("nan")}, "body_seconds"),
        ({"decimals": 0}, "decimals"),
        ({"limits": Limits(0.0, 5)}, "limits"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Settings(**{"admin_digest": DIGEST, "secret": SECRET, **changes})  # type: ignore[arg-type]


def test_sessions_end_with_time_with_the_key_and_when_forged() -> None:
    sessions = Sessions(SECRET, DIGEST, 100)
    cookie = sessions.begin(now=1000)
    expires, nonce, mac = cookie.split(".")
    assert sessions.valid(cookie, 1099)
    assert not sessions.valid(cookie, 1100)
    assert not sessions.valid(f"{int(expires) + 1}.{nonce}.{mac}", 1000)
    assert not Sessions(SECRET, b"1" * 32, 100).valid(cookie, 1000)
    assert not Sessions(b"1" * 16, DIGEST, 100).valid(cookie, 1000)


def test_a_forms_token_belongs_to_one_session() -> None:
    sessions = Sessions(SECRET, DIGEST, 100)
    one, two = sessions.begin(now=0), sessions.begin(now=0)
    assert sessions.is_form_token(sessions.form_token(one), one)
    assert not sessions.is_form_token(sessions.form_token(one), two)
    assert not sessions.is_form_token("é", one)
    assert sessions.form_token(one) not in one  # the cookie does not give it away
