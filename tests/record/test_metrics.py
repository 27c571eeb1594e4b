from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from record.events import next_attempt, read_events, record_event
from record.folder import RunFolder
from record.metrics import MetricsWriter, lineage, read_metrics

Attempt = tuple[int, bool, int | None]
"""Steps until it is killed (0: at its start), whether it finds the newest checkpoint damaged, and after it a
rollback over so many checkpoints (None: there is none)."""


@given(
    attempts=st.lists(
        st.tuples(st.integers(0, 12), st.booleans(), st.none() | st.integers(0, 4)), min_size=1, max_size=8
    ),
    every=st.integers(1, 5),
)
def test_each_step_is_shown_once_by_the_attempt_that_counts(attempts: list[Attempt], every: int) -> None:
    """Simulate a run: attempts of random length, a checkpoint every few steps, kills anywhere, rollbacks.

    The truth is kept beside it: a list of who made each step of the state that an attempt loads.
    """
    metrics: list[dict[str, int]] = []
    events: list[dict[str, object]] = []
    saved: list[int] = []  # saved[i]: attempt that computed step i + 1 of the newest checkpoint
    truth: list[int] = []
    for attempt, (length, damaged, back) in enumerate(attempts, 1):
        saved = saved[: max(0, len(saved) - every)] if damaged else saved
        events.append({"event": "start", "attempt": attempt, "step": len(saved)})
        truth = list(saved)
        for _ in range(length):
            truth.append(attempt)
            metrics.append({"step": len(truth), "attempt": attempt})
            if len(truth) % every == 0:
                saved = list(truth)
        if back is not None:
            saved = saved[: max(0, len(saved) - back * every)]
            events.append({"event": "rollback", "to": len(saved), "from": len(truth)})
            truth = list(saved)
    shown = lineage(metrics, events)
    assert [line["step"] for line in shown] == list(range(1, len(truth) + 1))
    assert [line["attempt"] for line in shown] == truth


def test_of_two_attempts_at_one_step_the_newer_counts() -> None:
    lines = [{"step": 1, "attempt": 2}, {"step": 1, "attempt": 1}]
    assert lineage(lines, []) == lineage(reversed(lines), []) == [{"step": 1, "attempt": 2}]


def test_lines_beyond_the_resumed_step_are_discarded(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    record_event(folder, "start", attempt=1, step=0)
    MetricsWriter(folder, 1).write([{"step": step, "loss": 1.0} for step in range(1, 8)])
    record_event(folder, "start", attempt=2, step=5)
    MetricsWriter(folder, 2).write([{"step": 6, "loss": 2.0}])
    assert [(line["step"], line["attempt"]) for line in read_metrics(folder)] == [
        *((step, 1) for step in range(1, 6)),
        (6, 2),
    ]


def test_a_start_counts_before_it_has_written_a_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    record_event(folder, "start", attempt=1, step=0)
    MetricsWriter(folder, 1).write([{"step": step} for step in range(1, 8)])
    record_event(folder, "start", attempt=2, step=5)
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4, 5]


def test_a_run_without_lines(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    assert read_metrics(folder) == []


def test_attempts_are_counted_by_their_starts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    assert next_attempt(folder) == 1
    record_event(folder, "phase", name="building model")
    record_event(folder, "start", attempt=1, step=0)
    assert next_attempt(folder) == 2
    assert read_events(folder)[0]["time"].endswith("+00:00")
