"""Runs as objects: any process and any network, trained, resumed bit for bit, sampled, evaluated; what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

import ssdcore as ssd  # noqa: E402
from ssdcore_torch import Run, generate, load_run, wrap  # noqa: E402
from ssdcore_torch.errors import UserError  # noqa: E402

TINY: dict[str, Any] = {
    "network": {"base_channels": 32, "channel_multipliers": [1, 1], "attention_sizes": []},
    "train": {"steps": 4, "batch_size": 4, "warmup": 0, "cosine_decay": False, "save_every": 2, "log_every": 1},
}
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def unet() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=4,
    )  # fmt: skip


class Own(nn.Module):
    """A network of the user's own, with a buffer that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x) + (t / 50).view(-1, 1, 1, 1)


def resize(steps: int = 40) -> ssd.LinearDiffusion:
    return ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.cosine(steps), ssd.ResolutionSchedule.equal(steps, 3))


def blur(steps: int = 40) -> ssd.LinearDiffusion:
    return ssd.LinearDiffusion.blur((8, 8), ssd.NoiseSchedule.rectified_flow(steps), np.linspace(0, 1.5, steps + 1))


def create(out: Path, kind: str, steps: int = 4) -> tuple[Run, Any]:
    """A run of one of the kinds, and the network to open it with, or None."""
    settings = {**TINY, "train": {**TINY["train"], "steps": steps}}
    common: dict[str, Any] = {"data": IMAGES, "device": "cpu"}
    if kind == "settings":
        settings["process"] = {"degradation": "resize+blur", "noise": "edm", "steps": 40}
        return Run.create(out, size=8, levels=2, settings=settings, **common), None
    train = {"train": settings["train"]}
    if kind == "blur":
        return Run.create(out, process=blur(), settings=settings, **common), None
    if kind == "diffusers":
        net = wrap(unet(), resize(), "edm")
        return Run.create(out, process=resize(), network=net, settings=train, **common), None
    torch.manual_seed(2)
    net = wrap(Own(), blur(), "velocity", channels=3)
    return Run.create(out, network=net, settings=train, **common), wrap(Own(), blur(), "velocity", channels=3)


