"""Runs on the Hugging Face hub: what a run shares, its model card, and back.

What is shared is a run folder to sample from: settings, weights and their average, the prior, samples, a card. It
has no state of the optimizer, no images of the training data and no path of this machine. What comes back is read as
any run folder is: as data (SECURITY.md).
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ssdcore_torch import checkpoint
from ssdcore_torch.checkpoint import OpenRun
from ssdcore_torch.config import Config, is_unnamed_data, unnamed_data
from ssdcore_torch.data import EMBEDDED, called
from ssdcore_torch.metrics import report as evaluation_report
from ssdcore_torch.text import printable, sides

FILES = (
    "config.json",
    "manifest.json",
    "model.safetensors",
    "ema.safetensors",
    "prior.safetensors",
    "residuals.safetensors",
    "process.safetensors",
    "log.jsonl",
    "samples.png",
    "denoising.png",
    "README.md",
)
"""All that is shared of a run, and all that is fetched."""

UNNAMED = "the run"

_COPIED: tuple[str, ...] = (
    "prior.safetensors",
    "residuals.safetensors",
    "process.safetensors",
    "log.jsonl",
    "samples.png",
)
_COPIED += ("denoising.png",)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def write_shared(run: OpenRun, folder: Path, *, licence: str | None = None, data: str | None = None) -> None:
    """Write what is shared of a run into a new or empty folder: `FILES`, as far as the run has them.

    Args:
        licence: of the weights, by its SPDX name in small letters, as the hub has it; None: the card says that none
            is stated
        data: what to call the training images on the card; None: the name of a Hugging Face dataset or of the
            embedded drawings, and nothing of a path
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose a new folder")
    config = _shared_config(run.config, data)
    step = str(run.step)
    for name, net in (("model.safetensors", run.net), ("ema.safetensors", run.ema)):
        checkpoint.save_tensors(folder / name, net.state_dict(), {"step": step})
    measured = run.residuals is not None
    for name in _COPIED:
        if (run.path / name).is_file() and (measured or name != "residuals.safetensors"):
            shutil.copyfile(run.path / name, folder / name)
    checkpoint.save_config(folder, config)
    checkpoint.save_account(folder, config)
    (folder / "README.md").write_text(model_card(run, config, licence), encoding="utf-8")


def _shared_config(config: Config, data: str | None) -> Config:
    """The settings without a path of this machine."""
    path = config.data.path
    if data is None and (path == EMBEDDED or path.startswith("hf:")) and not Path(path.removeprefix("hf:")).exists():
        return config
    return replace(config, data=replace(config.data, path=unnamed_data(data or UNNAMED)))


def model_card(run: OpenRun, config: Config, licence: str | None) -> str:
    """The card of a run in Markdown: what it draws, how it was trained, its figures, how to use it."""
    shape = run.process.shape(0)
    what = called(len(shape))
    head: dict[str, Any] = {"library_name": "ssdcore"}
    if len(shape) == 2:
        head["pipeline_tag"] = "unconditional-image-generation"
    head["tags"] = ["diffusion", "scale-space-diffusion", "ssdcore"]
    if licence is not None:
        head = {"license": licence, **head}
    process = run.process
    sizes = " → ".join(sides(shape) for shape in process.shapes)
    parameters = sum(p.numel() for p in run.ema.parameters())
    classes = config.data.class_names or tuple(f"class {k}" for k in range(config.network.num_classes or 0))
    path = config.data.path
    if is_unnamed_data(path):
        path = path.removeprefix("what ").removesuffix(" was trained on")
    data = "not named" if path == UNNAMED else path
    train, settings = config.train, config.process
    kind = "its own operators (process.safetensors)" if settings.operators is not None else settings.degradation
    rows = [
        ("data", data),
        ("size", sides(process.shape(0)) + f", {config.network.in_channels} channels"),
        ("process", f"{kind}, {process.steps} steps, sizes {sizes}"),
        ("noise", settings.noise if settings.operators is None else "as in process.safetensors"),
        ("network", f"{type(run.ema).__name__}, {parameters / 1e6:.2f} M parameters"),
        ("training", f"{run.step} steps of {train.batch_size} images, learning rate {train.learning_rate:g}"),
        ("licence", licence or "not stated: ask the author"),
    ]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {_plain(run.path.resolve().name)}\n",
        f"A diffusion model of {what}, trained with ssdcore."
        + (" The noisy states shrink as noise grows.\n" if len(process.shapes) > 1 else "\n"),
        *(["![Samples](samples.png)\n"] if (run.path / "samples.png").is_file() else []),
        _table(("", ""), rows),
        *([f"Classes: {', '.join(map(_plain, classes))}\n"] if classes else []),
        _figures(run.path / "evaluation.json"),
        "## Use\n",
        "```python\nfrom ssdcore_torch import Run\n\n"
        'run = Run.from_pretrained("OWNER/NAME")  # or a folder\n'
        f"{what} = run.sample(16, steps=50)  # {(16, config.network.in_channels, *shape)} in [-1, 1]\n```\n",
        "## Limits\n",
        f"It draws {what} like those that it was trained on, with their faults and their bias. It may draw copies of "
        "them: `python -m ssdcore_torch.evaluate` measures how many.\n",
    ]
    return "\n".join(part for part in parts if part)


