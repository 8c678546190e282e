"""The house: floors, public names, signatures, sizes, dependencies, what ships."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.metadata
import inspect
import itertools
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import xsuperres
from xsuperres.accessor import DatasetSuperResolutionAccessor, SuperResolutionAccessor

PACKAGE = Path(xsuperres.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = ["xsuperres", *sorted(m.name for m in pkgutil.walk_packages([str(PACKAGE)], "xsuperres."))]
PUBLIC_CALLS = {"fit", "downscale", "downscale_to_zarr", "score"}  # whose settings are keywords for the user's sake

every_source = pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(PACKAGE)) for p in SOURCES])
every_module = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(scope="session")
def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


# Floors.


def test_imports_point_downward():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken" in run.stdout


def test_every_room_has_a_floor(settings):
    """A new module must say on which floor it is, or the contract does not see it."""
    floors = settings["importlinter:contract:floors"]["layers"]
    listed = {
        room.strip().removeprefix("xsuperres.") for line in floors.split("\n") for room in line.split("|") if line
    }
    rooms = {name.split(".")[1] for name in MODULES if "." in name}
    assert rooms - listed <= {"testing", "tutorial"}
    assert not listed - rooms


HEAVY = {"torch", "dask", "dask.array", "cf_xarray", "pooch", "matplotlib", "safetensors", "tqdm", "h5netcdf", "scipy"}


def test_importing_is_light():
    """Neither torch nor dask.array, nor what only some calls need. (xarray itself brings pandas and cftime, and dask
    with the first DataArray that is made; that is not ours to change.)
    """
    code = """
import sys, xarray
before = set(sys.modules)
import xsuperres
print(*sorted(set(sys.modules) - before))
print(*sorted(sys.modules))
field = xarray.DataArray([1.0])
before = set(sys.modules)
dir(xsuperres), dir(field), dir(field.sr), xsuperres.__version__
print(*sorted(set(sys.modules) - before))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported, everything, looked_at = (set(line.split()) for line in run.stdout.split("\n")[:3])
    assert imported == {"xsuperres", "xsuperres._version", *(m for m in MODULES if m.startswith("xsuperres.accessor"))}
    assert not everything & HEAVY
    assert not looked_at


# Public names.


@every_module
def test_every_name_in_all_exists(name):
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    missing = [entry for entry in listed if not hasattr(module, entry)]
    assert not missing
    assert len(set(listed)) == len(listed)
    if not name.endswith(("_version", "accessor")) and Path(module.__file__).name != "__init__.py":
        assert listed, "says nothing of what is public"


@every_module
def test_all_is_sorted_and_private_names_stay_private(name):
    listed = [entry for entry in getattr(importlib.import_module(name), "__all__", []) if entry != "__version__"]
    assert not [entry for entry in listed if entry.startswith("_")]
    assert listed == sorted(listed, key=lambda name: (not (name.isupper() and len(name) > 1), name[0].islower(), name))


@every_module
def test_public_things_are_documented(name):
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), "the module does not say what it is for"
    bare = []
    for entry in getattr(module, "__all__", []):
        thing = getattr(module, entry)
        if not callable(thing) or getattr(thing, "__module__", None) != name:
            continue
        own = thing.__dict__.get("__doc__") if isinstance(thing, type) else thing.__doc__
        if not (own or "").strip() or (own or "").startswith(f"{entry}("):
            bare.append(entry)
        if isinstance(thing, type) and not name.startswith("xsuperres.nn"):
            bare += [f"{entry}.{m}" for m, f in vars(thing).items() if _is_public_method(m, f) and not _doc(f)]
    assert not bare


def _is_public_method(name: str, thing: object) -> bool:
    return (not name.startswith("_") and isinstance(thing, (property, classmethod))) or (
        not name.startswith("_") and inspect.isfunction(thing)
    )


def _doc(thing: object) -> str:
    return (getattr(thing, "__doc__", None) or "").strip()


def test_folders_hand_nothing_on_but_names():
    for init in PACKAGE.rglob("__init__.py"):
        if init.parent != PACKAGE:
            body = ast.parse(init.read_text()).body
            kinds = (ast.Expr, ast.ImportFrom, ast.Import, ast.Assign)
            assert all(isinstance(node, kinds) for node in body), init


# The accessors.

METHODS = [name for name in dir(SuperResolutionAccessor) if not name.startswith("_")]


def test_the_methods():
    known = {"fit", "downscale", "downscale_to_zarr", "interpolate", "coarsen", "score", "describe", "with_bounds"}
    assert set(METHODS) == known
    for name in METHODS:
        assert getattr(DatasetSuperResolutionAccessor, name) is getattr(SuperResolutionAccessor, name)


