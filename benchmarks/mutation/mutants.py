"""Small wrong edits of Python source, one at a time: what a test suite must notice."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BINARY = {
    ast.Add: ("-", "arithmetic"),
    ast.Sub: ("+", "arithmetic"),
    ast.Mult: ("/", "arithmetic"),
    ast.Div: ("*", "arithmetic"),
    ast.FloorDiv: ("/", "arithmetic"),
    ast.Mod: ("//", "arithmetic"),
    ast.Pow: ("*", "arithmetic"),
}
_COMPARE = {
    ast.Lt: (("<=", "boundary"), (">=", "comparison")),
    ast.LtE: (("<", "boundary"), (">", "comparison")),
    ast.Gt: ((">=", "boundary"), ("<=", "comparison")),
    ast.GtE: ((">", "boundary"), ("<", "comparison")),
    ast.Eq: (("!=", "comparison"),),
    ast.NotEq: (("==", "comparison"),),
    ast.Is: (("is not", "comparison"),),
    ast.IsNot: (("is", "comparison"),),
    ast.In: (("not in", "comparison"),),
    ast.NotIn: (("in", "comparison"),),
}
_CALLS = {
    "min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor", "minimum": "maximum",
    "maximum": "minimum", "sin": "cos", "cos": "sin", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like",
    "ones_like": "zeros_like", "argmin": "argmax", "argmax": "argmin", "exp": "expm1", "log": "log1p",
}  # fmt: skip
_AUGMENTED = {ast.Add: "-=", ast.Sub: "+=", ast.Mult: "/=", ast.Div: "*="}
# what a reader sees, and what only sympy or the type checker reads
_SKIPPED_FUNCTIONS = {"__repr__", "__str__"}


@dataclass(frozen=True)
class Mutant:
    """Bytes start … end of `file` (relative to the repository) replaced by `text`.

    Attributes:
        name: of the function around it and the edit; stays the same when the function moves, to another class or file
            even, and when comments, docstrings, annotations or other functions change
        function: qualified name of the outermost function whose body has it, "" where the module has it
    """

    file: str
    line: int
    last_line: int
    start: int
    end: int
    before: str
    text: str
    kind: str
    name: str
    function: str

    def source(self, root: Path) -> bytes:
        whole = (root / self.file).read_bytes()
        return whole[: self.start] + self.text.encode() + whole[self.end :]


class _Collector(ast.NodeVisitor):
    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.lines = source.splitlines(keepends=True)
        self.offsets = [0]
        for line in self.lines:
            self.offsets.append(self.offsets[-1] + len(line))
        self.found: list[Mutant] = []
        self.inside_index = False
        self.classes: list[str] = []
        self.function = ""
        self.around, self.inside = "module", "module"  # what is around the edit, and a digest of it
        self.edits = 0  # of what is around it, so far

    def span(self, node: ast.AST) -> tuple[int, int]:
        first = self.offsets[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return first, self.offsets[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def add(self, node: ast.AST, text: str, kind: str) -> None:
        start, end = self.span(node)
        before = self.source[start:end].decode()
        digest = hashlib.sha256(f"{self.inside}|{self.edits}|{before}|{text}".encode()).hexdigest()[:12]
        self.edits += 1
        line, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        name = f"{self.around.rpartition('.')[2]}:{digest}"
        self.found.append(Mutant(self.file, line, last, start, end, before, text, kind, name, self.function))

    def enter(self, name: str, node: ast.AST) -> None:
        """What follows is named after `node`."""
        self.around, self.inside, self.edits = name, _digest(node), 0

    def visit_Module(self, node: ast.Module) -> None:
        self.visit_body(node.body)

    def visit_body(self, body: list[ast.stmt]) -> None:
        """Of a module or class: each statement is named by itself."""
        for statement in body:
            if not isinstance(statement, ast.ClassDef | ast.FunctionDef):
                self.enter(".".join([*self.classes, "body"]), statement)
            self.visit(statement)

    # what is not mutated
    def visit_Raise(self, node: ast.Raise) -> None: ...
    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...
    def visit_Assert(self, node: ast.Assert) -> None: ...
    def visit_Import(self, node: ast.Import) -> None: ...
    def visit_ImportFrom(self, node: ast.ImportFrom) -> None: ...

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in _SKIPPED_FUNCTIONS:
            return
        outermost = not self.function
        if outermost:
            self.enter(".".join([*self.classes, node.name]), node)
        for default in (*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)):
            self.visit(default)
        if outermost:
            self.function = self.around
        for statement in node.body:
            self.visit(statement)
        if outermost:
            self.function = ""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if self.function:
            for statement in node.body:
                self.visit(statement)
            return
        self.classes.append(node.name)
        self.visit_body(node.body)
        self.classes.pop()

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self.generic_visit(node)

    # what is
    def visit_BinOp(self, node: ast.BinOp) -> None:
        strings = any(
            isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        )
        left, right = self.text(node.left), self.text(node.right)
        if not strings and type(node.op) in _BINARY:
            sign, kind = _BINARY[type(node.op)]
            self.add(node, f"(({left}) {sign} ({right}))", kind)
        if isinstance(node.op, ast.MatMult | ast.Sub) and not strings:
            sign = "@" if isinstance(node.op, ast.MatMult) else "-"
            self.add(node, f"(({right}) {sign} ({left}))", "order")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in _AUGMENTED and not isinstance(node.value, ast.JoinedStr | ast.List):
            self.add(
                node, f"{self.text(node.target)} {_AUGMENTED[type(node.op)]} {self.text(node.value)}", "arithmetic"
            )
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1:
            for sign, kind in _COMPARE[type(node.ops[0])]:
                self.add(node, f"(({self.text(node.left)}) {sign} ({self.text(node.comparators[0])}))", kind)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word = " or " if isinstance(node.op, ast.And) else " and "
        self.add(node, "(" + word.join(f"({self.text(value)})" for value in node.values) + ")", "comparison")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub):
            self.add(node, f"({self.text(node.operand)})", "sign")
        elif isinstance(node.op, ast.Not):
            self.add(node, f"(bool({self.text(node.operand)}))", "comparison")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add(node, str(not value), "constant")
        elif isinstance(value, int):
            self.add(node, str(value + 1), "index" if self.inside_index else "constant")
        elif isinstance(value, float):
            self.add(node, repr(1.1 * value if value else 1.0), "constant")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr == "T" and isinstance(node.ctx, ast.Load):
            self.add(node, f"({self.text(node.value)})", "transpose")
        self.visit(node.value)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        outer, self.inside_index = self.inside_index, True
        self.visit(node.slice)
        self.inside_index = outer

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _CALLS:
            function = self.text(node.func)
            renamed = function[: len(function) - len(name)] + _CALLS[name]
            self.add(node, renamed + self.text(node)[len(function) :], "call")
        if name == "matrix_transpose" and len(node.args) == 1:
            self.add(node, f"({self.text(node.args[0])})", "transpose")
        self.generic_visit(node)


def _digest(node: ast.AST) -> str:
    """Of the code, without comments, layout, docstrings and annotations."""
    without = ast.parse(ast.unparse(node))
    for part in ast.walk(without):
        if isinstance(part, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(part) is not None:
            part.body = part.body[1:]
        if isinstance(part, ast.FunctionDef):
            part.returns = None
        elif isinstance(part, ast.arg):
            part.annotation = None
        elif isinstance(part, ast.AnnAssign):
            part.annotation = ast.Constant(None)
    return hashlib.sha256(ast.dump(without).encode()).hexdigest()


def mutants_of(root: Path, file: str) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of the source."""
    source = (root / file).read_bytes()
    collector = _Collector(file, source)
    collector.visit(ast.parse(source))
    yield from collector.found
