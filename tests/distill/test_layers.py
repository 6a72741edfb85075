"""The layers inside distill: a module imports modules of the layers below its own, or its neighbours without a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the bottom to the top. A package stands for all of its modules.
LAYERS = (
    ("distill.checks",),
    ("distill.settings",),
    ("distill.parallel", "distill.cache", "distill.state"),
    ("distill.data",),
    ("distill.models",),
    ("distill.losses", "distill.student"),
    ("distill.teachers",),
    ("distill.process",),
)
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted((ROOT / "distill").rglob("*.py"))
}
ENTRY_POINT = "distill.teachers.__main__"  # a program: it may import everything


def imports(module: str) -> set[str]:
    """The modules of distill that a module imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            found |= {f"{node.module}.{a.name}" for a in node.names} | {str(node.module)}
    return (found & set(MODULES)) - {module, "distill"}


def layer(module: str) -> int:
    return next(i for i, group in enumerate(LAYERS) if any(f"{module}.".startswith(f"{name}.") for name in group))


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("distill", ENTRY_POINT)])
def test_a_module_imports_nothing_above_it(module: str) -> None:
    assert {name for name in imports(module) if layer(name) > layer(module)} == set()


def test_there_is_no_circle() -> None:
    left = {m: imports(m) for m in MODULES}
    while left:
        free = [m for m, needs in left.items() if not needs & set(left)]
        assert free, f"these import each other: {sorted(left)}"
        for m in free:
            del left[m]
