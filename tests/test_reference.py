"""The API reference: it builds without a warning, holds every public name, and our docstrings read well in it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

# fmt: off
NAMES = {
    "ssdcore": [
        "Resize", "Blur", "Blur.heat", "Identity", "Separable", "Matrix", "Functional", "LinearOperator",
        "LinearOperator.in_shape", "LinearOperator.out_shape", "LinearOperator.T", "LinearOperator.norm",
        "LinearOperator.as_matrix", "LinearOperator.gram_function", "NoiseSchedule", "NoiseSchedule.linear",
        "NoiseSchedule.cosine", "NoiseSchedule.from_log_snr", "NoiseSchedule.alpha", "NoiseSchedule.sigma",
        "ResolutionSchedule", "ResolutionSchedule.convex", "ResolutionSchedule.equal", "ResolutionSchedule.sigmoid",
        "ResolutionSchedule.tanh", "ResolutionSchedule.thresholds", "ResolutionSchedule.level", "LinearDiffusion",
        "LinearDiffusion.resize", "LinearDiffusion.identity", "LinearDiffusion.blur", "LinearDiffusion.from_operators",
        "LinearDiffusion.steps", "LinearDiffusion.shape", "LinearDiffusion.alpha", "LinearDiffusion.sigma",
        "LinearDiffusion.clean", "LinearDiffusion.degradation", "LinearDiffusion.marginal",
        "LinearDiffusion.transition", "LinearDiffusion.posterior", "LinearDiffusion.prior", "LinearDiffusion.respace",
        "LinearDiffusion.times", "Gaussian", "Gaussian.mean", "Gaussian.covariance", "Gaussian.log_prob",
        "Gaussian.sample", "InadmissibleProcess", "Covariance", "general_transition", "general_posterior",
    ],
    "ssdcore/oracle": ["sampler_error", "design_levels", "Design", "EmpiricalDenoiser"],
    "ssdcore/testing": ["check_operator", "check_process", "Report", "Report.passed", "Report.to_markdown",
                        "CheckFailed", "parametrize_with_checks"],
    "ssdcore/theorems": ["names", "prove", "Proof", "Proof.name", "Proof.statement", "Proof.steps", "Proof.holds"],
    "ssdcore/interop": ["to_scipy", "from_scipy", "to_pylops", "from_pylops"],
    "ssdcore_torch": ["FlexiUNet", "FlexiUNetConfig", "generate", "load_run", "Run", "Run.net", "Run.ema",
                      "Run.process", "Run.config", "encode", "decode", "interpolate", "restore"],
    "ssdcore_torch/checkpoint": ["import_official"],
    "ssdcore_torch/interop": ["SSDScheduler", "SSDPipeline", "to_deepinv", "from_deepinv"],
}
# fmt: on


@pytest.fixture
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_make", Path(__file__).parents[1] / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    pytest.importorskip("pdoc")
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_reference_builds_without_warnings_and_holds_every_public_name(make, tmp_path):
    for package in ("torch", "diffusers", "matplotlib", "sympy", "hypothesis", "safetensors"):
        pytest.importorskip(package)
    # in a process of its own: pdoc imports every module and runs what stands under TYPE_CHECKING
    run = subprocess.run([sys.executable, make.__file__, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    missing = [
        f"{page}.{name}"
        for page, names in NAMES.items()
        for html in [(tmp_path / f"{page}.html").read_text(encoding="utf-8")]
        for name in names
        if f'id="{name}"' not in html
    ]
    assert not missing
    resize = (tmp_path / "ssdcore.html").read_text(encoding="utf-8").split('id="Resize"')[1]
    assert "<li><strong>kernel</strong>: " in resize.split('id="Resize.__init__"')[0]


def test_a_warning_ends_the_build(make, tmp_path, monkeypatch):
    monkeypatch.setattr(make, "pages", list)
    monkeypatch.setattr(make.pdoc, "pdoc", lambda *_, **__: warnings.warn("does not resolve", stacklevel=1))
    with pytest.raises(UserWarning, match="does not resolve"):
        make.build(tmp_path)


def test_columns_become_a_list_and_formulas_and_examples_code(make):
    docstring = """q(x_s | x_t) for s < t, of `times`.

    mean = a_s * x,   covariance = I

x_t   (*batch, n)   state
eta   in [0, 1]: a factor
      on the noise
times   increasing;  cost   of each
Raises ValueError for n < 1.

>>> 1 + 1
2"""
    assert (
        make.to_markdown(docstring)
        == """q(x\\_s | x\\_t) for s &lt; t, of `times`.

```text
mean = a_s * x,   covariance = I
```

- **x\\_t**: (\\*batch, n) – state
- **eta**: in \\[0, 1\\]: a factor on the noise
- **times**: increasing
- **cost**: of each

Raises ValueError for n &lt; 1.

```pycon
>>> 1 + 1
2
```"""
    )
