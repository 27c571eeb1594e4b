from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.secrets import MARK, redact

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
letters = st.text(alphabet=ALPHABET, min_size=20, max_size=40)


@given(
    secret=letters,
    prefix=st.sampled_from(["hf_", "sk-", "sk-ant-", "ghp_", "github_pat_", "xoxb-"]),
    around=st.text(max_size=20),
)
def test_tokens_are_known_by_their_form(secret: str, prefix: str, around: str) -> None:
    assert prefix + secret not in redact(f"{around} {prefix}{secret} {around}")


def test_values_of_secret_variables_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "plainlooking1")
    monkeypatch.setenv("EDITOR_NAME", "harmless-text")
    assert redact("use plainlooking1 and harmless-text") == f"use {MARK} and harmless-text"


def test_passwords_in_urls_go() -> None:
    assert redact("git clone https://me:pass1@host/x") == f"git clone https://{MARK}@host/x"


def test_ordinary_text_stays() -> None:
    text = "umbel launch experiment=demo optimizer.lr=1e-3 data.path=s3://bucket/a@b"
    assert redact(text) == text
