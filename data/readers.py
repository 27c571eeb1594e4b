"""One reader per file type: JSONL, Parquet, plain text. Each yields documents and names what is broken."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from base.errors import UmbelError
from data.document import Document

Kind = Literal["jsonl", "parquet", "text"]
Format = Literal["text", "messages"]
MESSAGES = "messages"
COMPRESSIONS = (".gz", ".zst", ".bz2")
ENDINGS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
    ".py": "text",
}


def kind_of(path: Path) -> Kind | None:
    """The reader that a file's ending asks for; ``my.jsonl.gz`` is JSONL."""
    ending = path.suffix.lower()
    return ENDINGS.get(Path(path.stem).suffix.lower() if ending in COMPRESSIONS else ending)


def columns(path: Path, kind: Kind) -> list[str]:
    """The columns of a file: a Parquet file's schema, the keys of a JSONL file's first record."""
    if kind == "parquet":
        return list(_open_parquet(path).schema_arrow.names)
    if kind == "jsonl":
        return next((list(record) for _, record in _records(path)), [])
    return []


def read(path: Path, kind: Kind, field: str, form: Format) -> Iterator[Document]:
    """The documents of one file.

    Raises:
        UmbelError: a broken line (``file:line: what``), a missing column, a text that is no text.
    """
    if kind == "text":
        yield _whole_file(path)
        return
    column = MESSAGES if form == "messages" else field
    records = _records(path) if kind == "jsonl" else _rows(path, column)
    for number, record in records:
        where = f"{path}:{number}" if kind == "jsonl" else f"{path} row {number}"
        if column not in record:
            raise missing_column(where, column, list(record))
        yield _document(where, column, record[column], form)


def missing_column(where: str, column: str, existing: list[str]) -> UmbelError:
    return UmbelError(
        f"has no column '{column}', only: {', '.join(existing) or 'none'}",
        where=where,
        fix="set data.format=text"
        if column == MESSAGES
        else "name one of them as the source's field (in place of data.path: "
        "data=local 'data.sources.mine={path: …, field: …}')",
    )


def _document(where: str, column: str, value: Any, form: Format) -> Document:
    if form == "messages":
        if not isinstance(value, list):
            raise UmbelError(f"'{column}' must be a list of messages, not {_kind_name(value)}", where=where)
        # Parquet fills every key that any message of the column has with null.
        messages = [
            {key: item for key, item in message.items() if item is not None}
            if isinstance(message, dict)
            else message
            for message in value
        ]
        return Document(
            where, _encodable(json.dumps(messages, sort_keys=True, ensure_ascii=False), where), messages
        )
    if not isinstance(value, str):
        raise UmbelError(f"'{column}' must be text, not {_kind_name(value)}", where=where)
    return Document(where, _encodable(value, where))


def _encodable(text: str, where: str) -> str:
    """JSON can spell half a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UmbelError(f"is not valid Unicode (a lone surrogate at {error.start})", where=where) from error
    return text


def _whole_file(path: Path) -> Document:
    with _open(path) as file:
        return Document(str(path), _decoded(file.read(), path, 1))


def _decoded(content: bytes, path: Path, line: int) -> str:
    """UTF-8 to text. ASCII in UTF-16 is UTF-8 too, but full of zero bytes, which no text holds."""
    try:
        wrong = content.find(b"\0")
        if wrong < 0:
            return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = error.start
    line += content.count(b"\n", 0, wrong)
    raise UmbelError(
        "is not UTF-8 text",
        where=f"{path}:{line}",
        fix="convert it: iconv -f <encoding, often UTF-16> -t UTF-8",
    )


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(1-based line number, object) of every line that is not blank."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(_decoded(line, path, number))
            except ValueError as error:
                raise UmbelError(f"is not JSON ({error})", where=f"{path}:{number}") from error
            if not isinstance(record, dict):
                what = f'must be an object like {{"text": …}}, not {_kind_name(record)}'
                raise UmbelError(what, where=f"{path}:{number}")
            yield number, record


def _rows(path: Path, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(1-based row number, row) of a Parquet file, one row group in memory at a time."""
    file, number = _open_parquet(path), 0
    if column not in file.schema_arrow.names:
        raise missing_column(str(path), column, list(file.schema_arrow.names))
    for group in range(file.num_row_groups):
        for value in file.read_row_group(group, columns=[column]).column(column).to_pylist():
            number += 1
            yield number, {column: value}


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UmbelError(f"is no Parquet file ({str(error).splitlines()[0]})", where=str(path)) from error


class _open:
    """A binary stream, unpacked by its ending, whose read errors name the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> io.BufferedReader:
        try:
            self.file = io.BufferedReader(pa.input_stream(str(self.path), compression="detect"))
        except OSError as error:
            raise self._unreadable(error) from error
        return self.file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.file.close()
        if isinstance(error, OSError):
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> UmbelError:
        reason = error.strerror or str(error).splitlines()[0]
        return UmbelError(f"cannot be read ({reason})", where=str(self.path))


def _kind_name(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


assert set(ENDINGS.values()) == set(get_args(Kind))
