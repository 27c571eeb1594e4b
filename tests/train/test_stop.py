"""Requests to stop and to save: how a process hears of them, and how soon it obeys."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from record.control import clear_stop, request_save, request_stop
from record.folder import RunFolder
from support.small_models import ALONE
from train.stop import SIGNALS, StopRequest, save_requests


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """A run's folder; signals are as they were when it is over."""
    before = {kind: signal.getsignal(kind) for kind in SIGNALS}
    yield RunFolder(tmp_path / "run").create()
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_signal_is_the_reason(folder: RunFolder, kind: signal.Signals) -> None:
    stop = StopRequest(folder, polls=False)
    assert not stop.pending()
    os.kill(os.getpid(), kind)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.pending()
    assert stop.reason == kind.name, "the first one counts"


def test_the_file_says_why_or_its_name_does(folder: RunFolder) -> None:
    request_stop(folder, "time limit")
    assert StopRequest(folder, polls=False).pending() is False, "one process looks for all"
    first = StopRequest(folder, polls=True)
    assert (first.pending(), first.reason) == (True, "time limit")
    clear_stop(folder)
    assert first.agreed(ALONE), "what was heard is not forgotten"
    (folder.control / "stop").touch()
    second = StopRequest(folder, polls=True)
    assert (second.agreed(ALONE), second.reason) == (True, "control/stop")


def test_a_wish_to_save_is_heard_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = save_requests(folder)
    assert not wanted()
    request_save(folder)
    assert not wanted(), "asked twice a second at most"
    monkeypatch.setattr("train.stop.POLL_SECONDS", 0)
    assert wanted()
    assert not wanted()
