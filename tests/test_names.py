"""No module uses another's underscore names: what the library itself needs is public."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for package in ("ssdcore", "ssdcore_torch") for file in (ROOT / package).rglob("*.py"))
# Uses of other libraries' names that those libraries document, or that have no public form.
FOREIGN = {"_exit", "_dynamo", "_dynamo_marked_constant", "_dynamo_static_indices", "_pytree", "_cdata",
           "_C", "_ExperimentalConfig", "_len_torch_dispatch_stack", "_len_torch_function_stack",
           "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
           "_post_accumulate_grad_hooks",}  # fmt: skip


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def own_names(tree: ast.AST) -> set[str]:
    """Underscore names that a file defines: functions, classes, fields, variables, attributes of self and of objects
    that it makes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            names.add(node.value)  # __slots__, __setattr__
    return names


def is_foreign(name: str) -> bool:
    return name in FOREIGN or name.startswith("_foreach_")  # torch's own, which it has no other form of


def foreign_uses(source: str, package: str) -> set[str]:
    """Underscore names of other modules that the source reads, and underscore modules of another package."""
    tree = ast.parse(source)
    own = own_names(tree)
    used = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and is_private(node.attr)
            and node.attr not in own
            and not is_foreign(node.attr)
        ):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                used.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module:
            home = node.module.split(".")
            used |= {alias.name for alias in node.names if is_private(alias.name) and home != [package]
                     and not (ROOT / Path(*home) / f"{alias.name}.py").exists() and not is_foreign(alias.name)}  # fmt: skip
            if home[0] in ("ssdcore", "ssdcore_torch") and home[0] != package:
                used |= {part for part in home if is_private(part)}
    return used


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_uses_underscore_names_of_another(file: Path) -> None:
    name = str(file.relative_to(ROOT))
    assert foreign_uses(file.read_text(encoding="utf-8"), name.split("/")[0]) == set()


def test_what_is_refused() -> None:
    assert foreign_uses("from ssdcore.process import _ROUNDING", "ssdcore") == {"_ROUNDING"}
    assert foreign_uses("def f(op):\n    return op._decomposition", "ssdcore") == {"_decomposition"}
    assert foreign_uses("from ssdcore._arrays import Array", "ssdcore_torch") == {"_arrays"}
    assert foreign_uses("from ssdcore._arrays import Array", "ssdcore") == set()
    assert foreign_uses("class A:\n    _x = 1\n    def f(self, a):\n        return a._x + self._y", "ssdcore") == set()
