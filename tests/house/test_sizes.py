"""One module is one concept, and a function fits on a screen."""

import ast
from pathlib import Path

from tests.house.repository import files, parsed, told

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70


def long_file(path: Path) -> list[str]:
    lines = path.read_text().count("\n")
    return [f"{told(path)}: {lines} lines, {FILE_LINES_MAX} at most"] if lines > FILE_LINES_MAX else []


def long_functions(path: Path) -> list[str]:
    functions = (n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [
        f"{told(path)}:{f.lineno}: {f.name} has {lines} lines, {FUNCTION_LINES_MAX} at most"
        for f in functions
        if (lines := (f.end_lineno or f.lineno) - f.lineno + 1) > FUNCTION_LINES_MAX
    ]


def test_files_are_short() -> None:
    assert [line for path in files(".py", ".sql", ".sh", ".js", ".ts") for line in long_file(path)] == []


def test_functions_fit_on_a_screen() -> None:
    assert [line for path in files(".py") for line in long_functions(path)] == []


def test_too_long_is_found(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text("def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX)
    assert long_functions(path) == ["long.py:1: f has 71 lines, 70 at most"]
    assert long_file(path) == []
    path.write_text("x = 1\n" * (FILE_LINES_MAX + 1))
    assert long_file(path) == ["long.py: 601 lines, 600 at most"]
