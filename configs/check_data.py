"""The rules of ``data`` that span several keys."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from base.errors import UmbelError, did_you_mean
from configs.phases import phase_start
from configs.schema import Data, RunConfig, Source

_CREDENTIALS = re.compile(
    r"://[^/\s?]*@|[?&][^=&]*(?:token|sig|secret|password|credential|key|auth|jwt)[^=&]*=", re.IGNORECASE
)
"""A user in a URL, or a parameter that signs it."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WITHOUT_COLUMNS = ("python", "text")  # kinds whose documents are whole files
PATH_SOURCE = "data"
"""The name of the one source that ``data.path`` stands for."""


def check_data(config: RunConfig) -> None:
    """Check sources, weights, phases, skipped ranges and what the modes allow.

    Raises:
        UmbelError: the first rule that is broken.
    """
    data = config.data
    if bool(data.sources) == bool(data.path):
        raise UmbelError(
            "needs either data.sources or data.path",
            where="data",
            fix="for example data=python or data.path=my.jsonl",
        )
    if not 0 <= data.held_out < 0.5:
        raise UmbelError("must be at least 0 and below 0.5", where="data.held_out")
    _check_place(data.path, "data.path")
    _check_weights({name: source.weight for name, source in data.sources.items()}, "data.sources", ".weight")
    for name, source in data.sources.items():
        _check_source(source, f"data.sources.{name}")
    _check_phases(data)
    _check_skip(config)
    _check_mode(data)


def late_phases(config: RunConfig, sequences: int) -> list[str]:
    """A note for each phase that a run of ``sequences`` never reaches."""
    length = config.data.sequence_length
    return [
        f"data.phases[{index}] never begins: the run ends after {sequences * length:,} tokens"
        for index, phase in enumerate(config.data.phases)
        if phase_start(phase, length) >= sequences
    ]


def _check_weights(weights: Mapping[str, float], where: str, ending: str = "") -> None:
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise UmbelError(f"must be a number from 0 on, not {weight}", where=f"{where}.{name}{ending}")
    if weights and sum(weights.values()) == 0:
        raise UmbelError("weights sum to 0", where=where, fix="give at least one a weight above 0")


def _check_source(source: Source, where: str) -> None:
    if (source.kind == "python") == bool(source.path):
        fix = "drop the path" if source.path else f"set {where}.path"
        raise UmbelError("kind=python reads no path, every other kind does", where=where, fix=fix)
    if source.part and source.kind != "python":
        raise UmbelError("has a meaning only with kind=python", where=f"{where}.part", fix="drop it")
    _check_place(source.path, f"{where}.path")
    _check_hub(source, where)
    _check_columns(source, where)
    _check_filters(source, where)
    if source.max_epochs is not None and not 0 < source.max_epochs < math.inf:
        raise UmbelError(f"must be a number above 0, not {source.max_epochs}", where=f"{where}.max_epochs")


def _check_place(path: str | None, where: str) -> None:
    if path and "://" in path and _CREDENTIALS.search(path):
        raise UmbelError(
            "holds credentials",
            where=where,
            fix="leave them to the environment (AWS_ACCESS_KEY_ID, HF_TOKEN, …), and give the bare URL",
        )


def _check_hub(source: Source, where: str) -> None:
    if source.kind == "hub":
        if not _HUB_NAME.fullmatch(source.path or ""):
            raise UmbelError(f"must be org/name, not {source.path!r}", where=f"{where}.path")
        return
    given = {"config": source.config, "revision": source.revision}
    given["split"] = source.split if source.split != "train" else None
    for key, value in given.items():
        if value is not None:
            raise UmbelError("has a meaning only with kind=hub", where=f"{where}.{key}", fix="drop it")


def _check_columns(source: Source, where: str) -> None:
    columns = {"template": source.template is not None, "filters.columns": bool(source.filters.columns)}
    for key, given in columns.items():
        if given and source.kind in _WITHOUT_COLUMNS:
            raise UmbelError(f"kind={source.kind} has no columns", where=f"{where}.{key}", fix="drop it")
    if source.template is not None and source.field != "text":
        raise UmbelError(
            "template and field exclude each other",
            where=where,
            fix=f"drop {where}.field or {where}.template",
        )


def _check_filters(source: Source, where: str) -> None:
    filters, where = source.filters, f"{where}.filters"
    if filters.min_chars < 0:
        raise UmbelError(f"must be a number from 0 on, not {filters.min_chars}", where=f"{where}.min_chars")
    if filters.max_chars is not None and filters.max_chars < max(1, filters.min_chars):
        raise UmbelError(
            f"lets no text pass: {filters.max_chars} is below {max(1, filters.min_chars)}",
            where=f"{where}.max_chars",
        )
    for key in ("matches", "excludes"):
        try:
            re.compile(getattr(filters, key) or "")
        except (re.error, OverflowError, RecursionError) as error:
            fix = "mend it; in YAML, put it between single quotes"
            raise UmbelError(
                f"is no regular expression ({error})", where=f"{where}.{key}", fix=fix
            ) from error
    for column, accepted in filters.columns.items():
        if not accepted:
            raise UmbelError(
                "accepts no value", where=f"{where}.columns.{column}", fix="list some, or drop it"
            )


def _check_phases(data: Data) -> None:
    sources = data.sources if data.sources else {PATH_SOURCE: None}
    before = 0
    for index, phase in enumerate(data.phases):
        where = f"data.phases[{index}]"
        if not 0 < phase.from_tokens < math.inf:
            raise UmbelError(
                f"must be a number above 0, not {phase.from_tokens:g}",
                where=f"{where}.from_tokens",
                fix="what holds from the start are the sources' own weights",
            )
        start = phase_start(phase, data.sequence_length)
        if start <= before:
            raise UmbelError(
                f"{phase.from_tokens:g} is not a sequence after the phase before",
                where=f"{where}.from_tokens",
                fix="list the phases in order",
            )
        before = start
        for name in phase.weights:
            if name not in sources:
                raise UmbelError(
                    "no such source", where=f"{where}.weights.{name}", fix=did_you_mean(name, sources)
                )
        if not phase.weights:
            raise UmbelError("names no source", where=f"{where}.weights")
        _check_weights(phase.weights, f"{where}.weights")


def _check_skip(config: RunConfig) -> None:
    end = 0
    for index, skipped in enumerate(config.data.skip):
        where = f"data.skip[{index}]"
        if len(skipped) != 2 or not 0 <= skipped[0] < skipped[1]:
            raise UmbelError(f"must be [first, end] with 0 ≤ first < end, not {skipped}", where=where)
        if skipped[0] < end:
            raise UmbelError(
                f"{skipped} begins before {end}, where the one before ends",
                where=where,
                fix="list the ranges in order, and join those that overlap",
            )
        first, end = skipped
        batch = config.schedule.global_batch
        if config.data.mode == "streaming" and (end - first) % batch:
            fitting = first + -(-(end - first) // batch) * batch
            raise UmbelError(
                f"{end - first} sequences are no multiple of schedule.global_batch={batch}, "
                "as data.mode=streaming needs",
                where=where,
                fix=f"skip [{first}, {fitting}]",
            )


def _check_mode(data: Data) -> None:
    if data.mode == "streaming" and data.packing == "best_fit":
        raise UmbelError(
            "best_fit looks at all documents first, so it needs data.mode=prepared",
            where="data.packing",
            fix="set it to concat, or data.mode=prepared",
        )
