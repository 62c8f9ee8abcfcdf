"""SSDScheduler and SSDPipeline inside diffusers: its conventions, its files, and its own schedulers as references."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import FlexiUNet, FlexiUNetConfig, generate, load_run

diffusers = pytest.importorskip("diffusers")

from diffusers.utils import dynamic_modules_utils  # noqa: E402

from ssdcore_torch.checkpoint import save_config, save_prior, save_tensors  # noqa: E402
from ssdcore_torch.config import preset  # noqa: E402
from ssdcore_torch.interop import FlexiUNetModel, SSDPipeline, SSDPrior, SSDScheduler  # noqa: E402

SIZES = ((8, 8), (4, 4))
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def _quiet() -> None:
    diffusers.utils.logging.disable_progress_bar()


def two_levels(**settings: object) -> SSDScheduler:
    return SSDScheduler(level_sizes=SIZES, num_train_timesteps=60, beta_start=0.1 / 60, beta_end=20 / 60, **settings)


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- one size: diffusers' own schedulers


def exact(theirs: object) -> object:
    """Their scheduler with its tables in float64, of the same betas: what is left is the formulas."""
    theirs.alphas_cumprod = torch.cumprod(1 - theirs.betas.double(), 0)
    theirs.one = theirs.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return theirs


def ours_for(theirs: object, **settings: object) -> SSDScheduler:
    return SSDScheduler.from_config(
        theirs.config, level_sizes=[[4, 4]], trained_betas=theirs.betas.double().tolist(), **settings
    )


@pytest.mark.parametrize("total", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_every_step_is_that_of_ddpm(prediction: str, beta_schedule: str, total: int) -> None:
    theirs = exact(diffusers.DDPMScheduler(total, beta_schedule=beta_schedule, prediction_type=prediction))
    ours = ours_for(theirs)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert len(ours) == len(theirs) == total
    named = SSDScheduler.from_config(theirs.config, level_sizes=[[4, 4]]).process.noise
    rounding = float((EPS / (1 - theirs.betas)).sum())  # of each 1 − β, a float32 of theirs
    np.testing.assert_allclose(named.alpha[1:] ** 2, theirs.alphas_cumprod, rtol=rounding)
    for t in ours.timesteps:
        x, output = noise(int(t), 2, 3, 4, 4), noise(int(t) + 5000, 2, 3, 4, 4)
        a, b = (s.step(output, t, x, generator=torch.Generator().manual_seed(7)) for s in (ours, theirs))
        # 1 − ᾱ loses digits where ᾱ is near 1, on their side
        limit = 64 * torch.finfo(torch.float64).eps / float(1 - theirs.alphas_cumprod[max(int(t) - 1, 0)])
        torch.testing.assert_close(a.prev_sample, b.prev_sample, rtol=0, atol=limit * max(1.0, float(x.abs().max())))
        scale = 1 / float(theirs.alphas_cumprod[t].sqrt())
        torch.testing.assert_close(a.pred_original_sample, b.pred_original_sample, rtol=0, atol=64 * scale * 2.3e-16)


@pytest.mark.parametrize(("eta", "clip"), [(0.0, True), (0.5, True), (1.0, False), (0.0, False)])
@pytest.mark.parametrize("steps", [pytest.param(1000, marks=pytest.mark.slow), 50])
def test_every_step_is_that_of_ddim(steps: int, eta: float, clip: bool) -> None:
    theirs = exact(diffusers.DDIMScheduler(clip_sample=clip))
    ours = ours_for(theirs, eta=eta)
    theirs.set_timesteps(steps)
    ours.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    gap = 1000 // steps
    for t in ours.timesteps:
        x, output, eps = (noise(int(t) + 5000 * i, 2, 3, 4, 4) for i in range(3))
        a = ours.step(output, t, x, variance_noise=eps)
        # the flag changes nothing without clipping; with it, it is what an exact posterior does
        b = theirs.step(output, int(t), x, eta=eta, variance_noise=eps, use_clipped_model_output=clip)
        s = int(t) - gap
        limit = 64 * torch.finfo(torch.float64).eps / float(1 - theirs.alphas_cumprod[max(s, 0)]) ** 0.5
        size = max(1.0, float(x.abs().max())) / float(theirs.alphas_cumprod[t].sqrt())
        torch.testing.assert_close(a.prev_sample, b.prev_sample, rtol=0, atol=limit * size)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_timesteps_are_those_of_diffusers(spacing: str, steps: int) -> None:
    theirs = diffusers.DDPMScheduler(timestep_spacing=spacing)
    ours = SSDScheduler.from_config(theirs.config, level_sizes=[[4, 4]])
    theirs.set_timesteps(steps)
    ours.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.num_inference_steps == steps


def test_the_scheduler_drives_a_plain_unet_in_diffusers_own_pipeline() -> None:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    theirs = diffusers.DDPMScheduler()
    ours = SSDScheduler.from_config(theirs.config, level_sizes=[[8, 8]])
    images = []
    for scheduler in (ours, theirs):
        pipe = diffusers.DDPMPipeline(unet, scheduler)
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe(2, torch.Generator().manual_seed(0), num_inference_steps=20, output_type="pt")
        images.append(drawn.images)
    # float32 on both sides: ᾱ is a product of up to 1000 rounded factors in theirs
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1000 * EPS)
    assert images[0].std() > 0.05


# ---- several sizes: the process


def test_a_level_change_draws_from_the_exact_posterior() -> None:
    scheduler = two_levels(eta=0.7, clip_sample=False)
    proc = scheduler.process
    (change,) = proc.size_changes
    x, clean = noise(0, 2, 3, *proc.shape(change)), noise(1, 2, 3, *proc.shape(change - 1))
    eps = noise(2, 2, 3, *proc.shape(change - 1))
    assert scheduler.state_size(change - 1) == (4, 4)
    assert scheduler.prediction_size(change - 1) == (8, 8)
    made = scheduler.step(clean, change - 1, x, variance_noise=eps)
    law = proc.posterior(x, clean, change - 1, change, eta=0.7)
    assert torch.equal(made.prev_sample, law.sample(eps))
    assert torch.equal(made.pred_original_sample, clean)
    assert made.prev_sample.shape == (2, 3, 8, 8)
    tuple_form = scheduler.step(clean, change - 1, x, variance_noise=eps, return_dict=False)
    assert torch.equal(tuple_form[0], made.prev_sample)


def test_the_scheduler_holds_the_process_of_its_settings() -> None:
    scheduler = SSDScheduler(
        level_sizes=[(16, 16), (8, 8), (4, 4)], level_schedule="convex", level_gamma=0.6, matched=False, kernel="box"
    )
    levels = ssd.ResolutionSchedule.convex(1000, 3, 0.6)
    proc = ssd.LinearDiffusion.resize((16, 16), ssd.NoiseSchedule.linear(1000), levels, matched=False, kernel="box")
    np.testing.assert_array_equal(scheduler.process.noise.alpha, proc.noise.alpha)
    np.testing.assert_array_equal(scheduler.process.noise.sigma, proc.noise.sigma)
    assert scheduler.process.size_changes == proc.size_changes
    assert scheduler.process.shapes == proc.shapes
    x = noise(0, 16, 16)
    torch.testing.assert_close(scheduler.process.degradation(0, 900)(x), proc.degradation(0, 900)(x), rtol=0, atol=0)
    given = SSDScheduler(level_sizes=SIZES, level_schedule="thresholds", level_starts=[300])
    assert given.process.size_changes == (300,)


def test_what_a_configuration_leaves_out_means_what_its_maker_means(tmp_path: Path) -> None:
    """A file of theirs without a prediction type is one of noise; one made of ours for theirs keeps clean images."""
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler", "num_train_timesteps": 60}')
    assert diffusers.DDPMScheduler.from_pretrained(tmp_path).config.prediction_type == "epsilon"
    taken = SSDScheduler.from_pretrained(tmp_path, level_sizes=[[4, 4]]).config
    assert (taken.prediction_type, taken.timestep_spacing) == ("epsilon", "leading")
    for theirs in (diffusers.DDPMScheduler, diffusers.DDIMScheduler):
        made = SSDScheduler(level_sizes=[[4, 4]])
        assert theirs.from_config(made.config).config.prediction_type == "sample"


def test_a_pipeline_visits_the_timesteps_given() -> None:
    net = FlexiUNet(FlexiUNetConfig(SIZES, base_channels=32, channel_multipliers=(1, 1), blocks_per_stage=1)).eval()
    pipe = SSDPipeline(FlexiUNetModel.wrap(net), two_levels())
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(seed=1, timesteps=[59, 30, 3], output_type="pt").images
    for same in (torch.tensor([59, 30, 3]), np.array([59, 30, 3])):
        assert torch.equal(pipe(seed=1, timesteps=same, output_type="pt").images, expected)
    with pytest.raises(ValueError, match="either num_inference_steps or timesteps"):
        pipe(num_inference_steps=3, timesteps=[59, 30, 3])
    with pytest.raises(ValueError, match="T − 1 and every timestep"):
        pipe(timesteps=[])


@pytest.mark.parametrize(
    "settings",
    [
        {"level_schedule": "thresholds", "level_starts": (20,), "matched": False, "kernel": "lanczos3", "eta": 0.25},
        {"sampler": "multistep", "clip_sample": False},
        {"level_sizes": ((8, 6),), "trained_betas": np.linspace(0.01, 0.2, 60), "prediction_type": "v_prediction"},
    ],
)
def test_the_configuration_survives_its_json(tmp_path: Path, settings: dict[str, object]) -> None:
    made = SSDScheduler(**{"level_sizes": SIZES, "num_train_timesteps": 60, "beta_end": 0.3, **settings})
    made.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text(encoding="utf-8"))
    assert saved["_class_name"] == "SSDScheduler"
    read = SSDScheduler.from_pretrained(tmp_path)
    assert read.to_json_string() == made.to_json_string()
    assert SSDScheduler.from_config(made.config).to_json_string() == made.to_json_string()
    np.testing.assert_array_equal(read.process.noise.sigma, made.process.noise.sigma)
    assert read.process.size_changes == made.process.size_changes
    assert SSDScheduler.from_config(made.config, clip_sample_range=2.0).config["clip_sample_range"] == 2.0


def test_timesteps_pass_every_change_of_size() -> None:
    scheduler = two_levels()
    changes = [t - 1 for t in scheduler.process.size_changes]
    for count in (2, 5, 60):
        scheduler.set_timesteps(count)
        assert len(scheduler.timesteps) == scheduler.num_inference_steps == count
        assert scheduler.timesteps[0] == 59
        assert set(changes) <= set(scheduler.timesteps.tolist())
        assert (scheduler.timesteps.diff() < 0).all()
    scheduler.set_timesteps(timesteps=[59, *changes, 4])
    assert scheduler.timesteps.tolist() == [59, *changes, 4]
    assert scheduler.init_noise_sigma == scheduler.process.sigma(60)
    x = noise(0, 1, 3, 4, 4)
    assert scheduler.scale_model_input(x, 3) is x


def test_noise_is_added_as_in_the_process_and_the_target_undoes_it() -> None:
    scheduler = two_levels()
    proc, (change,) = scheduler.process, scheduler.process.size_changes
    x0 = noise(0, 3, 2, 8, 8)
    timesteps = torch.tensor([change, change + 3, 59])
    eps = noise(1, 3, 2, 4, 4)
    made = scheduler.add_noise(x0, eps, timesteps)
    for i, t in enumerate((timesteps + 1).tolist()):
        torch.testing.assert_close(made[i], proc.marginal(x0[i], t).sample(eps[i]), rtol=0, atol=1e-14)
    assert torch.equal(scheduler.get_target(x0, eps, timesteps), proc.clean(x0, change + 1))
    assert torch.equal(scheduler.get_target(x0, eps, torch.tensor([change - 1])), x0)
    assert scheduler.add_noise(x0.float(), eps.float(), timesteps).dtype == torch.float32


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_targets_lead_back_to_the_image(prediction: str) -> None:
    scheduler = SSDScheduler(
        level_sizes=[[4, 4]], num_train_timesteps=100, prediction_type=prediction, clip_sample=False
    )
    x0, eps, timesteps = noise(0, 2, 3, 4, 4), noise(1, 2, 3, 4, 4), torch.tensor([40, 40])
    x = scheduler.add_noise(x0, eps, timesteps)
    made = scheduler.step(scheduler.get_target(x0, eps, timesteps), 40, x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.pred_original_sample, x0, rtol=0, atol=1e-13)


def test_a_generator_for_each_image() -> None:
    scheduler = two_levels()
    x, clean = noise(0, 2, 3, 4, 4), noise(1, 2, 3, 4, 4)
    made = scheduler.step(clean, 59, x, [torch.Generator().manual_seed(seed) for seed in (3, 4)]).prev_sample
    for i, seed in enumerate((3, 4)):
        alone = scheduler.step(clean[i : i + 1], 59, x[i : i + 1], torch.Generator().manual_seed(seed)).prev_sample
        torch.testing.assert_close(made[i : i + 1], alone, rtol=0, atol=1e-14)


# ---- the pipeline


def small_config(num_classes: int | None = None) -> FlexiUNetConfig:
    return FlexiUNetConfig(
        SIZES,
        base_channels=32,
        channel_multipliers=(1, 1),
        blocks_per_stage=1,
        attention_sizes=(),
        num_classes=num_classes,
    )


def random_net(config: FlexiUNetConfig, seed: int) -> FlexiUNet:
    generator = torch.Generator().manual_seed(seed)
    net = FlexiUNet(config).eval().requires_grad_(False)
    for parameter in net.parameters():  # the output layer starts at zero
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    cpu = preset("cpu", "drawn by no one")
    config = dataclasses.replace(cpu, network=small_config(), process=dataclasses.replace(cpu.process, steps=60))
    save_config(folder, config)
    for seed, name in enumerate(("model", "ema")):
        save_tensors(folder / f"{name}.safetensors", random_net(config.network, seed).state_dict(), {"step": "1"})
    factor = np.random.default_rng(0).standard_normal((48, 20))  # of rank 20: a singular covariance
    save_prior(folder, (np.linspace(-1, 1, 48).reshape(3, 4, 4), factor @ factor.T / 20))
    return folder


def quiet(pipe: SSDPipeline) -> SSDPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("settings", [{}, {"eta": 0.0}, {"sampler": "multistep"}])
def test_a_seed_gives_the_images_of_generate(run: Path, settings: dict[str, object]) -> None:
    opened = load_run(run)
    pipe = quiet(SSDPipeline.from_run(run, **settings))
    drawn = pipe(3, num_inference_steps=9, seed=5, output_type="pt").images
    wanted = generate(opened.ema, opened.process, 3, steps=9, seed=5, prior=opened.prior, **settings)
    torch.testing.assert_close(drawn, (wanted / 2 + 0.5).clamp(0, 1), rtol=0, atol=0)
    assert drawn.std() > 0.05


def test_saved_and_loaded_it_draws_the_same(run: Path, tmp_path: Path) -> None:
    pipe = quiet(SSDPipeline.from_run(run, clip_sample=False))
    pipe.save_pretrained(tmp_path)
    read = quiet(SSDPipeline.from_pretrained(tmp_path))
    assert read.prior.covariance.dtype == torch.float64
    assert not read.unet.training
    arguments = {"batch_size": 2, "num_inference_steps": 6, "output_type": "pt"}
    for source in ({"seed": 1}, {"generator": torch.Generator().manual_seed(1)}):
        first = pipe(**arguments, **source).images
        if "generator" in source:
            source["generator"].manual_seed(1)
        assert torch.equal(first, read(**arguments, **source).images)
    saved = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert saved["unet"] == ["ssdcore_torch.interop.diffusers_pipeline", "FlexiUNetModel"]
    half = quiet(SSDPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16))
    assert half(**arguments, seed=1).images.dtype == torch.bfloat16
    assert (tmp_path / "prior" / "diffusion_pytorch_model.safetensors").stat().st_size > 0


def test_diffusers_alone_loads_a_saved_pipeline(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe = quiet(SSDPipeline.from_run(run))
    pipe.save_pretrained(tmp_path / "pipe")
    from_diffusers = diffusers.DiffusionPipeline.from_pretrained
    with pytest.raises(ValueError, match="trust_remote_code"):
        from_diffusers(tmp_path / "pipe", custom_pipeline="pipeline")
    read = quiet(from_diffusers(tmp_path / "pipe", custom_pipeline="pipeline", trust_remote_code=True))
    assert type(read) is SSDPipeline
    arguments = {"batch_size": 2, "num_inference_steps": 6, "output_type": "pt", "seed": 1}
    assert torch.equal(pipe(**arguments).images, read(**arguments).images)


def test_images_come_as_pictures_arrays_and_tensors(run: Path) -> None:
    pipe = quiet(SSDPipeline.from_run(run, weights="model"))
    pictures = pipe(2, 4, seed=0).images
    assert [(p.size, p.mode) for p in pictures] == [((8, 8), "RGB")] * 2
    array = pipe(2, 4, seed=0, output_type="np", return_dict=False)[0]
    tensor = pipe(2, 4, seed=0, output_type="pt").images
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.asarray(pictures[0]), (array[0] * 255).round().astype("uint8"))
    ema = quiet(SSDPipeline.from_run(run))(2, 4, seed=0, output_type="pt").images
    assert not torch.equal(tensor, ema)


def test_class_labels_and_guidance_reach_the_network() -> None:
    net = random_net(small_config(num_classes=3), 0)
    pipe = quiet(SSDPipeline(FlexiUNetModel.wrap(net), two_levels()))
    drawn = {w: pipe(2, 5, seed=0, class_labels=[2, 0], guidance_scale=w, output_type="pt").images for w in (1.0, 2.0)}
    proc = pipe.scheduler.process
    for w, images in drawn.items():
        wanted = generate(net, proc, 2, steps=5, seed=0, labels=[2, 0], guidance=w)
        torch.testing.assert_close(images, (wanted / 2 + 0.5).clamp(0, 1), rtol=0, atol=0)
    assert not torch.equal(drawn[1.0], drawn[2.0])


def test_the_model_answers_as_its_network() -> None:
    net = random_net(small_config(), 0)
    model = FlexiUNetModel.wrap(net.train())
    assert not model.training
    x = noise(0, 2, 3, 4, 4, dtype=torch.float32)
    grown = model(x, 20, out_size=(8, 8)).sample
    assert torch.equal(grown, net(x, torch.tensor([21.0, 21.0]), 0))
    assert torch.equal(model(x, torch.tensor([3, 9]), return_dict=False)[0], net(x, torch.tensor([4, 10])))
    assert model.num_parameters() == sum(p.numel() for p in net.parameters())


# ---- bad input

ONE = {"level_sizes": [[4, 4]]}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SSDScheduler(level_sizes=8), TypeError, r"level_sizes: expected \(height, width\) pairs"),
        (lambda: SSDScheduler(level_sizes=[[8.5, 8]]), TypeError, r"level_sizes"),
        (lambda: SSDScheduler(level_sizes=[]), ValueError, r"levels must be at least 1"),
        (
            lambda: SSDScheduler(**ONE, num_train_timesteps=0),
            ValueError,
            r"num_train_timesteps: expected a whole number >= 1, got 0",
        ),
        (
            lambda: SSDScheduler(**ONE, beta_schedule="sigmoid"),
            ValueError,
            r"beta_schedule: expected one of linear, scaled_linear",
        ),
        (
            lambda: SSDScheduler(**ONE, trained_betas=[0.1]),
            ValueError,
            r"expected num_train_timesteps = 1000 numbers, got 1",
        ),
        (lambda: SSDScheduler(**ONE, eta=2), ValueError, r"eta must be in \[0, 1\], got 2"),
        (lambda: SSDScheduler(**ONE, sampler="multistep", eta=1), ValueError, r"deterministic: expected 0, got 1"),
        (lambda: SSDScheduler(**ONE, sampler="heun"), ValueError, r"sampler: expected one of ancestral, multistep"),
        (lambda: SSDScheduler(**ONE, prediction_type="flow"), ValueError, r"prediction_type: expected one of"),
        (
            lambda: SSDScheduler(**ONE, num_train_timesteps=2, trained_betas=[0.5, 1], prediction_type="epsilon"),
            ValueError,
            r"no signal is left \(alpha = 0 at t = 2\)",
        ),
        (
            lambda: SSDScheduler(**ONE, timestep_spacing="karras"),
            ValueError,
            r"timestep_spacing: expected one of time, log_snr, leading",
        ),
        (lambda: two_levels(prediction_type="epsilon"), ValueError, r'"epsilon" needs a process of one size'),
        (
            lambda: two_levels(timestep_spacing="leading"),
            ValueError,
            r'"leading" may skip the times where the size changes',
        ),
        (lambda: two_levels(level_schedule="steps"), ValueError, r"level_schedule: expected one of equal"),
        (lambda: two_levels(level_schedule="thresholds"), ValueError, r"level_starts: .*got None"),
        (lambda: two_levels(level_schedule="thresholds", level_starts=[1, 2]), ValueError, r"2 levels have 1 starts"),
        (lambda: two_levels(level_gamma=2.0), ValueError, r'level_gamma: "equal" has none'),
        (lambda: SSDScheduler.from_config(diffusers.DDPMScheduler().config), ValueError, r"give level_sizes"),
        (
            lambda: SSDScheduler.from_config(diffusers.DDPMScheduler(variance_type="learned").config, **ONE),
            ValueError,
            r"no counterpart for variance_type = 'learned'",
        ),
        (
            lambda: SSDScheduler.from_config(diffusers.EulerDiscreteScheduler().config, **ONE),
            ValueError,
            r"expected the configuration of an SSDScheduler, DDPMScheduler or DDIMScheduler, got .*final_sigmas_type",
        ),
        (
            lambda: SSDScheduler.from_config({"_class_name": "EDMEulerScheduler"}, **ONE),
            ValueError,
            r"got one of EDMEulerScheduler",
        ),
        (
            lambda: two_levels().add_noise(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), torch.tensor([-1])),
            ValueError,
            r"expected timesteps within 0 … 59, got \[-1\]",
        ),
        (lambda: two_levels().set_timesteps(), ValueError, r"either num_inference_steps or timesteps"),
        (lambda: two_levels().set_timesteps(1), ValueError, r"take at least 2 steps"),
        (lambda: two_levels().set_timesteps(61), ValueError, r"expected 1 … 60, got 61"),
        (
            lambda: two_levels().set_timesteps(timesteps=[59, 3]),
            ValueError,
            r"every timestep where the size changes .*missing \[30\]",
        ),
        (lambda: two_levels().set_timesteps(timesteps=[30, 59]), ValueError, r"expected increasing times"),
        (
            lambda: two_levels().step(torch.zeros(1, 3, 4, 4), 60, torch.zeros(1, 3, 4, 4)),
            ValueError,
            r"timestep 60 is not one of scheduler\.timesteps",
        ),
        (
            lambda: two_levels().step(torch.zeros(1, 3, 4, 4), 30, torch.zeros(1, 3, 4, 4)),
            ValueError,
            r"must predict \(1, 3, 8, 8\), the size of the next state",
        ),
        (
            lambda: two_levels().step(torch.zeros(1, 6, 4, 4), 59, torch.zeros(1, 3, 4, 4)),
            ValueError,
            r"learned variances are not taken",
        ),
        (
            lambda: two_levels().step(torch.zeros(1, 3, 4, 4), 59, torch.zeros(1, 3, 8, 8)),
            ValueError,
            r"the sample is \(batch, channels, 4, 4\)",
        ),
        (
            lambda: two_levels().step(
                torch.zeros(1, 3, 4, 4),
                59,
                torch.zeros(1, 3, 4, 4),
                torch.Generator(),
                variance_noise=torch.zeros(1, 3, 4, 4),
            ),
            ValueError,
            r"either generator or variance_noise",
        ),
        (
            lambda: two_levels().add_noise(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.tensor([3, 50])),
            ValueError,
            r"a batch has one size",
        ),
        (
            lambda: two_levels().add_noise(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.tensor([50])),
            ValueError,
            r"noise is \(2, 3, 4, 4\), got \(2, 3, 8, 8\)",
        ),
        (
            lambda: two_levels().add_noise(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.tensor([1, 2, 3])),
            ValueError,
            r"one for each of 2 images, got 3",
        ),
        (lambda: FlexiUNetModel.wrap(torch.nn.Identity()), TypeError, r"expected a FlexiUNet, got Identity"),
        (
            lambda: FlexiUNetModel(**small_config().to_dict())(torch.zeros(1, 3, 4, 4), 0, out_size=(5, 5)),
            ValueError,
            r"out_size: expected one of the network's",
        ),
        (
            lambda: SSDPipeline(FlexiUNetModel(**small_config().to_dict()), diffusers.DDPMScheduler()),
            TypeError,
            r"scheduler must be a SSDScheduler, got DDPMScheduler",
        ),
        (
            lambda: SSDPipeline(FlexiUNetModel(**small_config().to_dict()), SSDScheduler(**ONE)),
            ValueError,
            r"scheduler's sizes are \(\(4, 4\),\), the network's levels \(\(8, 8\), \(4, 4\)\)",
        ),
        (
            lambda: SSDPipeline(FlexiUNetModel(**small_config().to_dict()), two_levels(), SSDPrior((3, 2, 2))),
            ValueError,
            r"the prior is over \(2, 2\), the smallest state \(4, 4\)",
        ),
    ],
)
def test_bad_input_gets_a_clear_error(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"output_type": "jpeg"}, "got 1 and 'jpeg'"),
        ({"seed": 0, "generator": torch.Generator()}, "either seed or generator"),
        ({"class_labels": 1}, "this network has no classes"),
        ({"num_inference_steps": 1}, "take at least 2 steps"),
    ],
)
def test_the_pipeline_refuses(run: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quiet(SSDPipeline.from_run(run))(**arguments)


def test_no_run_and_no_such_weights(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        SSDPipeline.from_run(tmp_path)
    with pytest.raises(ValueError, match="weights: expected ema or model, got 'best'"):
        SSDPipeline.from_run(run, weights="best")


@pytest.mark.parametrize("name", ["SSDScheduler", "SSDPipeline"])
def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import ssdcore_torch.interop as interop

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=rf'{name} needs diffusers: pip install "ssdcore\[interop\]"'):
        getattr(interop, name)
    with pytest.raises(AttributeError, match="no attribute 'SSDSampler'"):
        _ = interop.SSDSampler
