"""Launching a run on this machine, from checks to the last word."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from configs.batch import check_batch
from configs.check import warnings
from configs.schema import RunConfig
from launch import preflight
from launch.begun import changed_keys, is_finished
from launch.devices import world_size
from launch.fits import check_fits
from launch.job import freeze
from launch.paths import absolute_paths
from launch.prepared import prepare_data
from launch.processes import command, environment, start, supervised
from launch.screens.console import say, warn
from launch.screens.useful import useful_commands
from launch.supervise.marks import Marks
from launch.watch import Watch
from record.control import clear_stop, stop_requested
from record.events import next_attempt, record_event
from record.folder import RunFolder
from record.lock import HANDED_DOWN, RunLock


def launch(
    config: RunConfig,
    *,
    typed: list[str],
    detach: bool = False,
    yes: bool = False,
    change: bool = False,
    hints: bool = True,
    variables: dict[str, str] | None = None,
) -> int:
    """Check, prepare, freeze, start and (unless detached) stand by. Returns the exit code.

    A run that has a checkpoint continues it. ``typed`` is the command line for the record; ``yes`` starts
    although memory or disk seem too small; ``change`` lets defining keys change; ``hints`` prints what is
    probably not meant; ``variables`` are added to the workers' environment.

    Raises:
        UmbelError: a check refuses.
        RunFailed: the workers failed.
    """
    config = absolute_paths(config)
    preflight.check_one_node(config)
    folder, processes = RunFolder.of(config), world_size(config)
    check_batch(config, processes)
    if processes > 1:
        preflight.check_port()
    for note in warnings(config, processes) if hints else ():
        warn(note)
    is_new = not folder.path.exists()
    with contextlib.ExitStack() as held:
        with _telling_ctrl_c():
            lock = held.enter_context(preflight.take(folder.create(), say))
            with _whole(folder, is_new):
                # Not before the run is ours: a rollback may change it.
                changed = changed_keys(config, folder, change)
                if not yes and next_attempt(folder) == 1:
                    check_fits(config, folder, processes)
                if not _make_ready(config, folder):
                    return 0
                if changed:
                    record_event(folder, "change", keys={key: [old, new] for key, old, new in changed})
                freeze(folder, config, next_attempt(folder), typed, processes)
        return _run(config, folder, lock, processes, detach, variables or {})


def _make_ready(config: RunConfig, folder: RunFolder) -> bool:
    """Prepare the data, unless there is nothing to do or, meanwhile, a wish to stop; whether to go on."""
    if is_finished(config, folder):
        return False
    clear_stop(folder)
    prepare_data(config, folder)
    if stop_requested(folder):
        say(f"{folder.name} was asked to stop before its workers started")
        return False
    return True


@contextlib.contextmanager
def _telling_ctrl_c() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("stopped before the workers started")
        raise


@contextlib.contextmanager
def _whole(folder: RunFolder, is_new: bool) -> Iterator[None]:
    """A new run that does not come to be (refused, Ctrl-C) leaves no folder."""
    try:
        yield
    finally:
        if is_new and not folder.run_yaml.exists():
            shutil.rmtree(folder.path, ignore_errors=True)


def _run(
    config: RunConfig,
    folder: RunFolder,
    lock: RunLock,
    processes: int,
    detach: bool,
    variables: dict[str, str],
) -> int:
    log = folder.logs / "launch.log"
    record_event(folder, "phase", name="starting workers")
    watch = Watch(config.schedule.steps, Marks.now(folder, log))
    with lock.shared() as descriptor:
        process = start(
            supervised(folder.path, command(folder.run_yaml, processes)),
            environment(config, processes) | variables | {HANDED_DOWN: str(descriptor)},
            log,
            keep=(descriptor,),
            detach=detach,
        )
    lock.sign(process.pid if detach else os.getpid())
    if detach:
        say(f"{folder.name} runs in the background (process {process.pid})")
        useful_commands(folder.handle)
        return 0
    return watch.follow(process)


def typed_command(argv: list[str]) -> list[str]:
    """The command line as the user typed it, without the path of the interpreter's scripts folder."""
    return [Path(argv[0]).name, *argv[1:]]
