"""No module imports one that imports it, at run time or for types, however far around."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imports(package: str) -> dict[str, set[str]]:
    """Module -> the modules of the package that it names in an import anywhere in its file.

    What stands under ``if __name__ == "__main__"`` is another program's.
    """
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (ROOT / package).rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, file in files.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
        ]
        named: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                named |= {full if full in files else node.module for full in inside.values()}
        found[module] = (named & files.keys()) - {module}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, or []."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(graph[module]):
            if round_ := search(other, [*path, module]):
                return round_
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := search(module, []))), [])


@pytest.mark.parametrize("package", ["ssdcore", "ssdcore_torch"])
def test_no_import_circles(package):
    graph = imports(package)
    assert len(graph) > 20
    assert circle(graph) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
