"""The house: floors, depth, public names, signatures, sizes, habits, dependencies, what ships. One test per rule."""

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
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml

import xsuperres
from xsuperres.accessor import DatasetSuperResolutionAccessor, SuperResolutionAccessor

PACKAGE = Path(xsuperres.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = ["xsuperres", *sorted(m.name for m in pkgutil.walk_packages([str(PACKAGE)], "xsuperres."))]
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in SOURCES}


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


def test_the_table_of_floors_is_the_contract(settings):
    """CONTRIBUTING.md draws the house top down; a row may be several floors of the contract, never half of one."""
    lines = settings["importlinter:contract:floors"]["layers"].strip().split("\n")
    floor = {room.strip().removeprefix("xsuperres."): at for at, line in enumerate(lines) for room in line.split("|")}
    rows = re.findall(r"^\| \d+ \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    drawn = [[floor[name.rstrip("/")] for name in re.findall(r"`([\w/]+)`", row)] for row in rows]
    assert sum(map(len, drawn)) == len(floor) - 1, "`_version` is not drawn"
    assert all(max(above) < min(below) for above, below in itertools.pairwise(drawn))


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


def listed_names(name: str) -> list[str]:
    return getattr(importlib.import_module(name), "__all__", [])


def test_every_name_in_all_exists():
    missing = [f"{name}.{n}" for name in MODULES for n in listed_names(name) if not hasattr(sys.modules[name], n)]
    assert not missing


def test_every_module_says_what_is_public_once():
    bad = []
    for name in MODULES:
        module, listed = importlib.import_module(name), listed_names(name)
        may_be_silent = name.endswith(("_version", "accessor")) or Path(module.__file__).name == "__init__.py"
        if len(set(listed)) != len(listed) or not (listed or may_be_silent):
            bad.append(name)
    assert not bad


def test_all_is_sorted_and_private_names_stay_private():
    bad = []
    for name in MODULES:
        listed = [entry for entry in listed_names(name) if entry != "__version__"]
        in_order = sorted(listed, key=lambda n: (not (n.isupper() and len(n) > 1), n[0].islower(), n))
        bad += [f"{name}.{entry}" for entry in listed if entry.startswith("_")]
        bad += [] if listed == in_order else [f"{name}: {in_order}"]
    assert not bad


def test_public_things_are_documented():
    assert not [entry for name in MODULES for entry in undocumented(name)]


def undocumented(name: str) -> list[str]:
    """Return the module, and what it lists in `__all__`, as far as they have no docstring."""
    module = importlib.import_module(name)
    bare = [] if _doc(module) else [name]
    for entry in listed_names(name):
        thing = getattr(module, entry)
        if not callable(thing) or getattr(thing, "__module__", None) != name:
            continue
        text = (thing.__dict__.get("__doc__") if isinstance(thing, type) else thing.__doc__) or ""
        if not text.strip() or text.startswith(f"{entry}("):
            bare.append(f"{name}.{entry}")
        if isinstance(thing, type) and not name.startswith("xsuperres.nn"):
            bare += [f"{name}.{entry}.{m}" for m, f in vars(thing).items() if _is_public_method(m, f) and not _doc(f)]
    return bare


def _is_public_method(name: str, thing: object) -> bool:
    return (not name.startswith("_") and isinstance(thing, (property, classmethod))) or (
        not name.startswith("_") and inspect.isfunction(thing)
    )


def _doc(thing: object) -> str:
    return (getattr(thing, "__doc__", None) or "").strip()


def test_folders_hand_nothing_on_but_names():
    kinds = (ast.Expr, ast.ImportFrom, ast.Import, ast.Assign)
    inits = {name: tree for name, tree in TREES.items() if name.endswith("/__init__.py")}
    assert not [name for name, tree in inits.items() if not all(isinstance(node, kinds) for node in tree.body)]


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


# Sizes. Each rule is a function of a parsed file that says what offends; one test asks all files.

Rule = Callable[[ast.Module], list[str]]


def offenders(rule: Rule, *, but: tuple[str, ...] = ()) -> list[str]:
    return [f"{name}: {what}" for name, tree in TREES.items() if name not in but for what in rule(tree)]


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of the body without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def long_functions(tree: ast.Module) -> list[str]:
    return [f"{f.name} has {body_lines(f)} lines" for f in functions(tree) if body_lines(f) > 60]


def large_configurations(tree: ast.Module) -> list[str]:
    """Return configurations of more than 12 fields; OptimizationConfig is the one that is full."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]
    counts = {node.name: sum(isinstance(n, ast.AnnAssign) for n in node.body) for node in classes}
    return [f"{name} has {count} fields" for name, count in counts.items() if count > 12]


ANYTHING = {f"{kind}[str, {value}]" for kind in ("dict", "Mapping") for value in ("Any", "object")}


def parameter_bags(tree: ast.Module) -> list[str]:
    """Return dicts of anything that are unpacked into the arguments of a call."""
    found = []
    for function in functions(tree):
        annotated = [node for node in ast.walk(function) if isinstance(node, ast.AnnAssign)]
        bags = {ast.unparse(n.target) for n in annotated if ast.unparse(n.annotation) in ANYTHING}
        arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        bags |= {a.arg for a in arguments if a.annotation is not None and ast.unparse(a.annotation) in ANYTHING}
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        unpacked = {ast.unparse(k.value) for call in calls for k in call.keywords if k.arg is None}
        found += [f"**{name} in {function.name}" for name in sorted(bags & unpacked)]
    return found


def test_no_module_is_long():
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert not {str(path.relative_to(PACKAGE)): count for path, count in lengths.items() if count > 500}


@pytest.mark.parametrize("rule", [long_functions, large_configurations, parameter_bags])
def test_sizes(rule):
    assert not offenders(rule)


def repeated(names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return, of (name, place), those names that are in more than one place."""
    places: dict[str, list[str]] = {}
    for name, place in names:
        places.setdefault(name, []).append(place)
    return {name: where for name, where in places.items() if len(where) > 1}


FILES_OF_ONE_NAME = {"baselines", "blocks", "plan", "regions", "resample", "training"}
CLASSES_OF_ONE_NAME = {"Block", "Cells", "Options"}


def test_no_more_files_have_one_name():
    files = [name for name in TREES if not name.endswith("__init__.py")]
    rooms = [name.removesuffix("/__init__.py") for name in TREES if name.endswith("/__init__.py")]
    assert set(repeated((Path(name).stem, name) for name in (*files, *rooms))) <= FILES_OF_ONE_NAME


def test_no_more_classes_have_one_name():
    nodes = ((node, name) for name, tree in TREES.items() for node in ast.walk(tree))
    assert (
        set(repeated((node.name, name) for node, name in nodes if isinstance(node, ast.ClassDef)))
        <= CLASSES_OF_ONE_NAME
    )


# Habits.


def prints(tree: ast.Module) -> list[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [f"line {n.lineno}" for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]


def sinks(tree: ast.Module) -> list[str]:
    """Return ``**keywords`` that swallow anything."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    return [f"line {node.lineno}: **{node.args.kwarg.arg}" for node in nodes if node.args.kwarg is not None]


def mutable_defaults(tree: ast.Module) -> list[str]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    defaults = [d for node in nodes for d in (*node.args.defaults, *node.args.kw_defaults)]
    return [f"line {d.lineno}" for d in defaults if isinstance(d, (ast.List, ast.Dict, ast.Set))]


def bare_excepts(tree: ast.Module) -> list[str]:
    nodes = ast.walk(tree)
    return [f"line {n.lineno}" for n in nodes if isinstance(n, ast.ExceptHandler) and n.type is None]


@pytest.mark.parametrize("rule", [sinks, mutable_defaults, bare_excepts])
def test_habits(rule):
    assert not offenders(rule)


def test_nothing_is_printed():
    assert not offenders(prints, but=("demo.py",))


SPOILT = {
    long_functions: "def f():\n" + "    x = 1\n" * 61,
    large_configurations: "class AConfig:\n" + "".join(f"    f{at}: int\n" for at in range(13)),
    parameter_bags: "def f(a):\n    bag: dict[str, Any] = {'a': a}\n    return g(**bag)",
    prints: "print(1)",
    sinks: "def f(**anything): ...",
    mutable_defaults: "def f(*, a=[]): ...",
    bare_excepts: "try:\n    f()\nexcept:\n    pass",
}


@pytest.mark.parametrize("rule", SPOILT)
def test_a_rule_finds_what_breaks_it(rule):
    assert len(rule(ast.parse(SPOILT[rule]))) == 1
    assert not rule(ast.parse("def f(a: int = 1) -> None:\n    'Do nothing.'\n    g(a)"))


def test_no_cover_is_for_gpus():
    bad = []
    for path in SOURCES:
        lines = path.read_text().splitlines()
        for at, line in enumerate(lines):
            near = " ".join(lines[max(0, at - 1) : at + 3]).lower()
            if re.search(r"pragma:\s*no\s*cover", line) and not ("cuda" in near or "gpu" in near):
                bad.append(f"{path.name}:{at + 1}")
    assert not bad


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
    for path, tree in TREES.items():
        may = known | (extras[rooms[Path(path).stem]] if Path(path).stem in rooms else set())
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            assert {name.split(".")[0] for name in names} <= may, path


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
