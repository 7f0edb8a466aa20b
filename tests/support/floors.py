"""Checks of imports: of circles, of the order of rooms in the shell, and of what only some rooms may import."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOMS = {
    "core": "_core",
    "ground": "errors text directions values views lifetime wakeup native awaiting processors",
    "faults": "attributes spelling faults rules handles inforce",
    "config": "config",
    "network": "network",
    "tap": "tap",
    "report": "report",
    "crew": "crew lookups",
    "proxy": "proxy controls refusing waits",
    "package": "__init__",
    "extras": "metrics fixtures pytest_plugin",
    "command": "command",
    "main": "__main__",
}
"""The shell's modules and packages by room. A module imports from its own room and from those before it."""

ONLY_IN = {
    "click": {"command"},
    "ctypes": {"command"},
    "http.server": {"command"},
    "rich": {"command"},
    "signal": {"command", "main"},
    "logging": {"report"},
    "pytest": {"pytest_plugin"},
    "prometheus_client": {"metrics"},
}
"""Modules that are not ours, and the rooms or modules that may import them."""

Graph = dict[str, set[str]]


class CircleError(AssertionError):
    """Modules import each other."""


def floors(graph: Graph) -> list[list[str]]:
    """Sorts modules by what they import: those on the first floor import nothing, others from lower floors only.

    Raises:
        CircleError: its text names the modules of one circle, and the floors that are below it.
    """
    left = {name: (imported & graph.keys()) - {name} for name, imported in graph.items()}
    found: list[list[str]] = []
    while left:
        floor = sorted(name for name, imported in left.items() if not imported & left.keys())
        if not floor:
            path = [min(left)]
            while path[-1] not in path[:-1]:
                path.append(min(left[path[-1]] & left.keys()))
            circle = " -> ".join(path[path.index(path[-1]) :])
            below = "".join(f"\n{number:3}  {' '.join(names)}" for number, names in enumerate(found))
            raise CircleError(f"circle of imports: {circle}\nfloors below it:{below or ' none'}")
        found.append(floor)
        for name in floor:
            del left[name]
    return found


# --- the core ---


def core_module(path: Path) -> str:
    """The module that a file is part of: there is a poller and a splice for each platform."""
    return re.sub(r"^(poller|splice)_\w+$", r"\1", path.stem)


def cimports(text: str) -> Iterator[str]:
    """The modules of the core that a .pxd or .pyx file cimports."""
    text = re.sub(r"\\\n", " ", text)
    yield from re.findall(r"^\s*from (?:tcpproxy\._core\.|\.)(\w+) cimport ", text, re.MULTILINE)
    yield from re.findall(r"^\s*cimport tcpproxy\._core\.(\w+)", text, re.MULTILINE)
    for names in re.findall(r"^\s*from (?:tcpproxy\._core|\.) cimport \(?([^#\n)]+)", text, re.MULTILINE):
        yield from (name.split()[0] for name in names.split(",") if name.strip())


def core_graph(folder: Path) -> Graph:
    graph: Graph = {}
    for path in sorted([*folder.glob("*.pxd"), *folder.glob("*.pyx")]):
        graph.setdefault(core_module(path), set()).update(cimports(path.read_text(encoding="utf-8")))
    return graph


def shell_imports_of_core(folder: Path) -> list[str]:
    """Imports in the core of modules of the shell."""
    pattern = r"^\s*(?:import tcpproxy\b(?!\._core)|from (?:tcpproxy(?!\._core)[\w.]*|\.\.[\w.]*) c?import\b).*"
    return [
        f"{path.name}: {line.strip()}"
        for path in sorted(folder.iterdir())
        if path.suffix in (".py", ".pyi", ".pyx", ".pxd")
        for line in re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


# --- the shell ---


class Imports(ast.NodeVisitor):
    """Full names of what a module imports when it runs, in functions too, but not under TYPE_CHECKING.

    An import from a package is listed as package.name, whether the name is a module or something in the package.
    """

    def __init__(self, package: str) -> None:
        self.package, self.names = package, set[str]()

    def visit_If(self, node: ast.If) -> None:
        checking = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for child in node.orelse if checking else [node.test, *node.body, *node.orelse]:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        self.names.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        parts = self.package.split(".")
        base = ".".join(parts[: len(parts) + 1 - node.level]) if node.level else ""
        origin = ".".join(part for part in (base, node.module) if part)
        self.names.update(f"{origin}.{alias.name}" for alias in node.names)


def shell_imports(folder: Path) -> Graph:
    """What each module of the shell imports, by full names; a package's own module is package.__init__."""
    graph: Graph = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
        if parts[1] != "_core":
            visitor = Imports(".".join(parts[:-1]))
            visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
            graph[".".join(parts)] = visitor.names
    return graph


def target(name: str, modules: Graph) -> str | None:
    """The module of the shell, or of the core, that an imported name is or is in; None: neither."""
    while name:
        for module in (name, f"{name}.__init__"):
            if module in modules:
                return module
        if name.endswith("._core"):
            return name
        name = name.rpartition(".")[0]
    return None


def own_imports(modules: Graph) -> Graph:
    """The part of `shell_imports` that is about the package itself."""
    return {
        module: {found for name in names if (found := target(name, modules))} - {module}
        for module, names in modules.items()
    }


def place(module: str) -> tuple[str, str]:
    """The room of a module, "" if it has none, and the name below the package that decides it."""
    name = module.split(".")[1]
    return next((room for room, names in ROOMS.items() if name in names.split()), ""), name


def faults(modules: Graph) -> Iterator[str]:
    """Imports against the order of the rooms, and of what others may import; modules without a room."""
    order = list(ROOMS)
    for module in modules:
        if not place(module)[0]:
            yield f"{module} has no room in {'/'.join(Path(__file__).parts[-3:])}"
    for module, imported in own_imports(modules).items():
        for other in sorted(imported):
            here, there = place(module)[0], place(other)[0]
            if here and there and order.index(there) > order.index(here):
                yield f"{module} ({here}) imports {other} ({there})"
    for module, names in modules.items():
        for name in sorted(names):
            for foreign, allowed in ONLY_IN.items():
                if f"{name}.".startswith(f"{foreign}.") and not allowed & set(place(module)):
                    yield f"{module} imports {foreign}, which only {', '.join(sorted(allowed))} may"
