"""What is installed: the public names, the extras, and a wheel that holds what it needs."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dkuxnet

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dkuxnet"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TREES = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
# where it is not the module's name in lower case, with - for _
PACKAGE_OF = {"jpeg_ls": "pyjpegls", "mlflow": "mlflow-skinny", "skimage": "scikit-image"}
# imported by what we call, never by us
INDIRECT = {"fire", "onnx", "onnxscript", "pyjpegls", "python-multipart", "pytorch-ignite"}
INDIRECT |= {"tensorboard"}  # it reads what we write
CALLS = ("require", "extras.require")


def package_of(module: str) -> str:
    return PACKAGE_OF.get(module, module.lower().replace("_", "-"))


def names(requirements: list[str]) -> set[str]:
    """The packages that requirements name."""
    return {re.match(r"[\w-]+", each)[0] for each in requirements}


# --- public names ---


@pytest.mark.parametrize("name", dkuxnet.__all__)
def test_a_public_name_is_loaded(name):
    place = dkuxnet.PUBLIC[name]
    assert f"{getattr(dkuxnet, name).__module__}:{getattr(dkuxnet, name).__name__}" == place


def test_public_names_are_few_and_the_same_everywhere():
    for_checkers = [
        f"{node.module}:{alias.name}"
        for block in ast.walk(TREES[PACKAGE / "__init__.py"])
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dkuxnet.")
        for alias in node.names
    ]
    assert sorted(dkuxnet.PUBLIC.values()) == sorted(for_checkers)
    assert dkuxnet.__all__ == sorted(dkuxnet.PUBLIC) and len(dkuxnet.__all__) < 15
    assert {*dkuxnet.__all__, "__version__"} <= set(dir(dkuxnet))
    assert not hasattr(dkuxnet, "nonsense")


def test_a_star_imports_the_public_names():
    space: dict[str, object] = {}
    exec("from dkuxnet import *", space)
    assert set(space) - {"__builtins__"} == set(dkuxnet.__all__)


def test_importing_the_package_loads_nothing_but_itself():
    code = "import sys, dkuxnet; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not set(loaded.stdout.split()) & {"torch", "numpy", "pydantic", "typer", "rich"}


def test_the_version_is_the_installed_one():
    assert dkuxnet.__version__ == metadata.version("dkuxnet")


# --- what is installed with it ---


def imported() -> set[str]:
    """The packages of others that our modules import, wherever in a file."""
    modules: set[str] = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).split(".")[0])
    return {
        package_of(each) for each in modules - {"_typeshed", "dkuxnet", *sys.stdlib_module_names}
    }


def required() -> list[tuple[str, set[str]]]:
    """(extra, packages) of every call of `require` whose modules are written out."""
    found = []
    for tree in TREES.values():
        if not re.search(r"dkuxnet\.core(\.extras)? import (extras|require)", ast.unparse(tree)):
            continue  # its `require` is another
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
                extra, *modules = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                found.append((extra, {package_of(module) for module in modules}))
    return found


def test_every_import_is_declared_and_every_dependency_is_imported():
    extras = PROJECT["optional-dependencies"]
    for_users = names(PROJECT["dependencies"]).union(
        *(names(extras[extra]) for extra in extras if extra not in ("all", "dev", "docs", "fuzz"))
    )
    assert imported() <= for_users
    assert for_users <= imported() | INDIRECT


def test_a_missing_extra_names_one_that_brings_it():
    calls = required()
    assert calls
    for extra, packages in calls:
        assert packages <= names(PROJECT["optional-dependencies"][extra])


def test_all_brings_every_extra_of_users():
    extras = set(PROJECT["optional-dependencies"]) - {"all", "dev", "docs", "fuzz"}
    extras -= {"mlflow", "wandb"}  # large, and who has one of them has it already
    assert PROJECT["optional-dependencies"]["all"] == [f"dkuxnet[{','.join(sorted(extras))}]"]


# --- what `make` installs ---


def listed(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package of a list in requirements/."""
    packages = {}
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", "")
    for entry in filter(re.compile("[^#]").match, text.splitlines()):
        package, version = re.match(r"([a-z\d-]+)==(\S+)", entry).groups()
        assert package not in packages, package
        packages[package] = version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry)
    return packages


def wanted(requirements: list[str]) -> list[Requirement]:
    """What requirements ask for, those of extras of our own as well."""
    found = []
    for each in map(Requirement, requirements):
        if each.name == "dkuxnet":
            for extra in each.extras:
                found += wanted(PROJECT["optional-dependencies"][extra])
        else:
            found.append(each)
    return found


@pytest.mark.parametrize(
    "name, requirements",
    [
        ("user.txt", PYPROJECT["build-system"]["requires"]),
        ("user.txt", PROJECT["dependencies"]),
        ("developer.txt", [*PROJECT["dependencies"], "dkuxnet[dev]"]),
    ],
)
def test_a_list_has_every_dependency_in_a_version_that_is_allowed(name, requirements):
    packages = listed(name)
    for each in wanted(requirements):
        assert packages[each.name.lower()][0] in each.specifier, f"{each}: make lock"


def test_the_lists_agree_and_have_hashes():
    user, gpu, developer = map(listed, ("user.txt", "gpu.txt", "developer.txt"))
    assert user.items() <= developer.items()
    (cpu,) = listed("cpu.txt").values()
    assert cpu[0] == f"{user['torch'][0]}+cpu" and cpu[1]
    assert not gpu.keys() & developer.keys()
    for packages in (gpu, developer):
        assert all(hashes for _, hashes in packages.values())


def test_the_lists_have_what_the_listed_packages_need():
    """As far as they are installed here, since only then it is known."""
    packages = listed("developer.txt") | listed("gpu.txt")
    for name in packages:
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for each in map(Requirement, requirements):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                assert re.sub("[-_.]+", "-", each.name.lower()) in packages, f"{name}: {each}"


# --- the wheel ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, since building leaves folders behind."""
    tree = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    code = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    return zipfile.ZipFile(next(tree.glob("*.whl")))


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = {
        str(path.relative_to(ROOT / "src"))
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert "dkuxnet/py.typed" in files
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == files


def test_the_wheel_says_what_the_project_says(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
    said = message_from_bytes(wheel.read(name))
    assert said["Version"] == PROJECT["version"]
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest and newest[1] in (PROJECT["version"], "Unreleased")
    text = said.get_payload()
    assert text.startswith("# dkuxnet") and "dkuxnet train" in text
    assert [place for place in re.findall(r"]\(([^)]*)\)", text) if "://" not in place] == []
    assert f"version: {PROJECT['version']}" in (ROOT / "CITATION.cff").read_text()