def _figures(file: Path) -> str:
    """The measured figures beside their floor; that there are none."""
    if not file.is_file():
        return "## Figures\n\nNot evaluated.\n"
    report = evaluation_report.read(file)
    floor = report["floor"] or {}
    show = evaluation_report.show
    rows = [
        (name, show(value), show(floor.get(name)), evaluation_report.MEANINGS.get(name, ""))
        for name, value in report["figures"].items()
    ]
    said = (
        f"{report['n']} samples against as many real images, features {_plain(report['features']['name'])}. The floor "
    )
    said += "is what other real images get.\n"
    return f"## Figures\n\n{said}\n" + _table(("figure", "value", "floor", "meaning"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_plain(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plain(text: object) -> str:
    """Text from elsewhere as one line that Markdown takes for text."""
    return re.sub(r"([\\`*_\[\]<>|#!&~])", r"\\\1", printable(text))


def push(
    run: OpenRun,
    repo: str,
    *,
    licence: str | None = None,
    data: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Share the run as a model of the Hugging Face hub, for `from_pretrained`. Returns its address.

    What goes there: settings, weights, their average, prior, residual spectra, log, samples, and a model card with
    data, process, training, figures (of evaluation.json in the folder), classes and licence. Checkpoints, images
    and paths of this machine stay here.

    Args:
        repo: OWNER/NAME, made if there is none
        licence: of the weights, as the hub names it ("mit", "cc-by-4.0"); None: the card says that none is stated
        data: what to call the training images; None: only the name of a hub's dataset, or of the embedded drawings
        private: of a new model
        token: of the hub; None: the one that is logged in
        message: of the commit

    Raises:
        ValueError: For a name that the hub does not take, before any work.
        OSError: Where the hub cannot be reached or does not let it.
        ImportError: Without the extra "hub".
    """
    check_repo(repo)
    hub = _hub()
    with tempfile.TemporaryDirectory(prefix="ssdcore-") as folder:
        write_shared(run, Path(folder, "run"), licence=licence, data=data)
        card = Path(folder, "run", "README.md")
        card.write_text(card.read_text(encoding="utf-8").replace("OWNER/NAME", repo), encoding="utf-8")
        try:
            api = hub.HfApi(token=token)
            address = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo,
                folder_path=str(Path(folder, "run")),
                repo_type="model",
                allow_patterns=list(FILES),
                commit_message=message or f"Run after step {run.step}",
            )
        except Exception as error:  # of the network, of rights, of the hub's own kinds
            raise OSError(f"{repo} cannot be shared ({_first_line(error)}): log in with `hf auth login`") from error
    return str(address)


def fetch(repo: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a shared run: `repo` itself where it is a folder, else fetched from the hub into its cache.

    Only `FILES` are fetched. Raises ValueError for a name that is neither, OSError where it cannot be fetched.
    """
    if Path(repo).is_dir():
        return Path(repo)
    check_repo(repo)
    try:
        return Path(_hub().snapshot_download(repo, revision=revision, token=token, allow_patterns=list(FILES)))
    except Exception as error:  # of the network, of rights, of the hub's own kinds
        raise OSError(f"{repo} cannot be fetched from the hub ({_first_line(error)})") from error


def check_repo(repo: str) -> None:
    """Raises ValueError for what is not the name of a model on the hub."""
    if _NAME.fullmatch(repo) is None:
        raise ValueError(f"{printable(repo)} is neither a folder nor a model of the hub: expected OWNER/NAME")


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError('sharing runs needs huggingface_hub: pip install "ssdcore[hub]"') from error
    return huggingface_hub


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {printable(text.splitlines()[0])[:200]}" if text else type(error).__name__