KINDS = ["settings", "blur", "diffusers", "own"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_ends_as_one_that_was_not(kind, tmp_path):
    """Bit for bit, for every process and network, and then samples alike from the folder alone."""
    whole, _ = create(tmp_path / "whole", kind)
    assert whole.train()
    stopped, again = create(tmp_path / "parts", kind, steps=2)
    assert stopped.train()
    resumed = Run.open(tmp_path / "parts", network=again, data=IMAGES)
    assert resumed.train(4)
    assert resumed.step == whole.step == 4
    for name in ("net", "ema"):
        ours, theirs = getattr(whole, name).state_dict(), getattr(resumed, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    opened = Run.open(tmp_path / "parts", network=again)
    drawn = opened.sample(2, steps=5, seed=3)
    assert drawn.shape == (2, 3, 8, 8)
    assert torch.equal(drawn, whole.sample(2, steps=5, seed=3))
    assert opened.process.noise == whole.process.noise
    operator = ssd.Resize((8, 8), (4, 4))
    assert opened.restore(operator, operator(drawn), 0.1, steps=5).shape == (2, 3, 8, 8)


def test_a_run_samples_with_its_prior_as_the_command_does(tmp_path):
    run, _ = create(tmp_path / "run", "blur")
    run.train()
    assert run.prior is not None
    drawn = run.sample(3, steps=6, seed=1)
    assert torch.equal(drawn, generate(run.ema, run.process, 3, 6, seed=1, prior=run.prior))
    assert not torch.equal(drawn, generate(run.ema, run.process, 3, 6, seed=1))


def test_residual_spectra_are_kept_with_the_run_under_their_checksum(tmp_path):
    run, _ = create(tmp_path / "run", "settings")
    assert run.train()
    file = tmp_path / "run" / "residuals.safetensors"
    content = file.read_bytes()
    drawn = run.sample(2, steps=5, seed=3, second_moments=True)
    assert not torch.equal(drawn, run.sample(2, steps=5, seed=3))
    again = Run.open(tmp_path / "run", data=IMAGES)
    assert torch.equal(again.sample(2, steps=5, seed=3, second_moments=True), drawn)
    assert torch.equal(drawn, generate(again.ema, again.process, 2, 5, seed=3, prior=again.prior,
                                       residuals=again.residuals))  # fmt: skip
    # changed or missing, the run opens and samples as before, says what is wrong, and --resume measures again
    for damage in (lambda: file.write_bytes(content[:-1] + b"!"), file.unlink):
        damage()
        broken = Run.open(tmp_path / "run", data=IMAGES)
        broken.sample(1, steps=5)
        with pytest.raises(ValueError, match=r"residuals\.safetensors is .*--resume measures it again"):
            broken.sample(1, steps=5, second_moments=True)
    assert broken.train()
    assert file.read_bytes() == content
    # training that continues leaves them behind until its end
    assert broken.train(6)
    assert file.read_bytes() != content
    assert broken.sample(1, steps=5, second_moments=True).isfinite().all()


def test_a_run_without_residual_spectra_opens_and_says_how_to_get_them(tmp_path):
    """As earlier versions left runs: no file, and a manifest that knows of none."""
    import json

    run, _ = create(tmp_path / "run", "settings")
    assert run.train()
    (tmp_path / "run" / "residuals.safetensors").unlink()
    for manifest in (tmp_path / "run").glob("checkpoints/*/manifest.json"):
        values = json.loads(manifest.read_text())
        del values["residuals"]
        manifest.write_text(json.dumps(values))
    old = Run.open(tmp_path / "run", data=IMAGES)
    assert old.residuals is None
    old.sample(1, steps=5)
    before = old.sample(1, steps=5, sampler="multistep")
    with pytest.raises(ValueError, match=r"has no residual spectra.*--resume measures them"):
        old.sample(1, steps=5, second_moments=True)
    assert old.train()
    assert old.sample(1, steps=5, second_moments=True).shape == (1, 3, 8, 8)
    # multistep takes them where there are any
    plain = old.sample(1, steps=5, sampler="multistep", second_moments=False)
    assert not torch.equal(old.sample(1, steps=5, sampler="multistep"), plain)
    assert torch.equal(before, plain)


def test_classes_by_name_take_turns(tmp_path):
    labels = np.arange(12) % 3
    run = Run.create(
        tmp_path / "run", (IMAGES, labels, ("cats", "dogs", "owls")), size=8, levels=2, settings=TINY,
        conditional=True, device="cpu",
    )  # fmt: skip
    assert run.train()
    owls = run.sample(2, steps=3, label="owls")
    assert torch.equal(owls, run.sample(2, steps=3, label=2))
    mixed = run.sample(3, steps=3)  # all in turn
    assert torch.equal(mixed, run.sample(3, steps=3, label=["cats", "dogs", "owls"]))
    with pytest.raises(ValueError, match="classes are cats, dogs, owls"):
        run.sample(1, label="mice")


def test_a_run_evaluates_without_a_command(tmp_path):
    pytest.importorskip("torchmetrics")
    run, _ = create(tmp_path / "run", "diffusers")
    run.train()
    report = run.evaluate(6, features="pixels", steps=3, cache=tmp_path / "cache")
    assert report["n"] == 6
    assert report["figures"]["frechet"] > 0
    assert report["samples"]["step"] == 4


def test_a_run_that_was_only_made_has_the_weights_it_was_given(tmp_path):
    run, again = create(tmp_path / "run", "own")
    opened = Run.open(tmp_path / "run", network=again)
    assert opened.step == 0
    for name, tensor in run.net.state_dict().items():
        assert torch.equal(tensor, opened.net.state_dict()[name])


def test_grey_images_and_oblong_ones(tmp_path):
    run = Run.create(tmp_path / "run", IMAGES[..., 0], size=8, levels=2, settings=TINY, device="cpu")
    assert run.train()
    assert run.sample(2, steps=3).shape == (2, 1, 8, 8)
    oblong = ssd.LinearDiffusion.resize((8, 4), ssd.NoiseSchedule.linear(40), ssd.ResolutionSchedule.equal(40, 2))
    other = Run.create(tmp_path / "other", IMAGES[:, :, :4], process=oblong, settings=TINY, device="cpu")
    assert other.train()
    assert other.sample(1, steps=3).shape == (1, 3, 8, 4)


class Wrong(Own):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t)[:, :, ::2]


def functional() -> ssd.LinearDiffusion:
    ops: list[ssd.LinearOperator | None] = [None] * 40
    ops[9] = ssd.Functional(lambda x: 0.5 * x, lambda y: 0.5 * y, (8, 8), (8, 8))
    return ssd.LinearDiffusion.from_operators(ops, ssd.NoiseSchedule.linear(40))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (lambda: {"network": wrap(Wrong(), blur(), channels=3)}, ValueError, "the shape of its input"),
        (lambda: {"network": wrap(Own(), resize()), "process": blur()}, ValueError, "made for states of"),
        (lambda: {"network": Own()}, TypeError, r"expected a Denoiser, such as wrap\(net, process\)"),
        (lambda: {"process": functional()}, ValueError, "step 10 cannot be saved"),
        (lambda: {"process": blur(), "size": 8}, ValueError, "has its own; leave them out"),
        (lambda: {"process": ssd.LinearDiffusion.identity((32,), ssd.NoiseSchedule.linear(40))}, ValueError, "two axes"),
        (lambda: {"process": ssd.LinearDiffusion.identity((16, 16), ssd.NoiseSchedule.linear(40))}, ValueError, "smaller"),
        (lambda: {"data": IMAGES.astype(np.float32)}, (TypeError, ValueError), "uint8"),
        (lambda: {"data": [1, 2]}, TypeError, "data: expected a path"),
        (lambda: {"settings": {"train": {"stepps": 3}}}, ValueError, "train.stepps: unknown setting"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_anything_is_written(options, kind, message, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(kind, match=message) as caught:
        Run.create(out, **{"data": IMAGES, "settings": TINY, "device": "cpu", **options()})
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_network_that_no_folder_makes_again_is_asked_for(tmp_path):
    run, again = create(tmp_path / "run", "own")
    run.train()
    with pytest.raises(ValueError, match=r"Own.*Run\.open\(out, network=wrap\(net, process\)\)"):
        load_run(tmp_path / "run")
    with pytest.raises(ValueError, match="it is not the one of"):
        Run.open(tmp_path / "run", network=wrap(Own(), blur(), "clean", channels=3))
    with pytest.raises(ValueError, match="give them again, as data="):
        Run.open(tmp_path / "run", network=again).train()


BAD_CALLS = [
    (lambda run, here: Run.open(3), TypeError, "path: expected a path, got int"),
    (lambda run, here: Run.open("a\0b"), ValueError, "path: expected a path, got 'a"),
    (lambda run, here: Run.open(run.path, "meta"), UserError, "meta cannot be used"),
    (lambda run, here: Run.create("a\0b", data=IMAGES), ValueError, "out: expected a path"),
    (lambda run, here: Run.create(here / "new", data=IMAGES, settings=[1]), TypeError, "settings: expected a mapping"),
    (lambda run, here: run.report(here / "no" / "page.html"), FileNotFoundError, "there is no folder"),
    (lambda run, here: run.sample(1.5), TypeError, "n: expected a whole number, got 1.5"),
    (lambda run, here: run.sample(1, steps=0), ValueError, "steps: expected a whole number >= 1, got 0"),
    (lambda run, here: run.sample(1, steps=2.5), TypeError, "steps: expected a whole number, got 2.5"),
    (lambda run, here: run.sample(1, seed=-1), ValueError, "seed: expected a whole number >= 0, got -1"),
    (lambda run, here: run.sample(1, seed="one"), TypeError, "seed: expected a whole number, got 'one'"),
    (lambda run, here: run.sample(1, batch_size=True), TypeError, "batch_size: expected a whole number, got True"),
    (lambda run, here: run.sample(1, cfg=3), TypeError, "cfg: unknown option, did you mean guidance?"),
    (lambda run, here: run.evaluate(0), ValueError, "n: expected a whole number >= 1, got 0"),
]


def test_bad_calls_say_what_was_expected_and_write_nothing(tmp_path):
    run = Run.create(tmp_path / "run", data=IMAGES, process=resize(), network=wrap(Own(), resize()), device="cpu")
    before = sorted(tmp_path.rglob("*"))
    for call, kind, message in BAD_CALLS:
        with pytest.raises(kind, match=re.escape(message)) as raised:
            call(run, tmp_path)
        assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert run.sample(np.int64(1), np.int32(3), seed=np.uint8(3)).shape == (1, 3, 8, 8)
