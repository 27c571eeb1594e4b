"""Ways to spoil a checkpoint. Whoever spoils it may seal the manifest anew: a seal finds rot, no attacker."""

from __future__ import annotations

import copy
import json
import os
import re
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from checkpoint.manifest import SEAL, seal

Draw = Callable[[Any], Any]
FILES = ("state-00001-of-00002.safetensors", "state-00002-of-00002.safetensors")

NUMBERS = (-1, 0, 1, 2, 3, 7, 11, 21, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, -0.0, 1e308)
NAMES = ("", "a", "a" * 600, "x" * 5000, "wte.weight|master", "wte.weight", "scale", "base.weight", "0" * 64)
PATHS = (
    "../../outside/secret",
    "/dev/zero",
    "..",
    "outside/state-1.safetensors",
    "state-../x.safetensors",
    *FILES,
)
WORDS = ("master", "F32", "f32", "BF16", "F64", "F8_E4M3")
UNICODE = (
    "\u202emaster", "\ud800", "a\0b", "\x1b[31mred", "e\u0301", "\u00e9", "\uff0f\uff0e\uff0e",
    "wte\u200b.weight", "scale\n",
)  # fmt: skip
TEXTS = NAMES + PATHS + WORDS + UNICODE
SCALARS = (*NUMBERS, True, False, None, *TEXTS)
LISTS = (
    [],
    {},
    [0],
    [21],
    [7, 3],
    [3, 7],
    [[]],
    {"a": {}},
    [2**62] * 16,
    [0] * 17,
    [1] * 16,
    [-5],
    [True],
    ["1"],
    [None],
)


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


VALUES = st.one_of(
    st.sampled_from(SCALARS),
    st.sampled_from(LISTS).map(copy.deepcopy),
    st.integers(-3, 40),
    st.integers(1, 60).map(deep),
    st.text(max_size=12),
    st.lists(st.integers(-1, 30), max_size=3),
)
TOKENS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1",
    "1.0",
    "9" * 5000,
    "0x10",
    "01",
    "1,1",
    "[" * 500,
    '"\\ud800"',
    "\x00",
)


def parts(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a state file."""
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]
    return manifest


def write_manifest(folder: Path, manifest: Any) -> None:
    (folder / "manifest.json").write_bytes(seal(manifest))


def write_tail(folder: Path, tail: bytes) -> None:
    """Seal whatever text follows the checksum."""
    (folder / "manifest.json").write_bytes(SEAL + sha256(tail).hexdigest().encode() + tail)


def entry(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(file for file in manifest["files"] if file["name"] == name)


def rewrite(path: Path, raw: bytes) -> None:
    """Put content into a state file and make the manifest's size and sha256 agree with it."""
    path.write_bytes(raw)
    manifest = read_manifest(path.parent)
    entry(manifest, path.name).update(size=len(raw), sha256=sha256(raw).hexdigest())
    write_manifest(path.parent, manifest)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, each in inner:
        found += places(each, (*path, key))
    return found


def spoil_json(draw: Draw, value: Any) -> None:
    """Replace, remove, rename, double or exchange something anywhere in a JSON value."""
    known = places(value)
    *way, last = draw(st.sampled_from(known))
    holder = follow(value, way)
    how = draw(st.sampled_from(("replace", "replace", "remove", "rename", "add", "exchange")))
    if how == "replace":
        holder[last] = draw(VALUES)
    elif how == "remove":
        del holder[last]
    elif how == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from(TEXTS))] = holder.pop(last)
    elif how == "exchange":
        *other_way, other = draw(st.sampled_from(known))
        other_holder = follow(value, other_way)
        mine, theirs = json.dumps(holder[last]), json.dumps(other_holder[other])
        holder[last], other_holder[other] = json.loads(theirs), json.loads(mine)
    elif isinstance(holder, list):
        holder.append(json.loads(json.dumps(holder[last])))
    else:
        holder[draw(st.sampled_from(("more", "", "a/b", "__proto__", "wte.weight|frozen")))] = draw(VALUES)


def follow(value: Any, way: list[Any]) -> Any:
    for key in way:
        value = value[key]
    return value


# Each takes a way to draw, a folder to spoil, and a folder outside of it that nobody may touch.


