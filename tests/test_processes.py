"""What a configuration calls a process, and processes of one's own as files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ssdcore as ssd  # noqa: E402
from ssdcore_torch import processes  # noqa: E402
from ssdcore_torch.config import Config, preset  # noqa: E402
from ssdcore_torch.processes import DEGRADATIONS, WIDTHS, ProcessConfig, log_snr_file  # noqa: E402
from ssdcore_torch.runs import Asked, configure  # noqa: E402
from ssdcore_torch.runs.process_file import ProcessFile  # noqa: E402

SIZES = [(8, 8), (4, 4)]


@pytest.mark.parametrize("noise", ssd.NoiseSchedule.names())
@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_every_degradation_goes_with_every_noise(degradation, noise):
    config = ProcessConfig("equal", None, True, 30, degradation=degradation, noise=noise)
    process = config.build(SIZES if config.resizes else SIZES[:1])
    assert process.steps == 30
    assert process.shapes == tuple(SIZES if config.resizes else SIZES[:1])
    x = np.random.default_rng(0).standard_normal((2, 8, 8))
    whole, parts = process.operator(0, 25)(x), process.operator(10, 25)(process.operator(0, 10)(x))
    np.testing.assert_allclose(whole, parts, atol=1e-12)
    blurred = np.abs(process.operator(0, 9)(x) - x).max() > 1e-3
    assert blurred == ("blur" in degradation)


def test_a_blurred_resize_is_a_process():
    process = ProcessConfig("equal", None, True, 30, degradation="resize+blur").build(SIZES)
    assert ssd.testing.check_process(process).passed


@pytest.mark.parametrize("name", WIDTHS)
def test_blurs_grow_from_nothing_to_their_width(name):
    widths = ProcessConfig("equal", None, True, 50, degradation="blur", blur=3.0, blur_schedule=name).widths((8, 8))
    assert widths[0] == 0
    assert widths[-1] == pytest.approx(3)
    assert (np.diff(widths) > 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"degradation": "melt"}, "process.degradation: expected one of 'resize', 'blur', "),
        ({"noise": "pink"}, "process.noise: expected one of 'linear', 'cosine', 'rectified_flow', 'edm'"),
        ({"schedule": "later"}, "process.schedule: expected one of"),
        ({"nats": None}, "process.nats: schedule 'information' takes a number"),
        ({"nats": 0.0}, "process.nats: expected a positive number"),
        ({"schedule": "equal"}, "process.nats: schedule 'equal' takes none"),
        ({"blur": 0.0}, "process.blur: expected a positive width"),
        ({"blur_schedule": "fast"}, "process.blur_schedule: expected one of 'sine', 'log'"),
        ({"noise": "log_snr"}, "noise 'log_snr' takes one value per step"),
        ({"noise": "log_snr", "log_snr": [1.0]}, "expected 30 values"),
        ({"log_snr": [1.0] * 30}, "noise 'linear' takes none"),
        ({"degradation": "operators"}, "go together"),
        ({"steps": 0}, "process.steps: expected"),
    ],
)  # fmt: skip
def test_what_is_no_process_is_named(settings, message):
    config = json.loads(preset("cpu").to_json())
    config["process"] |= {"steps": 30, **settings}
    with pytest.raises(ValueError, match=message):
        Config.from_json(json.dumps(config))


@pytest.mark.parametrize("noise", ["linear", "cosine", "rectified_flow", "edm"])
@pytest.mark.parametrize("matched", [True, False])
def test_the_size_changes_where_little_is_lost(noise, matched):
    sizes = [(16, 16), (8, 8), (4, 4)]
    process = ProcessConfig("information", None, matched, 1000, noise=noise, nats=0.3).build(sizes)
    known = ssd.oracle.band_information(
        sizes, ssd.NoiseSchedule.named(noise, 1000), ssd.oracle.natural_spectrum((16, 16)), matched
    )
    rows = [known[sizes.index(process.shape(t))] for t in (1, *process.size_changes)]
    lost = sum(high[t - 1] - low[t - 1] for high, low, t in zip(rows, rows[1:], process.size_changes, strict=False))
    assert 0.25 < lost <= 0.3
    assert process.shape(1000) == (4, 4)


@pytest.mark.parametrize(("steps", "levels"), [(3, 2), (5, 3), (10, 3), (20, 4), (1000, 5)])
@pytest.mark.parametrize("size", [16, 28, 64])
def test_information_schedules_exist_for_every_size(steps, levels, size):
    sizes = [(max(size >> k, 1),) * 2 for k in range(levels)]
    process = ProcessConfig("information", None, True, steps, noise="cosine", nats=0.3).build(sizes)
    assert (process.shapes[0], process.shapes[-1]) == (sizes[0], sizes[-1])


def test_a_process_of_one_size_takes_one_level():
    with pytest.raises(ValueError, match=r"'blur' keeps the size .* take one"):
        ProcessConfig("equal", None, True, 30, degradation="blur").build(SIZES)


def asked(**process: object) -> Config:
    return configure(Asked(options={"process": process}), None, "cpu")


def test_another_schedule_takes_no_nats():
    assert asked().process.nats == 0.3
    assert asked(schedule="equal").process == dataclasses.replace(asked().process, schedule="equal", nats=None)
    assert asked(schedule="information", nats=1.0).process.nats == 1.0
    with pytest.raises(ValueError, match="takes none"):
        asked(schedule="equal", nats=1.0)


def test_options_bring_what_goes_with_them():
    assert asked(degradation="blur").network.level_sizes == ((16, 16),)
    assert asked(degradation="resize+blur").network.level_sizes == ((16, 16), (8, 8), (4, 4))
    edm = asked(noise="edm", steps=200)
    assert edm.network.preconditioned_times == 200
    assert edm.train.weighting == "edm"
    own = configure(
        Asked(options={"process": {"noise": "edm"}, "train": {"weighting": "snr"}}), None, "cpu"
    )  # what is said wins
    assert own.train.weighting == "snr"
    with pytest.raises(ValueError, match="keeps the size"):
        configure(Asked(levels=2, options={"process": {"degradation": "blur"}}), None, "cpu").build_process()


def test_a_noise_schedule_of_ones_own_takes_one_entry(monkeypatch):
    """What a configuration, its reading and the process read is one table."""
    straight = {"straight": lambda steps: ssd.NoiseSchedule.from_log_snr(np.linspace(6, -6, steps))}
    monkeypatch.setattr(ssd.schedules, "NOISE_SCHEDULES", {**ssd.schedules.NOISE_SCHEDULES, **straight})
    config = Config.from_json(asked(noise="straight").to_json())
    assert config.build_process().noise.steps == 1000
    assert "straight" in processes.noise_names()


def test_log_snr_values_come_from_a_file(tmp_path):
    file = tmp_path / "values.txt"
    file.write_text("6.0, 3\n0 -3\n-6")
    values = log_snr_file(file)
    assert values == (6.0, 3.0, 0.0, -3.0, -6.0)
    config = asked(noise="log_snr", log_snr=list(values), steps=5)
    np.testing.assert_allclose(config.process.noise_schedule().log_snr(), values)
    np.save(tmp_path / "values.npy", np.array(values))
    assert log_snr_file(tmp_path / "values.npy") == values
    for text in ("", "1 2 3", "five", "inf 0"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"values\.txt"):
            log_snr_file(file)


# ---- processes of one's own


def own_processes() -> dict[str, ssd.LinearDiffusion]:
    noise = ssd.NoiseSchedule.cosine(12)
    rng = np.random.default_rng(1)
    pairs = ssd.Matrix(np.kron(np.eye(8), np.full((1, 2), 0.5)), (4, 4), (8,))
    ops: list[ssd.LinearOperator | None] = [None] * 12
    chain, mixed = list(ops), list(ops)
    chain[5] = ssd.Resize((8, 8), (4, 4), "lanczos3")
    chain[8] = ssd.Blur((4, 4), 0.7)
    mixed[3] = ssd.Separable([rng.random((4, 8)) / 8, rng.random((4, 8)) / 8])
    mixed[6] = 0.5 * (pairs @ ssd.Blur((4, 4), 0.3))
    sparse = list(ops)
    scipy = pytest.importorskip("scipy.sparse")
    sparse[4] = ssd.Matrix(scipy.csr_array(np.kron(np.eye(8), np.full((1, 2), 0.5))), (4, 4), (8,))
    return {
        "chain": ssd.LinearDiffusion.from_operators(chain, noise),
        "mixed": ssd.LinearDiffusion.from_operators(mixed, noise),
        "sparse": ssd.LinearDiffusion.from_operators(sparse, noise),
        "blur": ssd.LinearDiffusion.blur((6,), ssd.NoiseSchedule.rectified_flow(12), np.linspace(0, 1, 13), "periodic"),
        "identity": ssd.LinearDiffusion.identity((3, 3, 3), noise),
        "both": ProcessConfig("equal", None, True, 30, degradation="resize+blur").build(SIZES),
    }


@pytest.mark.parametrize("name", ["chain", "mixed", "sparse", "blur", "identity", "both"])
def test_any_process_comes_back_from_its_file(name, tmp_path):
    process = own_processes()[name]
    file = ProcessFile.of(process)
    file.save(tmp_path / "process.safetensors")
    back = ProcessFile.load(tmp_path / "process.safetensors", file.digest).build()
    np.testing.assert_array_equal(back.noise.alpha, process.noise.alpha)
    np.testing.assert_array_equal(back.noise.sigma, process.noise.sigma)
    assert [back.shape(t) for t in range(process.steps + 1)] == [process.shape(t) for t in range(process.steps + 1)]
    x0 = np.random.default_rng(0).standard_normal((2, *process.shape(0)))
    for t in range(process.steps + 1):
        np.testing.assert_array_equal(back.degrade(x0, t), process.degrade(x0, t))
    with pytest.raises(ValueError, match="not the process that this run was trained for"):
        ProcessFile.load(tmp_path / "process.safetensors", "0" * 64)


def test_what_cannot_be_saved_is_refused_with_what_to_do():
    ops: list[ssd.LinearOperator | None] = [None] * 12
    ops[4] = ssd.Functional(lambda x: 0.5 * x, lambda y: 0.5 * y, (8,), (8,))
    process = ssd.LinearDiffusion.from_operators(ops, ssd.NoiseSchedule.cosine(12))
    with pytest.raises(ValueError, match=r"step 5 cannot be saved: .*give its matrix.*ssd\.Matrix\(op\.as_matrix"):
        ProcessFile.of(process)
    with pytest.raises(ValueError, match="respaced"):
        ProcessFile.of(own_processes()["identity"].respace([3, 12]))