@pytest.mark.parametrize("name", METHODS)
def test_accessor_methods_have_explicit_signatures(name):
    method = getattr(SuperResolutionAccessor, name)
    signature = inspect.signature(method)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    assert signature.return_annotation is not inspect.Signature.empty
    parameters = list(signature.parameters.values())[1:]
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)
    positional = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY and p.name != "store"]
    assert len(positional) <= 1
    mutable = [p.name for p in parameters if isinstance(p.default, (list, dict, set))]
    assert not mutable


@pytest.mark.parametrize("name", METHODS)
def test_accessor_methods_document_every_parameter(name):
    """In numpydoc, in the order of the signature."""
    method = getattr(SuperResolutionAccessor, name)
    parameters = list(inspect.signature(method).parameters)[1:]
    doc = inspect.getdoc(method)
    assert doc.splitlines()[0].endswith(".")
    section = re.search(r"Parameters\n-+\n(.*?)(?:\n\n\w+\n-+\n|\Z)", doc, re.S)
    lines = re.findall(r"^(\w[\w, ]*?) : ", section[1], re.M) if section else []
    told = [name.strip() for line in lines for name in line.split(",")]
    assert told == parameters
    assert re.search(r"^Returns\n-+$", doc, re.M)


@pytest.mark.parametrize("name", METHODS)
def test_accessor_documents_its_defaults(name):
    """Registered choices that the docstring names are the registered ones."""
    from xsuperres.nn.backbones import BACKBONES
    from xsuperres.nn.resample import KERNELS
    from xsuperres.nn.upsamplers import UPSAMPLERS

    doc = inspect.getdoc(getattr(SuperResolutionAccessor, name))
    for parameter, registry in (("backbone", BACKBONES), ("upsampling", UPSAMPLERS), ("method", KERNELS)):
        told = re.search(rf"^{parameter} : {{(.*)}}$", doc, re.M)
        if told:
            assert {part.strip(' "') for part in told[1].split(",")} == set(registry)


@pytest.mark.parametrize("kind", ["DataArray", "Dataset"])
def test_the_accessor_stores_the_object_alone(kind):
    field = xsuperres.testing.toy_field(time=1, y=4, x=4)
    field = field if kind == "DataArray" else field.to_dataset()
    accessor = field.sr
    assert len(vars(accessor)) == 1 and accessor._obj is field
    accessor.coarsen(2)
    assert list(vars(accessor)) == ["_obj"]


# Sizes.


@every_source
def test_no_module_is_long(path):
    assert len(path.read_text().splitlines()) <= 350


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of the body without the docstring."""
    body = function.body
    if (
        isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    ):
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@every_source
def test_no_function_is_long(path):
    long = [f"{f.name}: {body_lines(f)}" for f in functions(path) if body_lines(f) > 60]
    assert not long


@every_source
def test_no_function_has_many_parameters(path):
    many = []
    for function in functions(path):
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        names = [name for name in names if name not in ("self", "cls")]
        if len(names) > 8 and function.name not in PUBLIC_CALLS:
            many.append(f"{function.name}: {len(names)}")
    assert not many


@every_source
def test_configurations_have_few_fields(path):
    """At most 12 fields; OptimizationConfig is the one that is full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            assert len(fields) <= 12, f"{node.name}: {len(fields)}"


# Habits.


