"""The wheel: every file of both packages and the examples, and an environment with nothing else of ours, in which the command runs them."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.running import ROOT, environment
from tests.test_examples import FILES

pytestmark = pytest.mark.processes
PACKAGES = ("meanfield", "solvers")
LATER = ("meanfield/later/__init__.py", "solvers/later/deeper/__init__.py")  # folders that nobody has named


def own():
    """The surroundings of a process that finds nothing of the checkout"""
    return {name: value for name, value in environment().items() if not name.startswith("PYTHON")}


def run(folder, *command):
    done = subprocess.run([*map(str, command)], cwd=folder, env=own(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pip(folder, *arguments):
    run(folder, sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without the network, from a copy: setuptools leaves its folders beside the sources"""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "examples", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in LATER:
        (source / name).parent.mkdir(parents=True)
        (source / name).write_text("")
    pip(source, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", source, source)
    (built,) = source.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel. It sees the libraries of this one, whose .pth files (an editable install) do not act there."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    pip(folder, "--python", folder / "bin" / "python", "install", "--no-index", "--no-deps", "--no-compile", wheel)
    paths = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    (packages / "libraries.pth").write_text("\n".join(paths))
    return folder


def test_every_file_of_both_packages_is_in_the_wheel(wheel):
    expected = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    expected |= {f"meanfield_examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    with zipfile.ZipFile(wheel) as held:
        found = {name for name in held.namelist() if ".dist-info/" not in name}
    assert found == expected | {"meanfield/page/page.html"} | {f"{name}/py.typed" for name in PACKAGES} | set(LATER)


def test_the_command_draws_a_picture(installed, tmp_path):
    command = installed / "bin" / "meanfield"
    tiny = ("--data.n-train", 4, "--data.n-test", 0, "--training.steps", 3, "--solver.particles", 16)
    run(tmp_path, command, "flow", "--out", "run.nc", *tiny, "--solver.snapshots")
    pictures = run(tmp_path, command, "plot", "run.nc").split()
    assert pictures == ["run_loss.png", "run_outputs.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for name in pictures)


DEMO = """
import sys
from solvers.command_line.main import main
code = main()
ours = ("meanfield", "solvers", "meanfield_examples")
print(*{module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] in ours}, sep="\\n")
sys.exit(code)
"""


def test_the_demo_runs_with_the_wheel_alone(installed, tmp_path):
    said = run(tmp_path, installed / "bin" / "python", "-c", DEMO, "demo", "--quick", "--out", "out").splitlines()
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES["demo"]
    files = [Path(line) for line in said if line.endswith(".py")]
    assert len(files) > 60
    assert [path for path in files if not path.is_relative_to(installed)] == []


def test_examples_are_listed(installed, tmp_path):
    listed = run(tmp_path, installed / "bin" / "meanfield", "examples").splitlines()
    assert {line.split()[0] for line in listed} == set(FILES)
