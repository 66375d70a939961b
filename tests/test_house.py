"""The house rules: imports run downward, no circle, and files and functions that read in one sitting."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 69
# a room imports only from floors below its own
FLOORS = (
    ("errors",),
    ("plugins", "signals", "storage"),
    ("cost", "config", "tokenizers"),
    ("ops", "distributed"),
    ("layers", "data"),
    ("models", "runs"),
    ("objectives", "profiling", "inference", "report"),
    ("training", "evaluation"),
    ("cli",),
)
# narrower than the floors
NEVER = {
    "ops": {"distributed"},
    "layers": {"data", "distributed"},
    "models": {"data", "runs"},
    "report": {"models", "layers", "ops"},
}
# what the trainer must not know: it is handed an Objective
TASKS = ("lookupffn.objectives.mlm", "lookupffn.objectives.classification", "lookupffn.objectives.perplexity",
         "lookupffn.data", "lookupffn.models.modeling", "lookupffn.models.heads")  # fmt: skip
SOURCES = sorted(path for top in ("lookupffn", "scripts", "tests") for path in (ROOT / top).rglob("*.py"))


def floor(room: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f"lookupffn/{room} is on no floor: name it in FLOORS"
    return found[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES if path.is_relative_to(ROOT / "lookupffn")}


def imports(path: Path, *, at_start: bool) -> Iterator[str]:
    """The project's modules that a file imports; ``at_start`` leaves out what functions import when they are called."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            # a module of a package, or a name that the package itself gives
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inner]
        else:
            continue
        yield from (name for name in names if name in MODULES)


def room(module: str) -> str | None:
    """ "runs" for lookupffn.runs.folder; None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module: str):
    own = room(module)
    if own is None:
        return
    for imported in set(imports(MODULES[module], at_start=False)):
        other = room(imported)
        if other in (None, own):
            continue
        assert floor(other) < floor(own), f"{module} imports {imported}, which is not on a floor below"
        assert other not in NEVER.get(own, ()), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("lookupffn.ops.")])
def test_a_backend_never_imports_its_public_face(module: str):
    package, _, name = module.rpartition(".")
    if name in ("cpu", "reference", "operator", "weights"):
        assert package not in set(imports(MODULES[module], at_start=False))


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("lookupffn.training.")])
def test_the_trainer_knows_no_task(module: str):
    if module != "lookupffn.training.finetuning":  # an entry point, which chooses the objective
        assert not [name for name in imports(MODULES[module], at_start=False) if name.startswith(TASKS)]


def test_no_circle():
    edges = {
        module: {name for name in imports(path, at_start=True) if name != module} for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module in done:
            return
        for imported in sorted(edges[module]):
            visit(imported, (*way, module))
        done.add(module)

    for module in edges:
        visit(module, ())


def test_files_read_in_one_sitting():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    long = {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > MAX_FILE_LINES}
    assert not long


def test_functions_are_short():
    long = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert not long