def rot(draw: Draw, folder: Path, _: Path) -> None:
    """Bytes changed, cut, put in or taken out, and nothing sealed."""
    path = folder / draw(st.sampled_from((*FILES, "manifest.json")))
    raw = path.read_bytes()
    anywhere, in_data = st.integers(0, len(raw) - 1), st.integers(len(raw) - 60, len(raw) - 1)
    at, count = draw(anywhere | in_data), draw(st.integers(1, 100))
    path.write_bytes(
        draw(
            st.one_of(
                st.integers(1, 255).map(lambda bits: raw[:at] + bytes([raw[at] ^ bits]) + raw[at + 1 :]),
                st.just(raw[:at]),
                st.binary(min_size=1, max_size=20).map(lambda extra: raw[:at] + extra + raw[at:]),
                st.just(raw[:at] + raw[at + count :]),
                st.just(raw[:at] + bytes(count) + raw[at + count :]),
                st.just(raw + bytes(count)),
            )
        )
    )


def strange_files(draw: Draw, folder: Path, outside: Path) -> None:
    """Links, pipes, folders, pickles, archives, holes where files should be; or one file too many."""
    name = draw(st.sampled_from((*FILES, "manifest.json")))
    path, other = folder / name, folder / draw(st.sampled_from(FILES))
    raw = path.read_bytes()
    path.unlink()
    zipped = b"PK\x03\x04" + raw
    ways: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "link outside": lambda: path.symlink_to(outside / name),
        "link inside": lambda: path.symlink_to(other.name),
        "link to a device": lambda: path.symlink_to("/dev/zero"),
        "link to itself": lambda: path.symlink_to(name),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "empty": lambda: path.write_bytes(b""),
        "hole": lambda: (path.write_bytes(raw), os.truncate(path, 1 << draw(st.integers(20, 42)))),
        "pickle": lambda: path.write_bytes(b"\x80\x04cos\nmkdir\n(S'executed'\ntR." + raw),
        "sealed pickle": lambda: _sealed(path, raw, b"\x80\x04cos\nmkdir\n(S'executed'\ntR."),
        "sealed zip": lambda: _sealed(path, raw, zipped),
        "another name": lambda: (folder / name.upper()).write_bytes(raw),
        "a stray": lambda: (
            path.write_bytes(raw),
            (folder / draw(st.sampled_from(STRAYS))).write_bytes(b"x"),
        ),
    }
    ways[draw(st.sampled_from(sorted(ways)))]()


STRAYS = (
    "notes.txt",
    "weights.pt",
    ".hidden",
    "state-00003-of-00003.safetensors",
    "manifest.json ",
    "new\nline",
)


def _sealed(path: Path, raw: bytes, content: bytes) -> None:
    path.write_bytes(content)
    if path.name != "manifest.json":
        path.write_bytes(raw)
        rewrite(path, content)


def exchanged_files(draw: Draw, folder: Path, _: Path) -> None:
    """The ranks' files change places, or one stands for both; the manifest may agree."""
    first, second = (folder / name for name in FILES)
    one, other = first.read_bytes(), second.read_bytes()
    both = draw(st.booleans())
    write = rewrite if draw(st.booleans()) else Path.write_bytes
    write(first, other)
    if both:
        write(second, one)


def forged_header(draw: Draw, folder: Path, _: Path) -> None:
    """A header that says something else, in a file whose hash agrees."""
    path = folder / draw(st.sampled_from(FILES))
    header, data = parts(path.read_bytes())
    note = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
    target = draw(st.sampled_from(("header", "note", "length", "data")))
    if target == "header":
        spoil_json(draw, header)
    elif target == "note":
        spoil_json(draw, note)
        header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(note)
    elif target == "data":
        data = draw(st.sampled_from((data[:-1], data + b"\0", data[1:], b"", data + data)))
    raw = joined(header, data)
    if target == "length":
        length = draw(st.sampled_from((0, 1, 2, len(raw) - 8, len(raw) - 7, 1 << 31, 1 << 62, (1 << 64) - 1)))
        raw = struct.pack("<Q", length) + raw[8:]
    rewrite(path, raw)


def forged_manifest(draw: Draw, folder: Path, _: Path) -> None:
    """A manifest that says something else, sealed."""
    manifest = read_manifest(folder)
    for _ in range(draw(st.integers(1, 2))):
        spoil_json(draw, manifest)
    write_manifest(folder, manifest)


