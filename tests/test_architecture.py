"""The table of who may import whom, held over the syntax trees; and what else the house promises
of every file.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "dkuxnet"

# wing -> the wings that it may import; a wing stands below all that import it
WINGS = {
    "core": set(),
    "machine": {"core"},
    "data": {"core", "machine"},
    "models": {"core"},
    "runs": {"core", "machine"},
    "evaluation": {"core", "machine", "data"},
    "prediction": {"core", "machine", "data", "models", "runs"},
    "training": {"core", "machine", "data", "models", "runs", "evaluation", "prediction"},
    "report": {"core", "machine", "data", "runs", "evaluation"},
    "benchmark": {"core", "machine", "data", "models", "runs", "evaluation", "training", "report"},
    "export": {"core", "machine", "data", "models", "prediction"},
    "serve": {"core", "machine", "data", "runs", "prediction"},
    "cli": {"core", "machine", "data", "models", "runs", "evaluation", "prediction", "training"}
    | {"report", "benchmark", "export", "serve"},
    "": {"core", "data", "evaluation", "prediction", "training", "report", "benchmark", "cli"},
    # ^ the package itself: the public names (the commands' jobs), and `python -m dkuxnet`
}
# within a wing: what must not import what
APART = [
    ("models.networks", "models.methods"),
    ("models.methods", "models.networks"),
    ("models.methods", "machine"),  # a method knows no device, process or file
    ("models.networks", "machine"),
    ("data.dicom", "data.formats"),
    ("training.loop", "models.build"),  # the loop knows no method and no network by name
    ("training.loop", "models.networks"),
    ("training.loop", "data"),
    ("evaluation.metrics", "core"),  # numpy in, numbers out
]
FILES = sorted(p for p in ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def wing_of(module: str) -> str:
    return module.split(".")[0] if module.split(".")[0] in WINGS else ""


def within(module: str, place: str) -> bool:
    return f"{module}.".startswith(f"{place}.")


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports; `from package import name` may mean a module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("dkuxnet.") for name in names if name.startswith("dkuxnet.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path):
    module = module_name(path)
    for imported in imports_of(path):
        wing, other = wing_of(module), wing_of(imported)
        assert other == wing or other in WINGS[wing], f"{module} must not import {imported}"
        for place, not_that in APART:
            assert not (within(module, place) and within(imported, not_that)), (
                f"{module} must not import {imported}"
            )


def test_every_folder_is_a_wing_and_the_table_has_no_circle():
    folders = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()}
    assert folders == set(WINGS) - {""}
    below: set[str] = set()
    for (
        wing,
        allowed,
    ) in WINGS.items():  # the table itself is in order, so a circle cannot be written down
        assert allowed <= below, f"{wing} may import {allowed - below}, which stands above it"
        below.add(wing)


def test_the_table_allows_nothing_that_nobody_needs():
    used = {(wing_of(module_name(p)), wing_of(name)) for p in FILES for name in imports_of(p)}
    for wing, allowed in WINGS.items():
        unused = {other for other in allowed if (wing, other) not in used}
        assert not unused, f"{wing} imports nothing of {unused}"


def test_no_cycles():
    modules = {module_name(p) for p in FILES}
    graph = {module_name(p): imports_of(p) & modules - {module_name(p)} for p in FILES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"cycle: {' -> '.join((*trail, module))}"
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_prints_and_no_assert_meets_a_user(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), (
            f"line {node.lineno}: raise an error instead of assert"
        )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}: only the command line prints"


UNPICKLERS = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "yaml",
    "runpy",
    "code",
}
READERS = {
    "torch.load",
    "torch.hub.load",
    "np.load",
    "numpy.load",
    "np.fromregex",
    "blosc2.open",
    "pandas.read_pickle",
    "onnx.load",
    "monai.bundle.load",
}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
ONLY_HERE = {
    "json.loads": "documents.py",
    "json.load": "documents.py",
    "tomllib.loads": "documents.py",
    "tomllib.load": "documents.py",
    "importlib.import_module": "lookup.py",
    "torch.jit.load": "torch_graphs.py",
    "torch.export.load": "torch_graphs.py",
}  # what it has just written itself


def code_from_files(tree: ast.AST, name: str) -> list[str]:
    """What of a module could run code that stands in a file, or reads a document past the one
    bounded reader.
    """
    found = []
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
        found += [each for each in names if each.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.ImportFrom):
            called = {f"{node.module}.{alias.name}" for alias in node.names}
        else:
            called = {ast.unparse(node)} if isinstance(node, ast.Attribute | ast.Name) else set()
        found += [
            each
            for each in called
            if each in READERS | BUILT_IN or ONLY_HERE.get(each, name) != name
        ]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_unpickled_or_run(path):
    assert not code_from_files(ast.parse(path.read_text()), path.name)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(x, weights_only=True)",
        "np.load(x)",
        "from torch import load",
        "eval(x)",
        "f = exec",
        "json.loads(x)",
        "import yaml as y",
        "blosc2.open(x)",
        "importlib.import_module(x)",
    ],
)
def test_that_would_be_noticed(line):
    assert code_from_files(ast.parse(line), "x.py")


# Files that may be a stranger's are opened by `open_regular`: these open what is no such file.
OPENERS = {
    "cli/launch.py",  # what its own processes said, in a folder of their own
    "core/config.py",  # presets, which lie in the package
    "core/regular.py",
    "export/monai_bundle.py",  # the package's own texts
    "export/torch_graphs.py",  # what it has just written
    "machine/child.py",  # /proc
    "machine/files.py",
    "machine/memory.py",  # /proc, /sys
    "report/template.py",  # scripts, which lie in the package
    "serve/monai_label.py",  # the label map that it has just written
}
OPENING = re.compile(r"""(?<!def )(?<![\w.])open\(|\.open\(\s*["']r|\.read_(?:bytes|text)\(""")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_named_pipe_in_the_place_of_a_file_is_waited_for_by_nobody(path):
    if path.relative_to(ROOT).as_posix() not in OPENERS:
        assert not OPENING.search(path.read_text()), "open it with core.regular.open_regular"