@every_source
def test_nothing_is_printed(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    printed = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert path.name == "demo.py" or not printed


@every_source
def test_no_sinks_bare_excepts_or_mutable_defaults(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            if node.args.kwarg is not None:
                found.append(f"{node.lineno}: **{node.args.kwarg.arg}")
            defaults = [d for d in (*node.args.defaults, *node.args.kw_defaults) if d is not None]
            found += [f"{d.lineno}: mutable default" for d in defaults if isinstance(d, (ast.List, ast.Dict, ast.Set))]
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{node.lineno}: bare except")
    assert not found


@every_source
def test_no_cover_is_for_gpus(path):
    lines = path.read_text().splitlines()
    for at, line in enumerate(lines):
        if re.search(r"pragma:\s*no\s*cover", line):
            near = " ".join(lines[max(0, at - 1) : at + 3]).lower()
            assert "cuda" in near or "gpu" in near, f"{path.name}:{at + 1}"


def test_no_file_is_a_drawer():
    names = {"utils", "helpers", "common", "misc"}
    assert not [path for path in SOURCES if path.stem in names or path.parent.name in names]


def test_nothing_names_a_users_machine():
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/\w")
    checked = [*SOURCES, *(ROOT / "tests").rglob("*.py"), ROOT / "README.md", ROOT / "setup.cfg", ROOT / "Makefile"]
    found = [p.name for p in checked if p.exists() and pattern.search(p.read_text())]
    assert not found


# Dependencies.

CONDA = {"dask[array]": "dask-core", "torch": "pytorch", "cf-xarray": "cf_xarray", "matplotlib": "matplotlib-base"}


def parsed(lines: list[str]) -> dict[str, str]:
    """Return requirements as {name: version specifiers}."""
    found = {}
    for line in lines:
        name, rest = re.fullmatch(r"([A-Za-z0-9_.\-]+(?:\[\w+\])?)\s*(.*)", line.strip()).groups()
        found[name] = rest.replace(" ", "")
    return found


def requirements(text: str) -> dict[str, str]:
    return parsed([line for line in text.splitlines() if line.strip()])


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return parsed([entry for entry in listed if isinstance(entry, str)])


def test_setup_cfg_and_environment_yml_agree(settings, environment):
    """Same names, modulo conda's spelling, and the same lowest versions."""
    needed = requirements(settings["options"]["install_requires"])
    extras = {name: requirements(text) for name, text in settings["options.extras_require"].items()}
    wanted = needed | extras["io"] | extras["distributed"] | extras["viz"]
    wanted = {CONDA.get(name, name): version for name, version in wanted.items()}
    assert {name: environment.get(name) for name in wanted} == wanted
    more = set(environment) - set(wanted) - {"python", "pip"}
    assert more <= set(extras["test"]) | set(extras.get("docs", {}))
    assert {name: environment[name] for name in more} == {name: extras["test"][name] for name in more}
    assert environment["python"] == settings["options"]["python_requires"]


def test_one_requirement_has_one_version(settings):
    """Extras that name a package again name the same lowest version."""
    groups = [requirements(settings["options"]["install_requires"])]
    groups += [requirements(text) for text in settings["options.extras_require"].values()]
    for first, second in itertools.combinations(groups, 2):
        assert {n: first[n] for n in first.keys() & second} == {n: second[n] for n in first.keys() & second}


def test_all_that_is_imported_is_declared(settings):
    core = {name.split("[")[0].replace("-", "_") for name in requirements(settings["options"]["install_requires"])}
    extras = {name: set(requirements(text)) for name, text in settings["options.extras_require"].items()}
    rooms = dict.fromkeys(("plots", "canvas", "demo"), "viz")
    rooms |= dict.fromkeys(("devices", "guard", "plugin", "workers"), "distributed")
    rooms |= dict.fromkeys(("store", "record", "claimed", "target", "template"), "io")
    known = core | set(sys.stdlib_module_names) | {"xsuperres", "pandas"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            strange = {name.split(".")[0] for name in names} - known
            assert strange <= (extras[rooms[path.stem]] if path.stem in rooms else set()), path.name


def test_constraints_name_one_torch():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines


def test_pyproject_holds_build_system_and_tools_only():
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(content) == {"build-system", "tool"}
    assert set(content["build-system"]) == {"requires", "build-backend"}


# What ships.


def test_the_version_is_told_once(settings):
    version = xsuperres.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.\w+)?", version)
    assert settings["metadata"]["version"] == "attr: xsuperres._version.__version__"
    assert importlib.metadata.version("xsuperres") == version
    told = [p.relative_to(PACKAGE) for p in SOURCES if re.search(rf"[\"']{re.escape(version)}[\"']", p.read_text())]
    assert told == [Path("_version.py")]


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == xsuperres.__version__
    assert citation["type"] == "software"
    assert citation["authors"]
    assert citation["license"] == "Apache-2.0"


def test_licence_and_changelog():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[?({re.escape(xsuperres.__version__)}|Unreleased)\]?", changelog, re.M)


def test_embedded_data_are_small_and_there():
    files = sorted(PACKAGE.rglob("*.nc"))
    assert [path.name for path in files] == ["era5_global_1deg.nc", "hadgem2_north_america.nc"]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
    assert (PACKAGE / "data" / "README.md").exists()


def test_package_data_are_declared(settings):
    patterns = [p.strip() for p in settings["options.package_data"]["xsuperres"].replace("\n", ",").split(",")]
    data = [p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert data
    for path in data:
        assert any(path.relative_to(PACKAGE).match(pattern) for pattern in patterns if pattern), path.name
    for pattern in filter(None, patterns):
        assert list(PACKAGE.glob(pattern)), f"{pattern} matches nothing"


def test_the_top_level():
    expected = "README.md CONTRIBUTING.md CHANGELOG.md LICENSE CITATION.cff Makefile setup.cfg pyproject.toml"
    for name in (
        *expected.split(),
        "environment.yml",
        "constraints.txt",
        "notebooks",
        "benchmarks",
        "tools",
        ".ci/run",
    ):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "xsuperres/data/README.md"])
def test_files_that_pages_name_are_there(page):
    """A table or picture that a page points to must have been made."""
    text = (ROOT / page).read_text()
    named = {*re.findall(r"`((?:benchmarks|docs|notebooks|tests|tools|xsuperres)/[\w./]+\.\w+)`", text)}
    named |= set(re.findall(r"\]\(([^)#:]+)\)", text))
    assert not [
        name
        for name in sorted(named)
        if not (ROOT / name).exists() and not (ROOT / page).parent.joinpath(name).exists()
    ]
