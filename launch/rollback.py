"""Going back to an earlier checkpoint: what it would do, when it is refused, and doing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from base.errors import UmbelError
from checkpoint import manifest as manifests
from checkpoint.folders import steps
from checkpoint.verify import verify
from configs.compose import load
from configs.schema import RunConfig
from data.manifest import Manifest
from launch.batches import kept_manifest
from launch.checkpoints import find_checkpoint
from launch.skip_data import Range, add_range, range_to_skip
from record.events import ENDINGS, goes_on_from, latest, read_events, record_event, since_start
from record.folder import RunFolder
from record.identity import run_id
from record.metrics import read_metrics
from record.rollback import SKIP, aside_folder, finish_rollback, rollbacks


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """What a rollback does.

    Args:
        origin: the newest step of the run as it stands.
        tokens: learned from between ``to`` and ``origin``; None where nothing tells.
        beyond: the checkpoints that are set aside, in ``aside``, newest first, and their bytes.
        skip: the range of the global order to leave out, or None.
        ranges: ``data.skip`` before and after.
    """

    to: int
    origin: int
    tokens: int | None
    beyond: dict[Path, int]
    aside: Path
    skip: Range | None
    ranges: tuple[list[Range], list[Range]]


class _Reached(NamedTuple):
    """The newest step that ended, the tokens by then, and the newest step whose data were read."""

    step: int
    tokens: int | None
    read: int


def plan_rollback(folder: RunFolder, to: int, skip_data: str | None, say: Callable[[str], None]) -> Rollback:
    """What going back to the checkpoint of step ``to`` would do; changes nothing.

    ``skip_data`` is ``A:B``, ``to-here`` or None (`launch.skip_data`).

    Raises:
        UmbelError: there is no such checkpoint, it is damaged, the run stands on it already, or the range
            cannot be skipped from there.
    """
    config, found = load(folder.run_yaml), steps(folder.checkpoints)
    checkpoint = find_checkpoint(str(folder.path), to)
    say(f"checking the checkpoint of step {to}…")
    verify(checkpoint, run_id=run_id(folder))
    manifest = manifests.read(checkpoint)
    reached = _reached(folder, config, max(found), to)
    skip, old = None, config.data.skip
    new = old
    if skip_data is not None:
        data = _manifest_of_data(folder)
        skip = range_to_skip(skip_data, config, data, manifest, reached.read)
        new = add_range(config, data, skip)
    beyond = {path: _size(path) for step, path in found.items() if step > to}
    if not beyond and new == old:
        fix = f"umbel resume {folder.handle} goes on from it"
        raise UmbelError(f"step {to} is its newest checkpoint already", where=folder.name, fix=fix)
    return Rollback(
        to=to,
        origin=reached.step,
        tokens=None if reached.tokens is None else reached.tokens - manifest["tokens"],
        beyond=beyond,
        aside=aside_folder(folder, len(rollbacks(read_events(folder))) + 1),
        skip=skip,
        ranges=(old, new),
    )


def roll_back(folder: RunFolder, rollback: Rollback) -> None:
    """Do it: one event, from which all else follows, now or, after a kill, at the next start.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    old, new = rollback.ranges
    record_event(
        folder,
        "rollback",
        **{"to": rollback.to, "from": rollback.origin, "tokens": rollback.tokens},
        set_aside=[path.name for path in rollback.beyond],
        skip=[rollback.skip] if rollback.skip else [],
        **({"keys": {SKIP: [old, new]}} if new != old else {}),
    )
    finish_rollback(folder)


def _reached(folder: RunFolder, config: RunConfig, newest: int, to: int) -> _Reached:
    events, lines = read_events(folder), read_metrics(folder)
    last = lines[-1] if lines else {}
    saved, origin = latest(events, "checkpoint"), latest(events, "start", "rollback")
    told = [last.get("step", 0), saved["step"] if saved else 0, (origin and goes_on_from(origin)) or 0]
    # A run that was copied without its records has its checkpoints.
    step = max(to, *told) if any(told) else newest
    read = min(step + _failed_in_a_step(events), config.schedule.steps)
    tokens = last.get("tokens") if last.get("step") == step else _tokens(folder, step)
    return _Reached(step, tokens, read)


def _failed_in_a_step(events: Sequence[dict[str, Any]]) -> bool:
    """Whether the newest start failed, by a loss that is not finite say: that step has read its data, too."""
    kinds = [event["event"] for event in since_start(events) if event["event"] in ("start", *ENDINGS)]
    return kinds[:2] == ["start", "failed"]


def _tokens(folder: RunFolder, step: int) -> int | None:
    """Up to the checkpoint of a step; None where there is none that can be read."""
    try:
        tokens: int = manifests.read(steps(folder.checkpoints)[step])["tokens"]
    except (KeyError, UmbelError):
        return None
    return tokens


def _manifest_of_data(folder: RunFolder) -> Manifest:
    kept = kept_manifest(folder)
    if kept is None:
        fix = "bring back its data.json, or roll back without --skip-data"
        raise UmbelError("keeps no manifest of its data", where=folder.name, fix=fix)
    return kept


def _size(checkpoint: Path) -> int:
    return sum(file.stat().st_size for file in checkpoint.iterdir())
