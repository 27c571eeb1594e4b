"""From a config to a job in the queue: look, ask, write down, hand in, and return at once."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator

import typer

from base.errors import UmbelError
from base.files import write_text
from configs.schema import RunConfig
from launch.begun import is_finished
from launch.job import freeze
from launch.paths import absolute_paths
from launch.screens.console import err, say
from launch.screens.submission import submission
from launch.screens.useful import AFTER_SUBMISSION, useful_commands
from launch.slurm.ask import require_slurm
from launch.slurm.checks import check_free
from launch.slurm.prospect import Prospect, look
from launch.slurm.sbatch import submit_script
from launch.slurm.snapshot import take_snapshot
from record.control import clear_stop
from record.events import next_attempt, record_event
from record.folder import RunFolder
from record.lock import RunLock


def submit(
    configs: list[RunConfig],
    *,
    typed: list[str],
    yes: bool = False,
    change: bool = False,
    prepare: bool = False,
) -> int:
    """Submit runs, each as a job or a chain of jobs. Returns the exit code, and does not wait for any job.

    Nothing is written before every run was looked at and somebody said yes.

    Args:
        typed: the command line, for the record.
        yes: do not ask.
        change: let defining keys change.
        prepare: prepare the data here, before the jobs wait; else the workers do when they start.

    Raises:
        UmbelError: a check refuses, or Slurm does; a run of which no job was queued is as it was before.
    """
    require_slurm()
    whole = [absolute_paths(config) for config in configs]
    whole = [config for config in whole if not is_finished(config, RunFolder.of(config))]
    if not whole:
        return 0
    prospects = [look(config, change=change) for config in whole]
    err.print(submission(prospects))
    if not yes and not _agreed():
        say("nothing was submitted")
        return 1
    for prospect in prospects:
        jobs = _submit(prospect, typed, prepare or bool(prospect.changed))
        say(f"{prospect.folder.name} is queued: {_named(jobs)}")
        if len(prospects) == 1:
            useful_commands(prospect.folder.handle, AFTER_SUBMISSION)
    if len(prospects) > 1:
        useful_commands(f"<{prospects[0].folder.name}…>", AFTER_SUBMISSION[:-1])
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UmbelError("nothing was submitted: nobody is here to say yes", fix="pass --yes")
    return typer.confirm("Submit?", err=True)


def _submit(prospect: Prospect, typed: list[str], prepare: bool) -> list[str]:
    """Write down what starts and hand it in; the ids of the jobs."""
    config, folder = prospect.config, prospect.folder
    with _all_or_nothing(folder) as queued, RunLock(folder.create(), "launch"):
        with RunLock(folder):
            check_free(folder)
        if prepare:
            from launch.prepared import prepare_data

            prepare_data(config, folder)
        clear_stop(folder)
        take_snapshot(folder)
        attempt = next_attempt(folder)
        freeze(folder, config, attempt, typed, prospect.world_size)
        script = folder.attempt_job(attempt).resolve() / "submit.sh"
        write_text(script, prospect.text)
        slurm = config.cluster.slurm
        for _ in range(slurm.jobs if slurm.chain == "dependency" else 1):
            job = submit_script(script, slurm, after=queued[-1] if queued else None)
            queued.append(job)
            record_event(folder, "submitted", job=job, script=str(script.relative_to(folder.path.resolve())))
        if prospect.changed:
            record_event(folder, "change", keys={key: [old, new] for key, old, new in prospect.changed})
    return queued


@contextlib.contextmanager
def _all_or_nothing(folder: RunFolder) -> Iterator[list[str]]:
    """A run of which no job was queued is as it was: a new one leaves no folder, another keeps its config.

    Yields the list to which queued jobs are added.
    """
    is_new = not folder.path.exists()
    before = folder.run_yaml.read_text() if folder.run_yaml.exists() else None
    queued: list[str] = []
    try:
        yield queued
    except BaseException as error:
        if queued:
            say(
                f"{folder.name}: {_named(queued)} is queued already; umbel stop {folder.handle} takes it back"
            )
        elif is_new:
            shutil.rmtree(folder.path, ignore_errors=True)
        elif before is not None:
            write_text(folder.run_yaml, before)
        if isinstance(error, OSError) and not isinstance(error, UmbelError):
            place = error.filename or str(folder.path)
            raise UmbelError(f"cannot be written ({error.strerror})", where=str(place)) from error
        raise


def _named(jobs: list[str]) -> str:
    return f"job {jobs[0]}" if len(jobs) == 1 else f"jobs {', '.join(jobs)}"
