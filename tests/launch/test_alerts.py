"""Alerts reach people by every way there is, never hold anybody up, and never show the webhook's address."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.schema import Supervision
from launch.supervise import alerts
from launch.supervise.alerts import WEBHOOK, Alerts
from record.events import read_events
from record.folder import RunFolder

SECRET = "T0/B0/wonderfully-secret-part"


class Hook(ThreadingHTTPServer):
    """A chat service on this machine. ``answers`` are its next status codes, then 200."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.heard: list[dict[str, Any]] = []
        self.wait = 0.0
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{SECRET}"


class Answer(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        time.sleep(self.server.wait)
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    server = Hook()
    monkeypatch.setenv(WEBHOOK, server.url)
    monkeypatch.setattr(alerts, "PAUSES", (0.01, 0.01))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.delenv(WEBHOOK, raising=False)
    return RunFolder(tmp_path / "mine").create()


def teller(run: RunFolder, command: str | None = None) -> tuple[Alerts, list[str]]:
    said: list[str] = []
    return Alerts(run, Supervision(alert_command=command), said.append), said


def test_without_anybody_to_tell_there_is_the_event_and_the_log(run: RunFolder) -> None:
    telling, said = teller(run)
    telling.tell("hang", "hang: rank 3 …")
    telling.close()
    (event,) = read_events(run)
    assert (event["event"], event["kind"], event["text"]) == ("alert", "hang", "hang: rank 3 …")
    assert said == ["alert: hang: rank 3 …"]


def test_a_command_gets_it_as_json(run: RunFolder, tmp_path: Path) -> None:
    telling, said = teller(run, f"cat >> '{tmp_path}/mail'")
    telling.tell("disk", "one")
    telling.tell("hang", "two")
    telling.close()
    told = [json.loads(line) for line in (tmp_path / "mail").read_text().splitlines()]
    assert [(each["run"], each["kind"], each["text"]) for each in told] == [
        ("mine", "disk", "one"),
        ("mine", "hang", "two"),
    ]
    assert all(each["time"] for each in told)
    assert said == ["alert: one", "alert: two"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo no such mailbox >&2; exit 3", "supervision.alert_command: exit code 3: no such mailbox"),
        ("(sleep 599; echo) | cat", "supervision.alert_command: took longer than 0.3 s"),
        ("no-such-program-at-all", "supervision.alert_command: exit code 127"),
    ],
)
def test_a_command_that_fails_is_told_and_harmless(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, command: str, words: str
) -> None:
    monkeypatch.setattr(alerts, "SECONDS", 0.3)
    telling, said = teller(run, command)
    telling.tell("hang", "text")
    telling.close()
    assert said[0] == "alert: text"
    assert words in said[1]
    assert not [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", "599"]]


def test_a_webhook_gets_a_line(run: RunFolder, hook: Hook) -> None:
    telling, said = teller(run)
    telling.tell("finished", "it finished")
    telling.close()
    assert hook.heard == [{"text": "mine: it finished"}]
    assert said == ["alert: it finished"]


def test_a_webhook_is_tried_again_and_then_given_up(run: RunFolder, hook: Hook) -> None:
    telling, said = teller(run)
    hook.answers = [503, 429]
    telling.tell("hang", "a")
    telling.close()
    assert len(hook.heard) == 3
    assert said == ["alert: a"]
    hook.answers = [500, 500, 500]
    telling.tell("hang", "b")
    telling.close()
    assert said[-1] == f"warning: an alert could not be delivered: ${WEBHOOK}: HTTP 500"


def test_a_webhook_that_refuses_is_not_asked_again(run: RunFolder, hook: Hook) -> None:
    telling, said = teller(run)
    hook.answers = [404]
    telling.tell("hang", "a")
    telling.close()
    assert len(hook.heard) == 1
    assert "HTTP 404" in said[-1]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/" + SECRET,
        "no url " + SECRET,
        "http://[" + SECRET,
        "https://x.invalid:99999/" + SECRET,
    ],
    ids=["nobody", "no-url", "broken", "no-port"],
)
def test_the_address_is_shown_nowhere(
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    url: str,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(WEBHOOK, url)
    monkeypatch.setattr(alerts, "PAUSES", ())
    telling = Alerts(run, Supervision(alert_command=f"env > '{tmp_path}/env'; echo {url!r} >&2; exit 1"))
    telling.tell("failed", f"could not post to {url}")
    telling.close()
    printed = "".join(capfd.readouterr())
    assert f"${WEBHOOK}" in printed
    for text in (printed, run.events.read_text(), (tmp_path / "env").read_text()):
        assert SECRET not in text


def test_telling_takes_no_time_however_slow_the_others_are(run: RunFolder, hook: Hook) -> None:
    hook.wait = 30
    telling, _ = teller(run)
    began = time.monotonic()
    for number in range(5):
        telling.tell("hang", str(number))
    telling.close(seconds=0.2)
    assert time.monotonic() - began < 2
    assert len(read_events(run)) == 5


def test_a_disk_that_is_full_is_told_all_the_same(
    run: RunFolder, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(alerts, "record_event", full)
    telling, _ = teller(run)
    telling.tell("disk", "full")
    telling.close()
    assert hook.heard == [{"text": "mine: full"}]


def test_a_process_that_ends_does_not_wait_for_a_webhook(run: RunFolder, hook: Hook) -> None:
    """Not even one that forgets to close: the thread is a daemon."""
    import subprocess

    hook.wait = 30
    program = (
        "import sys; from pathlib import Path; from configs.schema import Supervision\n"
        "from launch.supervise.alerts import Alerts; from record.folder import RunFolder\n"
        "Alerts(RunFolder(Path(sys.argv[1])), Supervision()).tell('hang', 'x')\n"
    )
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", program, str(run.path)], env=os.environ | {WEBHOOK: hook.url}, check=True
    )
    assert time.monotonic() - began < 10
