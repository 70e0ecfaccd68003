"""Rules of the house: layers, sizes, docstrings, and documents that speak the truth."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffrate_jax
from configs import base

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffrate_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
README = ROOT / "README.md"
PROGRAMS = {
    *("benchmark", "convert", "evaluate", "export", "finetune", "quickstart"),
    *("report", "search", "study", "visualize"),
}
# Parts of the package, and what they must not know of.
FORBIDDEN = {
    "tokens rates schedule": {"compress", "cost", "models"},
    "compress tome cost": {"models"},
    "models": {"weights", "recipes"},
}
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def imported(source: Path) -> set[str]:
    """Returns the parts of the package that a file imports: "models", "cost"."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{source} imports relative to itself"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "diffrate_jax" and part[1:]}


def part_of(source: Path) -> str:
    """Returns the part of the package that a file belongs to."""
    return source.relative_to(PACKAGE).with_suffix("").parts[0]


def defined(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields the public functions and classes of a module, and their methods."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, FUNCTION | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from defined(node)


def test_imports_point_one_way():
    wrong = []
    for source in SOURCES:
        refused = set().union(
            *(names for parts, names in FORBIDDEN.items() if part_of(source) in parts)
        )
        wrong += [f"{source.name}: {n}" for n in imported(source) & refused]
    assert not wrong


def test_nothing_imports_a_program():
    wrong = {source.name: imported(source) & PROGRAMS for source in SOURCES}
    assert not {name: names for name, names in wrong.items() if names}


def test_the_package_is_light():
    heavy = {"tensorflow", "tensorflow_datasets", "torch", "timm", "sklearn"}
    heavy |= {"matplotlib", "pandas", "PIL"}
    code = f"import sys, diffrate_jax; print(*{heavy} & {{*sys.modules}})"
    command = [sys.executable, "-c", code]
    loaded = subprocess.check_output(command, cwd=ROOT, text=True).split()
    assert not loaded


def test_files_and_functions_are_short():
    long = []
    for source in [*SOURCES, *(ROOT / "configs").glob("*.py")]:
        text = source.read_text()
        if text.count("\n") > 300:
            long.append(f"{source.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, FUNCTION) and node.end_lineno - node.lineno >= 50:
                long.append(f"{source.name}: {node.name}")
    assert not long


def test_everything_public_is_explained():
    silent = []
    for source in [*SOURCES, *(ROOT / "configs").glob("*.py")]:
        tree = ast.parse(source.read_text())
        names = [node.name for node in defined(tree) if not ast.get_docstring(node)]
        silent += [f"{source.name}: {name}" for name in names]
        if not ast.get_docstring(tree):
            silent.append(source.name)
    assert not silent


def test_public_names_exist():
    assert sorted(diffrate_jax.__all__) == diffrate_jax.__all__
    assert all(hasattr(diffrate_jax, name) for name in diffrate_jax.__all__)


def test_no_file_names_a_place_on_somebody_s_machine():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True).split("\0")
    found = []
    for name in filter(None, listed):
        path = ROOT / name
        if name.startswith("tests/") or not path.is_file():
            continue
        text = path.read_bytes().decode(errors="replace")
        places = re.findall(r"(?<![\w.~}])/(?:home|root|work|tmp|Users)/[\w./-]*", text)
        found += [f"{name}: {place}" for place in places]
    assert not found


def blocks(language: str) -> list[str]:
    """Returns the code blocks of the README in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.M | re.S)


def documents() -> dict[str, str]:
    """Returns every text that shows commands: READMEs, programs, recipes, scripts."""
    shown = [ROOT / "configs", PACKAGE]
    files = [path for folder in shown for path in sorted(folder.rglob("*.py"))]
    files += [README, ROOT / "results/README.md", *sorted((ROOT / "launch").glob("*"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in files}


def test_readme_has_commands_and_code():
    assert "launch/quickstart.sh" in "".join(blocks("bash"))
    assert blocks("python")


@pytest.mark.parametrize("name", documents())
def test_commands_name_what_exists(name):
    text = documents()[name]
    for program in re.findall(r"python -m diffrate_jax\.([a-z]\w+)", text):
        # A program and a package at once, which everything may import.
        assert program in {*PROGRAMS, "data"}
    paths = re.findall(r"--(?:config|recipe)=(configs/[\w/.-]+)", text)
    paths += re.findall(r"\b(launch/\w+\.\w+)", text)
    for path in paths:
        assert (ROOT / path).is_file(), path
    for field in re.findall(r"--config\.([a-z_]+)=", text):
        assert field in {*base.get_config(), "key", "field", "name"}


def test_readme_python_uses_names_that_exist():
    for code in blocks("python"):
        ast.parse(code)
        for name in re.findall(r"\bdr\.(\w+)", code):
            assert hasattr(diffrate_jax, name), name


def anchors(path: Path) -> set[str]:
    """Returns the places of a Markdown file that links can point at, as on GitHub."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("name", ["README.md", "results/README.md"])
def test_documents_are_finished_and_their_links_lead_somewhere(name):
    path = ROOT / name
    assert not re.findall(r"^[A-Z_]{5,}$", path.read_text(), re.M)
    for link in re.findall(r"\]\((?!https?:)([^)]+)", path.read_text()):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
