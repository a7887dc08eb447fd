"""The arrow solvers -> meanfield, one home for each heavy dependency, and nothing that runs foreign code or keeps global state."""

import ast
import subprocess
import sys

import pytest

import meanfield
import solvers
from tests.running import ROOT, environment

FILES = [path for package in ("meanfield", "solvers") for path in sorted((ROOT / package).rglob("*.py"))]

HOMES = {
    "pykeops": {"meanfield/measures/keops.py"},
    "matplotlib": {
        f"meanfield/plot/{name}.py"
        for name in (
            "embedded",
            "frame",
            "style",
            "families",
            "curves",
            "runs",
            "matrices",
            "tensors",
            "reports",
            "fluctuations",
            "plane",
            "lazy",
            "stationary",
            "transfer",
        )
    },
    "xarray": set(),  # it reads the files; it is not needed to write them
    "h5netcdf": {"meanfield/files/storage.py"},
    "h5py": {"meanfield/files/storage.py"},
    "tyro": {"solvers/command_line/main.py", "solvers/command_line/flags.py"},
    "warnings.warn": {"meanfield/checking/warning.py"},  # elsewhere it would point at a line of ours
    "docstring_parser": {"solvers/command_line/flags.py"},
    "torch.set_float32_matmul_precision": {"meanfield/checking/own_numerics.py"},  # set for the time of a call
    "torch.autocast": {"meanfield/checking/own_numerics.py"},
}
UNSAFE = {
    "pickle",
    "cPickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "torch.load",
    "numpy.load(allow_pickle=True)",
}
GLOBAL = {
    "torch.manual_seed",
    "torch.seed",
    "torch.random.manual_seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.set_default_dtype",
    "torch.set_default_device",
    "torch.set_default_tensor_type",
    "torch.use_deterministic_algorithms",
    "numpy.random.seed",
    "random.seed",
}


def imports(tree):
    """Full names of everything imported, anywhere in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def uses(tree):
    """Full dotted names that the file imports or reaches, whatever the modules are called there; f(.., allow_pickle=x) as written."""
    local = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            local |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            local |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}

    def dotted(node):
        if isinstance(node, ast.Name):
            return local.get(node.id)
        base = dotted(node.value) if isinstance(node, ast.Attribute) else None
        return f"{base}.{node.attr}" if base else None

    found = set(imports(tree)) | {name.split(".")[0] for name in imports(tree)}
    for node in ast.walk(tree):
        if name := dotted(node):
            found.add(name)
        if isinstance(node, ast.Call) and dotted(node.func):
            options = [f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords if k.arg == "allow_pickle"]
            found.add(f"{dotted(node.func)}({', '.join(options)})")
    return found


def imported_files(tree, modules):
    """The modules among `modules` that the file imports, for the type checker's eyes or within functions as well."""
    found = set()
    for name in imports(tree):
        found.add(name if name in modules else name.rpartition(".")[0])
    return found & modules


def circles(graph):
    """Groups of modules that reach each other"""

    def reached(module):
        seen, ahead = set(), [module]
        while ahead:
            fresh = graph[ahead.pop()] - seen
            seen |= fresh
            ahead += fresh
        return seen

    reach = {module: reached(module) for module in graph}
    return {frozenset(m for m in reach[module] if module in reach[m]) for module in graph} - {frozenset()}


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


USES = {path.relative_to(ROOT).as_posix(): uses(ast.parse(path.read_text(encoding="utf-8"))) for path in FILES}


def test_both_packages_are_looked_at():
    """What is known to be there is found."""
    assert "pykeops" in USES["meanfield/measures/keops.py"]
    assert "meanfield.problem.problem" in {
        name.rpartition(".")[0] for name in USES["solvers/two_layer/wasserstein_flow.py"]
    }


def test_no_file_imports_itself_through_others():
    modules = {module_of(path) for path in FILES}
    graph = {module_of(path): imported_files(ast.parse(path.read_text(encoding="utf-8")), modules) for path in FILES}
    assert "solvers.dmft.dmft_window" in graph["solvers.dmft.fixed_point_dmft"]
    assert "meanfield.checking.checks" in graph["solvers.dmft.dmft_window"]  # from a folder import a file
    assert circles(graph) == set()


def test_circles_are_found_by_type_checking_and_local_imports_too():
    sources = {
        "a": "if TYPE_CHECKING:\n    from b import B",
        "b": "def f():\n    import c.d",
        "c": "",
        "c.d": "from a import A",
        "e": "import a",
    }
    graph = {name: imported_files(ast.parse(code), set(sources)) for name, code in sources.items()}
    assert circles(graph) == {frozenset({"a", "b", "c.d"})}


