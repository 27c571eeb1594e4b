"""Telling people: an event at once, then a command and a webhook, in a thread that nobody waits for."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from base.secrets import redact
from configs.schema import Supervision
from record.events import record_event, utc_now
from record.folder import RunFolder

WEBHOOK = "UMBEL_ALERT_WEBHOOK"
"""Environment: a URL that takes ``{"text": …}`` by POST, as chat services do. It is a secret."""

SECONDS = 10.0
"""What a command or a webhook may take."""

PAUSES = (1.0, 4.0)
"""Seconds before each further try of a webhook."""

CLOSING_SECONDS = 15.0

Alert = dict[str, Any]


class Alerts:
    """Tells what happens to one run. Whatever fails here is told in the log and does no harm.

    Args:
        say: where faults of the delivery go; to standard error without one.
    """

    def __init__(
        self, folder: RunFolder, settings: Supervision, say: Callable[[str], None] | None = None
    ) -> None:
        self.folder, self._command = folder, settings.alert_command
        self._webhook = os.environ.get(WEBHOOK) or None
        self._say = say or (lambda text: print(f"umbel: {text}", file=sys.stderr, flush=True))
        self._waiting: queue.SimpleQueue[Alert | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def tell(self, kind: str, text: str) -> None:
        """Record the event ``alert`` and have it delivered. Returns at once."""
        text = self._redacted(text)
        self._say(f"alert: {text}")
        with contextlib.suppress(OSError):  # the disk may be what the alert is about
            record_event(self.folder, "alert", kind=kind, text=text)
        if self._command or self._webhook:
            self._start()
            self._waiting.put({"run": self.folder.name, "kind": kind, "text": text, "time": utc_now()})

    def close(self, seconds: float = CLOSING_SECONDS) -> None:
        """Wait a while for what is being delivered."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(seconds)
            self._thread = None

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._deliver, name="alerts", daemon=True)
            self._thread.start()

    def _deliver(self) -> None:
        while (alert := self._waiting.get()) is not None:
            if self._command:
                try:
                    self._run(self._command, alert)
                except OSError as error:
                    self._fault("supervision.alert_command", error.strerror or "OSError")
            if self._webhook:
                self._post(self._webhook, alert)

    def _run(self, command: str, alert: Alert) -> None:
        """The shell's, for a user wrote it; it gets the alert as JSON on standard input."""
        variables = {name: value for name, value in os.environ.items() if name != WEBHOOK}
        pipe = subprocess.PIPE
        # A process group, to end all of it; no session: those are the workers', and ended with them.
        process = subprocess.Popen(
            command, shell=True, env=variables, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT,
            process_group=0,
        )  # fmt: skip
        try:
            printed, _ = process.communicate(json.dumps(alert).encode() + b"\n", SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._fault("supervision.alert_command", f"took longer than {SECONDS:g} s")
            return
        if process.returncode:
            words = printed.decode(errors="replace").strip().splitlines()
            self._fault("supervision.alert_command", f"exit code {process.returncode}", *words[-1:])

    def _post(self, url: str, alert: Alert) -> None:
        body = json.dumps({"text": f"{alert['run']}: {alert['text']}"}).encode()
        why = ""
        for pause in (0.0, *PAUSES):
            time.sleep(pause)
            try:
                request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=SECONDS):
                    return
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}"
                if error.code < 500 and error.code != 429:
                    break
            except (
                Exception
            ) as error:  # whatever is wrong with it: never with its words, they may hold the URL
                why = type(error).__name__
        self._fault(f"${WEBHOOK}", why)

    def _fault(self, where: str, *why: str) -> None:
        self._say(f"warning: an alert could not be delivered: {where}: {': '.join(map(self._redacted, why))}")

    def _redacted(self, text: str) -> str:
        text = redact(text)
        return text.replace(self._webhook, "[redacted]") if self._webhook else text
