"""`make gpu` on a machine without a GPU: tiny sizes, all parts; and with nothing but its five packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu import __main__ as command

here = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present: make gpu is the test")
pytestmark = [pytest.mark.processes, here]

BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        asked_by = sys._getframe(3).f_code.co_filename if name.split(".")[0] in {names!r} else ""
        if asked_by and "_dynamo" not in asked_by:  # torch only asks whether it is there
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(folder: Path, *arguments: str, hidden: tuple[str, ...] = ()):
    (folder / "sitecustomize.py").write_text(BLOCK.format(names=set(hidden)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--out", str(folder), *arguments],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1],
    )  # fmt: skip


def test_all_parts_run_with_five_packages_only(tmp_path):
    parts = [name for name in command.PARTS if name != "cuda_tests"]
    done = run(tmp_path, "cuda_tests", *parts, hidden=command.OPTIONAL)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0, done.stderr
    assert found["missing"] == list(command.OPTIONAL)
    assert set(found["parts"]) == set(command.PARTS)
    for name, part in found["parts"].items():
        assert part["ended"].startswith("finished"), (name, part)
        assert part["rows"], name
    assert "pytest is missing" in str(found["parts"]["cuda_tests"])
    assert "chunked serves instead" in str(found["parts"]["engines"])
    loop = next(r for r in found["parts"]["deep"]["rows"])
    assert loop["done"] == loop["T"]
    assert "tiny sizes on a CPU: these figures measure nothing" in done.stdout
    assert "## networks: finished" in done.stdout


def test_a_part_that_fails_or_hangs_costs_the_others_nothing(tmp_path, monkeypatch, capsys):
    real = subprocess.run

    def run(command, **options):
        return real(CODE[command[command.index("tests.gpu") + 1]], **options)

    code = {
        "ceilings": 'print(\'row: {"what": "copy", "per_second": 2.0}\'); raise SystemExit(\'no card\')',
        "deep": "import time; print('row: {\"done\": 3}', flush=True); time.sleep(60)",
        "networks": "print('row: {\"N\": 7}')",
    }
    CODE = {name: [sys.executable, "-c", text] for name, text in code.items()}
    monkeypatch.setattr(command.subprocess, "run", run)
    monkeypatch.setitem(command.PARTS, "deep", (command.PARTS["deep"][0], 2))
    assert command.main([*code, "--out", str(tmp_path), "--device", "cpu"]) == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["ceilings"]["ended"].startswith("failed with status 1")
    assert "no card" in parts["ceilings"]["errors"]
    assert parts["deep"]["ended"].startswith("stopped at its limit of 2 s")
    assert [r for part in parts.values() for r in part["rows"]] == [
        {"what": "copy", "per_second": 2.0},
        {"done": 3},
        {"N": 7},
    ]
    assert "no card" in capsys.readouterr().out


def test_its_time_is_bounded(tmp_path):
    assert sum(limit for _, limit in command.PARTS.values()) > 360  # so the bound on the whole is what counts
    assert command.main(["ceilings", "--out", str(tmp_path), "--device", "cpu", "--minutes", "0.01"]) == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["ceilings"]["ended"] == "no time was left"


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        command.main(["celings"])
    assert "unknown part: received celings; known: ceilings" in capsys.readouterr().err
