"""The configuration tree: JSON, refusals, presets."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from ssdcore_torch.config import PRESETS, Config, differences, merged, preset, read_settings, setting
from ssdcore_torch.data import EMBEDDED


def config_of(name: str) -> Config:
    return preset(name, "somewhere")


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    config = config_of(name)
    assert Config.from_json(config.to_json()) == config
    assert config.preset == name


def edited(path: str, value: Any) -> str:
    """The cpu preset's JSON with one setting put in place (or taken out, for ...)."""
    values = json.loads(preset("cpu").to_json())
    *parents, last = path.split(".")
    node = values
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", 1, "colour: unknown setting"),
        ("train.speed", 1, "train.speed: unknown setting; known here: steps"),
        ("network.depth", 3, "network.depth: unknown setting"),
        ("train.steps", ..., "train.steps: this setting is missing"),
        ("train", 3, "train: expected an object"),
        ("train.steps", "many", "train.steps: expected int, got 'many'"),
        ("train.steps", 10.5, "train.steps: expected int"),
        ("train.steps", True, "train.steps: expected int, got True"),
        ("train.steps", 0, "train.steps: expected at least 1, got 0"),
        ("train.learning_rate", -1, "train.learning_rate: expected a positive number"),
        ("train.ema", [1.0], r"train.ema: expected one decay in \[0, 1\)"),
        ("train.cosine_decay", 1, "train.cosine_decay: expected bool, got 1"),
        ("process.schedule", "round", "process.schedule: expected one of 'equal'"),
        ("process.gamma", 0.5, "process.gamma: schedule 'information' takes none"),
        ("data.classes", "moods", "data.classes: expected a list"),
        ("data.classes", [3], r"data.classes\[0\]: expected str, got 3"),
        ("network.level_sizes", [[16, 16, 16]], r"network.level_sizes\[0\]: expected 2 values"),
        ("network.base_channels", 31, "base_channels"),
        ("seed", -1, "seed: expected 0 to 9223372036854775807"),
    ],
)
def test_wrong_settings_are_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.from_json(edited(path, value))


def test_not_json() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        Config.from_json('{"preset": ')
    with pytest.raises(ValueError, match="expected an object"):
        Config.from_json("[]")


def test_whole_numbers_pass_for_floats_and_defaults_fill_in() -> None:
    assert Config.from_json(edited("train.weight_decay", 0)) == preset("cpu")
    assert Config.from_json(edited("train.snr_clamp", ...)) == preset("cpu")


def test_differences_are_named() -> None:
    ours = preset("cpu")
    theirs = dataclasses.replace(ours, seed=7, train=dataclasses.replace(ours.train, batch_size=1))
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == [
        "seed: 0 instead of 7",
        f"train.batch_size: {ours.train.batch_size} instead of 1",
    ]


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown preset 'tpu': choose one of cpu, gpu64, celeba64"):
        preset("tpu")


def test_paper_presets_need_data_and_carry_its_settings() -> None:
    with pytest.raises(ValueError, match="celeba64 has no data of its own: give --data"):
        preset("celeba64")
    sizes = {"celeba64": 4, "celeba128": 5, "celeba256": 6, "imagenet64": 2}
    for name, levels in sizes.items():
        config = preset(name, "photos")
        full = int(name.removeprefix("celeba").removeprefix("imagenet"))
        assert config.network.level_sizes == tuple((full >> k, full >> k) for k in range(levels))
        assert config.data.path == "photos"
        assert (config.process.schedule, config.process.gamma, config.process.matched) == ("convex", 0.5, False)
        assert (config.train.batch_size, config.train.learning_rate, config.train.ema) == (32, 1e-4, (0.9999,))
        assert config.train.change_share is None


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_admissible_processes_of_the_networks_sizes(name: str) -> None:
    config = config_of(name)
    proc = config.build_process()
    sizes = dict.fromkeys(proc.shape(t) for t in range(proc.steps + 1))
    assert tuple(sizes) == config.network.level_sizes
    assert proc.steps == 1000


