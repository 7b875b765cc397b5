"""The table of who may import whom, held over the syntax trees; and what else the house promises of every file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "dkuxnet"
BASE = {"errors", "types", "lookup", "documents", "memory"}  # importable from everywhere

# room -> rooms that it may import besides BASE; a room is a module, or a folder where it ends with a dot
ALLOWED = {
    "errors": set(),
    "types": set(),
    "lookup": set(),
    "config": set(),
    "metrics": set(),
    "average": set(),
    "blur": set(),
    "outline": {"blur"},
    "components": set(),
    "losses": set(),
    "plan": set(),
    "documents": set(),
    "memory": set(),
    "described": set(),
    "state_file": set(),
    "checkpoints": {"state_file"},
    "lock": set(),
    "events": set(),
    "distributed": set(),
    "launch": {"distributed", "run"},
    "run": {"checkpoints", "described", "events"},
    "formats.": {"formats.", "dicom."},
    "dicom.": {"dicom.", "formats._checks"},
    "export.dicom_codes": set(),
    "export.dicom_seg": {"dicom.", "export.dicom_codes", "formats._checks", "run"},
    "phantom": {"formats."},
    "networks.": {"networks."},
    "methods.": {"methods.", "losses", "average", "components", "outline"},
    "data.geometry": set(),
    "data.affines": set(),
    "data.splits": set(),
    "data.arrays": set(),
    "data.values": set(),
    "data.dataset": {"data.arrays", "described"},
    "data.loader": {"data.dataset", "data.geometry"},
    "data.augment": {"blur", "config", "outline"},
    "data.": {"data.", "dicom.", "formats."},  # layouts and their parts
    "evaluate": {"metrics", "formats.", "data.affines", "data.layouts", "data.layout_files"},
    "network_grid": {"plan", "data.geometry"},
    "fingerprint": {"plan", "formats.", "data.affines", "data.geometry", "data.images", "data.values"},
    "prepare": {"fingerprint", "parallel", "plan", "formats.", "data.layouts", "data.geometry", "data.dataset", "data.images",
                "data.splits", "network_grid"},
    "optimiser_state": set(),
    "optimisers": set(),
    "train": {"average", "config", "distributed", "run", "methods.base", "optimiser_state", "optimisers"},
    "infer": {"components", "config", "data.geometry", "memory"},
    "grid": {"config", "methods", "networks"},  # their tables of names
    "significance": set(),
    "comparison": {"grid", "run", "significance"},
    "parallel": set(),
    "report.": {"report.", "comparison", "config", "run", "formats.", "evaluate", "metrics", "data.dataset", "data.geometry",
                "significance"},
    "devices": {"distributed"},
    "build": {"config", "data.dataset", "devices", "distributed", "methods.", "networks.", "run", "train"},
    "job": {"build", "config", "data.dataset", "data.splits", "devices", "methods.", "run"},
    "scoring": {"distributed", "evaluate", "formats.", "infer", "job", "metrics", "run"},
    "advice": {"distributed", "job", "memory", "methods.base", "plan", "train"},
    "experiment": {"advice", "build", "config", "data.augment", "data.loader", "devices", "distributed", "job", "lock",
                   "memory", "run", "scoring", "train"},
    "localise": {"data.geometry"},
    "segment": {"build", "data.geometry", "infer", "localise", "network_grid"},
    "predict": {"data.images", "data.inputs", "data.values", "dicom.series", "export.dicom_seg", "formats.", "run", "segment"},
    "serve.": {"serve.", "data.images", "data.inputs", "data.values", "dicom.series", "formats.", "segment"},
    "export.": {"export.", "build", "config", "run"},
    "export.bundle_parts": {"build", "config", "data.images", "data.inputs", "devices", "export.patch_model", "formats.",
                            "infer", "network_grid"},
    "demo": {"config", "evaluate", "experiment", "phantom", "predict", "prepare", "report."},
    "trainings": {"config", "experiment", "grid", "methods", "networks", "parallel", "run", "train"},
    "benchmark": {"build", "comparison", "config", "data.dataset", "grid", "job", "lock", "parallel", "report.", "run", "train",
                  "trainings"},
    "catalogue": {"config", "data.layouts", "formats.", "methods.", "networks."},
    "console": {"benchmark", "comparison", "evaluate", "grid", "report.comparison_text", "report.comparison_words"},
    "__main__": {"cli"},
    "cli": {"benchmark", "catalogue", "config", "console", "demo", "distributed", "evaluate", "experiment", "export.targets",
            "grid", "launch", "predict", "prepare", "report.", "serve.", "train"},
}
FILES = sorted(p for p in ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rule_for(module: str) -> set[str]:
    fits = [room for room in ALLOWED if in_room(module, room)]
    assert fits, f"{module} stands in no room of the table"
    return ALLOWED[max(fits, key=len)] | BASE


def in_room(module: str, room: str) -> bool:
    return f"{module}.".startswith(room) if room.endswith(".") else module == room


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} if node.module != "dkuxnet" else {f"dkuxnet.{alias.name}" for alias in node.names}
    return {name.removeprefix("dkuxnet.") for name in names if name and name.startswith("dkuxnet.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path):
    module = module_name(path)
    if not module:
        return  # the package itself holds the public names
    for imported in imports_of(path):
        assert any(in_room(imported, room) for room in rule_for(module)), f"{module} must not import {imported}"


def test_no_cycles():
    graph = {module_name(p): imports_of(p) for p in FILES}
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
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: raise an error instead of assert"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}: only the command line prints"


UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "runpy", "code"}
READERS = {"torch.load", "torch.hub.load", "np.load", "numpy.load", "np.fromregex",
           "blosc2.open", "pandas.read_pickle", "onnx.load", "monai.bundle.load"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
ONLY_HERE = {"json.loads": "documents.py", "json.load": "documents.py", "tomllib.loads": "documents.py",
             "tomllib.load": "documents.py", "importlib.import_module": "lookup.py",
             "torch.jit.load": "torch_graphs.py", "torch.export.load": "torch_graphs.py"}  # what it has just written itself


def code_from_files(tree: ast.AST, name: str) -> list[str]:
    """What of a module could run code that stands in a file, or reads a document past the one bounded reader."""
    found = []
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
        found += [each for each in names if each.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.ImportFrom):
            called = {f"{node.module}.{alias.name}" for alias in node.names}
        else:
            called = {ast.unparse(node)} if isinstance(node, ast.Attribute | ast.Name) else set()
        found += [each for each in called if each in READERS | BUILT_IN or ONLY_HERE.get(each, name) != name]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_unpickled_or_run(path):
    assert not code_from_files(ast.parse(path.read_text()), path.name)


@pytest.mark.parametrize("line", ["import pickle", "from joblib import load", "torch.load(x, weights_only=True)", "np.load(x)",
                                  "from torch import load", "eval(x)", "f = exec", "json.loads(x)", "import yaml as y",
                                  "blosc2.open(x)", "importlib.import_module(x)"])
def test_that_would_be_noticed(line):
    assert code_from_files(ast.parse(line), "x.py")