def forged_text(draw: Draw, folder: Path, _: Path) -> None:
    """Text that no honest JSON writer makes, sealed."""
    tail = (folder / "manifest.json").read_bytes()[len(SEAL) + 64 :].decode()
    how = draw(st.sampled_from(("number", "double", "cut", "insert")))
    if how == "number":
        found = draw(st.sampled_from(list(re.finditer(r"(?<=[:,\[])-?\d+(?=[,\]}])", tail))))
        tail = tail[: found.start()] + draw(st.sampled_from(TOKENS)) + tail[found.end() :]
    elif how == "double":
        found = draw(st.sampled_from(list(re.finditer(r'"[^"]+":(?:\d+|\[[\d,]*\]|"[^"]*")(?=[,}])', tail))))
        tail = tail[: found.end()] + "," + found[0] + tail[found.end() :]
    else:
        at = draw(st.integers(0, len(tail) - 1))
        tail = tail[:at] + (draw(st.sampled_from(TOKENS)) + tail[at:] if how == "insert" else "")
    write_tail(folder, tail.encode("utf-8", "surrogatepass"))


def forged_both(draw: Draw, folder: Path, _: Path) -> None:
    """Header and manifest tell the same lie about a fragment, sealed; it may be that it is none."""
    name = draw(st.sampled_from(FILES))
    manifest = read_manifest(folder)
    header, data = parts((folder / name).read_bytes())
    note = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
    stored = entry(manifest, name)["fragments"]
    key = draw(st.sampled_from(sorted(stored)))
    how = draw(st.sampled_from(("dtype", "shape", "offsets", "shift", "rename", "remove", "parameter")))
    if how == "rename":
        other = draw(st.sampled_from(TEXTS)) + "|master"
        stored[other], header[other], note[other] = stored.pop(key), header.pop(key), note.pop(key)
    elif how == "remove":
        del stored[key], header[key], note[key]
    elif how == "parameter":
        manifest["parameters"][key.rpartition("|")[0]] = draw(VALUES)
    else:
        value = draw(VALUES) if how != "shift" else [draw(st.integers(0, 21)) for _ in stored[key]["offsets"]]
        how = "offsets" if how == "shift" else how
        stored[key][how] = value
        if how == "offsets":
            note[key]["saved_offsets"] = value
        else:
            header[key][how] = value
    header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(note)
    write_manifest(folder, manifest)
    rewrite(folder / name, joined(header, data))


def doubled_file(draw: Draw, folder: Path, _: Path) -> None:
    """A rank's file stands there twice, beside the other's or in its place; sealed."""
    name = draw(st.sampled_from(FILES))
    other = draw(st.sampled_from([one for one in ("state-3.safetensors", *FILES) if one != name]))
    manifest = read_manifest(folder)
    double = entry(manifest, name) | {"name": other}
    manifest["files"] = [file for file in manifest["files"] if file["name"] != double["name"]] + [double]
    (folder / double["name"]).write_bytes((folder / name).read_bytes())
    write_manifest(folder, manifest)


def another_state(draw: Draw, folder: Path, _: Path) -> None:
    """Not spoilt at all: another state, told by all files alike."""
    key, how = draw(st.sampled_from(("base.weight|frozen", "scale|master", "wte.weight|exp_avg"))), "dtype"
    if key == "base.weight|frozen":
        how = draw(st.sampled_from(("dtype", "offsets")))
    dtype = "U16" if key == "base.weight|frozen" else draw(st.sampled_from(("I32", "U32")))
    manifest = read_manifest(folder)
    for name, start in zip(FILES, (6, 0), strict=True):
        stored = entry(manifest, name)["fragments"]
        if key not in stored:
            continue
        header, data = parts((folder / name).read_bytes())
        note = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
        if how == "offsets":
            stored[key]["offsets"] = note[key]["saved_offsets"] = [start]
        else:
            stored[key]["dtype"] = header[key]["dtype"] = dtype
        header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(note)
        raw = joined(header, data)
        (folder / name).write_bytes(raw)
        entry(manifest, name).update(size=len(raw), sha256=sha256(raw).hexdigest())
    write_manifest(folder, manifest)


SPOILERS = (
    rot, strange_files, exchanged_files, forged_header, forged_manifest, forged_manifest, forged_text,
    forged_both, doubled_file, another_state,
)  # fmt: skip