def test_presets_on_other_data_take_all_of_it() -> None:
    assert preset("cpu").data.path == EMBEDDED
    assert preset("cpu", "mine").data.classes == ()


def test_another_size_or_number_of_levels() -> None:
    config = preset("cpu").overlaid({}, 24, 2)
    assert config.network.level_sizes == ((24, 24), (12, 12))
    assert config.network.attention_stages == preset("cpu").network.attention_stages
    assert preset("cpu").overlaid({}, levels=1).network.level_sizes == preset("cpu").network.level_sizes[:1]
    with pytest.raises(ValueError, match=r"divisible by 4.*3 stages"):
        preset("cpu").overlaid({}, 18)
    with pytest.raises(ValueError, match=r"9 levels are too many.*take at most"):
        preset("cpu").overlaid({}, levels=9)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("train.learning_rate=1e-4", "train.learning_rate", 1e-4),
        ("train.clip=1.0", "train.clip", 1.0),
        ("train.clip=null", "train.clip", None),
        ("train.ema=[0.9, 0.99]", "train.ema", (0.9, 0.99)),
        ("data.flip=true", "data.flip", True),
        ("seed=3", "seed", 3),
    ],
)
def test_one_setting_laid_over(text: str, path: str, value: Any) -> None:
    found: Any = config_of("cpu").overlaid(setting(text))
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_settings_from_a_file() -> None:
    base = config_of("cpu")
    settings = read_settings("seed: 4\ntrain:\n  learning_rate: 2e-4\n  ema_widths: [0.05, 0.1]\n")
    config = base.overlaid(settings)
    assert (config.seed, config.train.learning_rate, config.train.ema_widths) == (4, 2e-4, (0.05, 0.1))
    assert config.network == base.network
    assert base.overlaid(read_settings(json.dumps(settings))) == config
    assert base.overlaid(read_settings(config.to_json())) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.clip", "expected NAME=VALUE"),
        ("=3", "expected NAME=VALUE"),
        ("train.clip=[1", "not YAML"),
        ("train.clip=abc", "train.clip: expected float, got 'abc'"),
        ("train.klip=1", r"train.klip: unknown setting, did you mean train.clip\? known here: steps"),
        ("train=1", "train: expected settings by name, got 1"),
        ("train.batch_size.x=1", r"train.batch_size: expected int, got \{'x': 1\}"),
    ],
)
def test_wrong_settings_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of("cpu").overlaid(setting(text))


def test_trees_are_laid_over_each_other_section_by_section() -> None:
    assert merged({"a": {"x": 1, "y": [2]}}, {"a": {"y": [3]}, "b": 4}) == {"a": {"x": 1, "y": [3]}, "b": 4}
    for trees in (({"a": {"b": 3}}, {"a": {"b": {"c": 1}}}), ({"a": {"b": {"c": 1}}}, {"a": {"b": 3}})):
        with pytest.raises(ValueError, match=r"^a\.b: expected settings by name, got 3"):
            merged(*trees)


@pytest.mark.parametrize("text", ["!!bool x", "!!int ''", "!!timestamp x", "!!python/name:os.system"])
def test_wrong_tags_are_refused(text: str) -> None:
    for read in (lambda: read_settings(f"seed: {text}"), lambda: setting(f"seed={text}")):
        with pytest.raises(ValueError, match="not YAML"):
            read()


@pytest.mark.parametrize("text", ["", "[1, 2]", "3", "a: [", "1: 2"])
def test_files_that_hold_no_settings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not YAML|expected settings as in"):
        read_settings(text)


def test_a_network_without_classes_takes_any_choice_of_images() -> None:
    config = preset("cpu")
    assert config.data.classes
    assert config.trained_labels() == []
    config.check_conditions(None, 1.0)
