"""What is built and installed: the wheel's and the sdist's contents, and ssdcore in an environment with nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import ssdcore as ssd

ROOT = Path(__file__).parents[1]
PACKAGES = ("ssdcore", "ssdcore_torch")


def test_both_packages_are_marked_as_typed():
    assert [package for package in PACKAGES if (ROOT / package / "py.typed").is_file()] == list(PACKAGES)


@pytest.mark.parametrize(
    ("module", "missing", "extra"), [("ssdcore_torch", "torch", "torch"), ("ssdcore.theorems", "sympy", "verify")]
)
def test_a_missing_extra_is_named(module, missing, extra):
    code = f"import sys; sys.modules['{missing}'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f'ImportError: {module} needs {missing}: pip install "ssdcore[{extra}]"'


def test_the_lowest_versions_are_those_that_ci_runs():
    """Each lower bound of the extras that read files of others is pinned in constraints-lowest.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in ("torch", "data") for line in project["optional-dependencies"][extra]),
    ]
    bounds = dict(line.split(">=") for line in wanted)
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert bounds.keys() <= pinned.keys()
    del bounds["torch"]  # its lowest is what the gpu-marked tests ran with: benchmarks/results
    for name, lowest in bounds.items():  # a bound of 1.24 means the first release that pip takes for 1.24
        assert f"{pinned[name]}.".startswith(f"{lowest}."), name


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_", "COVERAGE"))}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def environment(folder: Path) -> Path:
    """The Python of a new environment with nothing in it."""
    run(sys.executable, "-m", "venv", folder)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    python = environment(tmp_path_factory.mktemp("builder"))
    run(python, "-m", "pip", "install", "--quiet", "hatchling")
    run(python, "-m", "hatchling", "build", "-d", folder)
    return folder


def source_files() -> set[str]:
    """Every file of the packages, caches left out."""
    return {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc"
    }


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(built):
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = set(wheel.namelist())
        info = f"ssdcore-{ssd.__version__}.dist-info"
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert {name for name in names if not name.startswith(f"{info}/")} == source_files()
    assert {"ssdcore/py.typed", "ssdcore_torch/py.typed", "ssdcore_torch/assets/drawings64.npz"} <= names
    assert f"{info}/licenses/LICENSE" in names
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(line.split(">")[0] for line in needed) == ["array-api-compat", "numpy"]
    assert metadata["License-Expression"] == "MIT"
    assert "# ssdcore" in metadata.get_payload()  # the README


@pytest.mark.slow
def test_the_sdist_holds_source_tests_and_licence(built):
    (file,) = built.glob("*.tar.gz")
    top = f"ssdcore-{ssd.__version__}/"
    with tarfile.open(file) as sdist:
        names = {name.removeprefix(top) for name in sdist.getnames()}
    assert source_files() | {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert {f"tests/{test.name}" for test in (ROOT / "tests").glob("test_*.py")} <= names


CODE = """
import sys
import numpy as np
import ssdcore as ssd
assert ssd.Resize((8, 8), (4, 4))(np.ones((3, 8, 8))).shape == (3, 4, 4)
noise, levels = ssd.NoiseSchedule.linear(50), ssd.ResolutionSchedule.equal(50, 2)
proc = ssd.LinearDiffusion.resize((8, 8), noise, levels)
assert ssd.oracle.sampler_error(proc, ssd.Covariance.isotropic((8, 8), 1.0)) > 0
assert ssd.testing.check_process(proc, dtypes="float64").passed
print(ssd.__file__)
assert not {"torch", "scipy", "sympy", "hypothesis", "matplotlib"} & set(sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_installs_into_an_empty_environment_and_works_without_torch(built, tmp_path, kind):
    (file,) = built.glob(kind)
    python = environment(tmp_path / "empty")
    run(python, "-m", "pip", "install", "--quiet", file)
    assert Path(run(python, "-c", CODE, cwd=tmp_path).strip()).is_relative_to(tmp_path)
    installed = run(python, "-m", "pip", "list", "--format=freeze").split()
    names = {line.split("==")[0].replace("_", "-") for line in installed}
    assert names - {"pip", "setuptools", "wheel"} == {"ssdcore", "numpy", "array-api-compat"}
