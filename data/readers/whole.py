"""Files that are one document each: plain text, and the files of the Python library."""

from __future__ import annotations

from pathlib import Path

from data.files import Reading, SourceFile
from data.places.python_corpus import python_text
from data.readers.streams import decoded, open_bytes

COLUMN = "text"
"""What a template or a filter calls the whole text."""


def text_of(path: Path, file: SourceFile, reading: Reading, place: str) -> str:
    """The text of a file; of a Python file, the part that is asked for."""
    with open_bytes(path, file.name, place) as stream:
        content = stream.read()
    if file.kind == "python":
        return python_text(content, file.name, reading.part or "code")
    return decoded(content, place, 1)
