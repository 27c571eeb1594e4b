"""The rules of the house, so that nobody has to remember them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("base", "configs", "record", "data", "checkpoint", "train", "hub", "launch")
WITHOUT_TORCH = ("base", "configs", "record", "data", "checkpoint", "launch")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def sources() -> list[Path]:
    return sorted([*(file for room in ROOMS for file in (ROOT / room).rglob("*.py")), ROOT / "umbel.py"])


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def texts() -> Iterator[Path]:
    """Every text file of the repository that is not made by a tool."""
    made = re.compile(r"__pycache__|\.egg-info|^build$|^dist$|^runs$|^wandb$|^\.(?!ci$|gitignore$|github$)")
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if not made.search(name)]
        yield from (Path(folder, file) for file in files if not made.search(file))


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "slurm").rglob("*.md")])


def at(file: Path, node: ast.AST | None = None) -> str:
    return f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


# Code that can be read --------------------------------------------------------------------------------


def test_functions_fit_a_screen_and_files_hold_one_idea() -> None:
    long_files = [at(file) for file in sources() if len(file.read_text().splitlines()) > 400]
    long_functions = [
        f"{at(file, node)} {node.name}"
        for file in sources()
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= 60
    ]
    assert long_files == []
    assert long_functions == []


def public(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public classes, functions and methods of public classes."""
    bodies = [tree(file).body]
    while bodies:
        for node in bodies.pop():
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            yield node
            if isinstance(node, ast.ClassDef):
                bodies.append(node.body)


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in every)


def test_files_classes_and_functions_of_many_arguments_say_what_they_are() -> None:
    silent = [at(file) for file in sources() if tree(file).body and not ast.get_docstring(tree(file))]
    for file in sources():
        for node in public(file):
            if isinstance(node, ast.ClassDef) or arguments(node) >= 4:
                silent += [f"{at(file, node)} {node.name}"] if not ast.get_docstring(node) else []
    assert silent == []


def test_nothing_is_left_for_later() -> None:
    mark = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    assert [at(file) for file in [*sources(), *documents()] if mark.search(file.read_text())] == []


# Floors -----------------------------------------------------------------------------------------------


def test_the_lower_rooms_and_the_command_line_do_not_import_torch() -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in sources()
        if file.relative_to(ROOT).parts[0] in (*WITHOUT_TORCH, "umbel.py")
    ]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = [each for each in ('torch', 'transformers', 'deepspeed') if each in sys.modules]\n"
        "    if heavy: sys.exit(f'{name} imports {heavy}')\n"
    )
    command = [sys.executable, "-c", program, *modules]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


# Nothing of one machine -------------------------------------------------------------------------------


def test_no_file_knows_a_machine_or_a_registry() -> None:
    machine = re.compile(r"(?<![\w.~$}/])/(?:ro" + r"ot|ho" + r"me|wo" + r"rk)/")
    registry = re.compile(
        r"https?://[^\s\"')>]*(?:py" + r"pi|pythonho" + r"sted|artifac" + r"tory|/simple\b|whe" + r"els?\b)"
    )
    found = []
    for file in texts():
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if machine.search(line) or registry.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


# Documents that are true ------------------------------------------------------------------------------


def anchors(file: Path) -> set[str]:
    """The names that headings get on the forges."""
    headings = re.findall(r"^#+ +(.*)$", without_code_blocks(file.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_links_in_documents_lead_somewhere() -> None:
    broken = []
    for file in documents():
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code_blocks(file.read_text())):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            destination = (file.parent / path) if path else file
            known = destination.exists() and (not anchor or anchor in anchors(destination))
            broken += [] if known else [f"{file.relative_to(ROOT)}: {target}"]
    assert broken == []


def commands(text: str) -> set[str]:
    """Every ``umbel …`` in a code block or between backticks."""
    blocks = "\n".join(re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    spans = re.findall(r"`([^`\n]+)`", without_code_blocks(text))
    lines = [*blocks.splitlines(), *spans]
    return {
        match[1] for line in lines if (match := re.match(r"\s*(?:\$ )?(?:[\w.]+/)*(umbel(?: .*)?)$", line))
    }


def test_every_command_in_the_documents_exists() -> None:
    wrong = []
    for file in documents():
        for command in sorted(commands(file.read_text())):
            fault = unknown_part(command)
            wrong += [f"{file.relative_to(ROOT)}: {command}: {fault}"] if fault else []
    assert wrong == []


def unknown_part(command: str) -> str | None:
    """The first word of a command line that the command line does not know."""
    import typer

    from launch.cli import app

    node = typer.main.get_command(app)
    words = re.split(r"\s+#|[|;&>]", command)[0].split()[1:]
    options = {"--help", "-h"}
    for word in words:
        if word.startswith("-"):
            known = options.union(*(parameter.opts + parameter.secondary_opts for parameter in node.params))
            if word.split("=")[0] not in known and not re.fullmatch(r"-\d+", word):
                return word
        elif hasattr(node, "commands") and not word.startswith(("…", "<", "[")):
            if word not in node.commands:
                return word
            node = node.commands[word]
    return None


def test_a_command_that_does_not_exist_is_noticed() -> None:
    text = (
        "Say `umbel fly --high`.\n```bash\n$ .venv/bin/umbel plan --hihg\numbel plan model=x  # look\n```\n"
    )
    assert commands(text) == {"umbel fly --high", "umbel plan --hihg", "umbel plan model=x  # look"}
    assert unknown_part("umbel fly --high") == "fly"
    assert unknown_part("umbel plan --hihg") == "--hihg"
    assert unknown_part("umbel plan model=x  # look") is None


# What is installed ------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line.strip() and not line.startswith("#")]
    assert [line for line in pinned if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)] == []
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in pinned)}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [
        Requirement(line)
        for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    ]


def test_every_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    versions = pins()
    wrong = [
        str(requirement)
        for requirement in requirements()
        if not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), "0"))
        or canonicalize_name(requirement.name) not in versions
    ]
    assert wrong == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of a copy of the repository, built without a network."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in texts():
        target = copy / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    finished = subprocess.run(
        [sys.executable, "-c", build, str(out)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_every_module_and_every_preset_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    presets = list((ROOT / "configs").rglob("*.yaml"))
    assert len(presets) > 10
    wanted = {file.relative_to(ROOT).as_posix() for file in [*sources(), *presets]}
    assert wanted <= names
    strangers = {name for name in names - wanted if name.split("/")[0] not in (*ROOMS, "slurm")}
    assert strangers == set()


def test_the_wheel_names_its_command_and_its_licence(wheel: zipfile.ZipFile) -> None:
    def metadata(end: str) -> str:
        (name,) = [name for name in wheel.namelist() if name.endswith(end)]
        return wheel.read(name).decode()

    assert "umbel = umbel:main" in metadata("entry_points.txt")
    assert "License-Expression: Apache-2.0" in metadata("METADATA")
    assert metadata("licenses/LICENSE") == (ROOT / "LICENSE").read_text()
