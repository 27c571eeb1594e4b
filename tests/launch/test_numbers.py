from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.screens.numbers import ago, duration, event_text, short


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1280, "1.3k"),
        (41_234, "41k"),
        (999_900, "1.0M"),
        (7.07e9, "7.1B"),
        (176e9, "176B"),
    ],
)
def test_short(count: float, text: str) -> None:
    assert short(count) == text


@given(st.floats(0, 1e15))
def test_short_is_short(count: float) -> None:
    assert len(short(count)) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.4, "8 s"), (130, "2m10"), (21_900, "6h05"), (3 * 86400 + 4 * 3600, "3d 4h"), (-1, "0 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "just now"), (40, "40 s ago"), (185, "3 min ago"), (7300, "2 h ago"), (4e5, "5 d ago")],
)
def test_ago(seconds: float, text: str) -> None:
    assert ago(seconds) == text


def test_events_worth_a_line() -> None:
    assert event_text({"event": "start", "step": 0, "attempt": 1}) is None
    assert event_text({"event": "start", "step": 9, "attempt": 2}) == "continuing after step 9, attempt 2"
    checkpoint = {"event": "checkpoint", "step": 9, "seconds": 1.25, "bytes": 2048}
    assert event_text(checkpoint) == "checkpoint of step 9 (1.2 s, 2.0 KiB)"
    assert event_text({"event": "evaluation", "step": 9, "losses": {"code": 3.2}}) == (
        "held-out loss after step 9: code 3.200"
    )


def test_a_warning_reaches_the_screen() -> None:
    assert event_text({"event": "warning", "text": "step-9 is damaged"}) == "warning: step-9 is damaged"
