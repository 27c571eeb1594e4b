"""Standing by while workers run in the foreground: progress, Ctrl-C, and what became of them."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from base.errors import RunFailed
from launch import processes
from launch.processes import adopt_orphans, end
from launch.progress import Progress, progress
from launch.screens.console import err, say
from launch.screens.numbers import event_text
from launch.status import status_of
from record.control import request_stop
from record.events import ENDINGS, latest, read_events, record_event
from record.folder import RunFolder

POLL_SECONDS = 0.25
_TORCHRUN = re.compile(
    r"^[EWI]\d{4} .*torch/distributed/elastic/multiprocessing/api.py.* failed ", re.MULTILINE
)
_ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL)


class Interrupts:
    """Counts Ctrl-C and SIGTERM in place of dying of them."""

    def __enter__(self) -> Interrupts:
        self.received: list[int] = []
        self.before = {kind: signal.signal(kind, self._receive) for kind in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)

    @property
    def exit_code(self) -> int:
        """128 + the first signal, as shells count; 0 without any."""
        return 128 + self.received[0] if self.received else 0


class Watch:
    """One start of a run, seen from outside. ``events_before`` and ``log_before`` mark where it begins."""

    def __init__(self, folder: RunFolder, steps: int, processes: int, log: Path) -> None:
        self.folder, self.steps, self.processes, self.log = folder, steps, processes, log
        self.events_before = len(read_events(folder))
        self.log_before = log.stat().st_size if log.exists() else 0

    def events(self) -> list[dict[str, Any]]:
        """What happened since this start."""
        return read_events(self.folder)[self.events_before :]

    def follow(self, process: subprocess.Popen[bytes]) -> int:
        """Show progress until the workers end; returns the exit code.

        The first Ctrl-C or SIGTERM asks for a collective save, the second kills.

        Raises:
            RunFailed: the workers failed; tells the first failing rank's own words.
        """
        adopt_orphans()
        with Interrupts() as interrupts, progress(err) as shown:
            self._stand_by(process, interrupts, shown)
        _end_orphans(process)
        if len(interrupts.received) > 1:
            say(f"killed; umbel resume {self.folder.handle} goes on from the newest checkpoint")
            return interrupts.exit_code
        self._conclude(process.returncode)
        return interrupts.exit_code

    def _stand_by(self, process: subprocess.Popen[bytes], interrupts: Interrupts, shown: Progress) -> None:
        heard = told = 0
        while process.poll() is None:
            if len(interrupts.received) > heard:
                heard += 1
                self._interrupted(heard, process, shown.note)
            told = self._tell_events(told, shown.note)
            shown.show(status_of(self.folder, self.steps))
            time.sleep(POLL_SECONDS)
        self._tell_events(told, shown.note)

    def _tell_events(self, told: int, note: Callable[[str], None]) -> int:
        events = self.events()
        for event in events[told:]:
            if text := event_text(event):
                note(text)
        return len(events)

    def _interrupted(self, times: int, process: subprocess.Popen[bytes], note: Callable[[str], None]) -> None:
        if times == 1:
            request_stop(self.folder)
            note("stopping: the workers save at the next step (Ctrl-C again kills them)")
        else:
            end(process)

    def _conclude(self, code: int) -> None:
        if not self.folder.path.exists():
            raise RunFailed("was deleted while it ran", where=str(self.folder.path), fix="start it again")
        if code != 0:
            raise self._failure(code)
        ending = latest(self.events(), *ENDINGS)
        name, handle = self.folder.name, self.folder.handle
        if ending is None:
            say(f"{name} ended without a word; umbel logs {handle}")
        elif ending["event"] == "finished":
            say(f"{name} finished at step {ending['step']}; try: umbel generate {handle} --prompt '…'")
        else:
            say(f"{name} stopped at step {ending['step']}; to go on: umbel resume {handle}")

    def _failure(self, code: int) -> RunFailed:
        rank, error, exit_code = self._first_failure(code)
        if self._is_news(error):
            record_event(self.folder, "failed", rank=rank, error=error, exit_code=exit_code, verdict=True)
        where, option = ("torchrun", "") if rank is None else (f"rank {rank}", f" --rank {rank}")
        failed = RunFailed(
            error, where=None if where in error else where, fix=f"umbel logs {self.folder.handle}{option}"
        )
        failed.exit_code = exit_code
        return failed

    def _is_news(self, error: str) -> bool:
        """Whether no ending tells it: a killed process writes none, and survivors write what they saw."""
        endings = [event for event in self.events() if event["event"] in ENDINGS]
        return all(event["event"] == "failed" and event.get("error") != error for event in endings)

    def _first_failure(self, code: int) -> tuple[int | None, str, int]:
        """(rank, or None for torchrun itself; error; exit code) of what failed first."""
        output = self._output()
        found = _ROOT_CAUSE.search(output)
        alone = None if self.processes > 1 else 0
        rank, status = (int(found[1]), int(found[2])) if found else (alone, code)
        if status < 0:
            return rank, _died_of(-status), 1
        told = [event for event in self.events() if event["event"] == "failed"]
        if told:
            return told[0]["rank"], told[0]["error"], told[0].get("exit_code") or 1
        err.print("\n".join(_own_words(output)[-20:]), markup=False, soft_wrap=True)
        return rank, f"ended with exit code {status}", 1

    def _output(self) -> str:
        """What this start's processes printed; its end, where it is long."""
        with open(self.log, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(self.log_before, size - 200_000))
            return file.read().decode(errors="replace")


def _own_words(output: str) -> list[str]:
    """The workers' lines, without the report that torchrun puts below them."""
    return _TORCHRUN.split(output, maxsplit=1)[0].rstrip().splitlines()


def _died_of(number: int) -> str:
    hint = " (the kernel does so when memory runs out)" if number == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(number).name}{hint}"


def _end_orphans(process: subprocess.Popen[bytes]) -> None:
    """Workers whose torchrun was killed get time for a collective save, then end."""
    end(process, signal.SIGTERM)
    deadline = time.monotonic() + processes.SAVE_SECONDS
    while end(process, 0) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    end(process)