ROOMS = {  # and the rooms of the same package that each may import
    "meanfield/checking": (),
    "meanfield/network": ("checking",),
    "meanfield/scaling": ("checking", "network"),
    "meanfield/problem": ("checking", "network", "scaling"),
    "meanfield/measures": ("checking", "network"),
    "meanfield/kernels": ("checking", "network", "scaling"),
    "meanfield/solution": ("checking", "network", "scaling", "problem", "measures"),
    "meanfield/comparison": ("checking", "network", "scaling", "problem", "measures", "kernels", "solution"),
    "meanfield/files": ("checking", "network", "scaling", "problem", "measures", "kernels", "solution", "comparison"),
    "meanfield/plot": ("checking", "network", "scaling", "problem", "kernels", "solution", "comparison"),
    "meanfield/page": ("checking", "network", "solution", "comparison", "files", "plot"),
    "solvers/running": (),
    "solvers/dmft": ("running",),
    "solvers/two_layer": ("running",),
    "solvers/lazy": ("running",),
    "solvers/finite": ("running",),
    "solvers/fluctuations": ("running", "dmft", "two_layer", "finite"),
    "solvers/studies": ("running", "dmft", "two_layer", "lazy", "finite"),
    "solvers/command_line": ("running", "dmft", "two_layer", "lazy", "finite", "fluctuations", "studies"),
}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_along_the_arrows(room):
    package = room.partition("/")[0]
    allowed = {f"{package}.{name}" for name in (*ROOMS[room], room.partition("/")[2])}
    for path in (ROOT / room).rglob("*.py"):
        inside = {name for name in imports(ast.parse(path.read_text(encoding="utf-8"))) if name.startswith(package)}
        assert {".".join(name.split(".")[:2]) for name in inside} <= allowed, path


def test_every_file_has_a_room():
    alone = {path for path in FILES if path.parent.name in ("meanfield", "solvers")}
    assert {path.name for path in alone} == {"__init__.py"}
    assert {path.parent.relative_to(ROOT).as_posix() for path in FILES if path not in alone} == set(ROOMS)


def test_no_room_hides_a_public_name():
    for package in (meanfield, solvers):
        names = {room.partition("/")[2] for room in ROOMS if room.startswith(package.__name__)}
        assert names & set(package.__all__) <= {"plot"}  # which is that room


@pytest.mark.processes
def test_rooms_are_drawn_as_they_are(tmp_path):
    """The picture of docs/architecture.md shows each room and, by one way or another, each arrow."""
    command = [sys.executable, "docs/import_graph.py", str(tmp_path / "rooms.png")]
    subprocess.run(command, check=True, cwd=ROOT, env=environment())
    assert (tmp_path / "rooms.png").stat().st_size > 10_000


def test_meanfield_never_imports_solvers():
    assert [name for name, used in USES.items() if name.startswith("meanfield/") and "solvers" in used] == []


@pytest.mark.parametrize("package", HOMES)
def test_heavy_dependencies_and_borrowed_settings_live_in_one_file_each(package):
    assert {name for name, used in USES.items() if package in used} <= HOMES[package]


@pytest.mark.parametrize("name", USES)
def test_nothing_unpickles_and_nothing_sets_global_state(name):
    assert USES[name] & (UNSAFE | GLOBAL) == set()


@pytest.mark.parametrize(
    ("code", "use"),
    [
        ("import pickle as p", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("def f():\n    from torch import load", "torch.load"),
        ("import torch as t\nseed = t.manual_seed", "torch.manual_seed"),
        ("import numpy as np\nnp.random.seed(0)", "numpy.random.seed"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "numpy.load(allow_pickle=True)"),
        ("if True:\n    import matplotlib.pyplot as plt", "matplotlib"),
    ],
)
def test_the_search_sees_what_it_looks_for(code, use):
    assert use in uses(ast.parse(code))


def test_the_search_lets_generators_pass():
    allowed = "import torch, numpy as np\ng = torch.Generator().manual_seed(0)\nnp.load('x', allow_pickle=False)"
    assert uses(ast.parse(allowed)) & (UNSAFE | GLOBAL) == set()


@pytest.mark.processes
def test_importing_the_packages_does_not_load_what_is_rarely_needed():
    slow = {
        "pykeops",
        "keopscore",
        "sklearn",
        "matplotlib",
        "ot",
        "h5py",
        "scipy.stats",
        "scipy.optimize",
        "scipy.spatial",
        "scipy.linalg",
    }
    code = (
        "import sys, torch, scipy.special; brought = set(sys.modules); import meanfield, solvers.command_line.main; "
        f"print(*{slow} & (set(sys.modules) - brought))"
    )
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


@pytest.mark.processes
def test_reading_a_builder_does_not_load_torch_s_compiler():
    """Which takes seconds of every process"""
    code = (
        "import sys, meanfield as mf; from torch import nn; "
        "mf.Architecture(lambda n: nn.Sequential(nn.Linear(3, n), nn.Tanh(), nn.Linear(n, 1))); "
        "print(*{'torch._dynamo', 'sympy'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
