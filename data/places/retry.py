"""Patience with servers: which failures may pass, how long to wait between tries, when to give up."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from base.errors import UmbelError
from base.secrets import redact

if TYPE_CHECKING:
    from tenacity import RetryCallState

ATTEMPTS = 10
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try, and the most before any: ten tries last about four minutes."""
LONGEST_RETRY_AFTER = 600.0
LONGEST_REASON = 200
QUERY = re.compile(r"(?<=\S)\?[^\s'\"<>)]+=[^\s'\"<>)]*")
"""Of a URL: servers redirect to signed ones, and errors quote them."""
STALL_SECONDS = 60.0
"""A connection on which no byte came for so long is given up, and tried again."""

LOCAL_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""This machine's own: no server's and no file's fault."""
FINAL_TYPES = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ImportError)
FINAL_NAMES = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "InvalidURL"})
"""botocore's and aiohttp's, which need not be installed."""

Result = TypeVar("Result")
logger = logging.getLogger("umbel.data")


class BadFile(UmbelError):
    """A file that cannot be had or read, however often one tries."""


class ChangedFile(UmbelError):
    """A file whose content is no longer what its pin says: never skipped, never taken."""


def persist(call: Callable[[], Result], location: str) -> Result:
    """The result of ``call``, tried again with growing, jittered waits while the failure may pass.

    429 (after its Retry-After), 408, 5xx, timeouts, connections that break and bodies that end early may
    pass; 401, 403, 404 and every other answer are told at once.

    Raises:
        BadFile: names ``location`` and the last failure.
        UmbelError: raised by ``call`` itself, as it is.
        OSError: this machine's own fault: a full disk, too many open files.
    """
    import tenacity

    jitter = tenacity.wait_exponential_jitter(FIRST_WAIT, LONGEST_WAIT, jitter=FIRST_WAIT)
    tries = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=lambda state: max(jitter(state), _asked_to_wait(state)),
        retry=tenacity.retry_if_exception(may_pass),
        before_sleep=lambda state: _warn(state, location),
        reraise=True,
    )
    try:
        return tries(call)
    except UmbelError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in LOCAL_FAULTS:
            raise
        raise _told(error, location, tries.statistics.get("attempt_number", 1)) from error


class BrokenTransfer(Exception):
    """What came is not what was promised: too short, too long, or of another hash."""


def may_pass(error: BaseException) -> bool:
    """Whether trying again can help."""
    if not isinstance(error, Exception) or isinstance(error, UmbelError):
        return False
    if isinstance(error, OSError) and error.errno in LOCAL_FAULTS:
        return False
    if (status := _status(error)) is not None:
        return status in (408, 429) or status >= 500
    # fsspec tells a timeout as "file not found", with the timeout as its cause.
    *_, root = _causes(error)
    return not isinstance(root, FINAL_TYPES) and type(root).__name__ not in FINAL_NAMES


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _answers(error: BaseException | None) -> Iterator[tuple[int, Any]]:
    """(HTTP status, headers) that each HTTP library hangs on its exceptions in its own way."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            metadata = response.get("ResponseMetadata", {})
            yield metadata.get("HTTPStatusCode", 0), metadata.get("HTTPHeaders", {})
        elif response is not None:  # httpx (huggingface_hub), requests
            yield response.status_code, response.headers
        elif hasattr(cause, "request_info"):  # aiohttp; its errors about broken bodies have a code 400
            yield getattr(cause, "status", 0), getattr(cause, "headers", None) or {}
        elif type(cause).__module__.startswith("gcsfs"):
            yield int(getattr(cause, "code", None) or 0), {}


def _status(error: BaseException) -> int | None:
    return next((status for status, _ in _answers(error) if status >= 400), None)


def _asked_to_wait(state: RetryCallState) -> float:
    """Seconds that a server asks for; a date, the header's other form, is left to the growing waits."""
    error = state.outcome.exception() if state.outcome else None
    for _, headers in _answers(error):
        for name in ("Retry-After", "retry-after"):
            value = str(headers.get(name, ""))
            if value.isdigit():
                return min(float(value), LONGEST_RETRY_AFTER)
    return 0.0


def _warn(state: RetryCallState, location: str) -> None:
    """Patience must not look like a standstill: to stderr, or where a process's log is."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Exception):
        wait = state.next_action.sleep if state.next_action else 0
        what = _told(error, location, 1)
        logger.warning("%s; try %d of %d in %.0f s", what, state.attempt_number + 1, ATTEMPTS, wait)


def _told(error: Exception, location: str, attempts: int) -> UmbelError:
    status = _status(error)
    if status in (401, 403) or isinstance(error, PermissionError):
        fix = "give this machine's environment the credentials that may read it"
        return BadFile(f"access is refused (HTTP {status or 403})", where=location, fix=fix)
    if status == 404 or (isinstance(error, FileNotFoundError) and not may_pass(error)):
        return BadFile("is not there", where=location, fix="check the address")
    *_, root = _causes(error)
    said = root if isinstance(error, FileNotFoundError) else error
    words = QUERY.sub("", " ".join(str(said).split()))
    reason = redact(words)[:LONGEST_REASON] or type(said).__name__
    tried = f" after {attempts} tries" if attempts > 1 else ""
    return BadFile(f"cannot be fetched{tried} ({reason})", where=location)
