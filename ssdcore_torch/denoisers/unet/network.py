"""The network: which stages and skips a path from one level to another uses."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssdcore as ssd
from ssdcore_torch.denoisers.predictions import prediction_named
from ssdcore_torch.denoisers.protocol import operations
from ssdcore_torch.denoisers.unet.blocks import (
    Block,
    DecoderStage,
    EncoderStage,
    Middle,
    Norm,
    TimeEmbedding,
    Upsample,
    zeroed,
)
from ssdcore_torch.denoisers.unet.config import FlexiUNetConfig, Size
from ssdcore_torch.graphs import Pool, Replayed

Path = Callable[..., Tensor]
"""`FlexiUNet._run` of one network, as it is or compiled."""


class FlexiUNet(nn.Module):
    """x̂(x_t, t): the unscaled clean image, at the size of x_t's level or of any level above it.

    ::

        net(x, t, out_level=None, label=None)

    - x: (batch, in_channels, h, w), (h, w) one of `config.level_sizes`: so its level is found
    - t: (batch,) process times 1..T, whole or not; t − 1 is embedded, as in the paper's weights

    out_level  0 = full size; default: the level of x

    - label: (batch,) integers, class-conditional networks only; default: the null label

    Returns ``(batch, in_channels, *level_sizes[out_level])`` in the dtype of x.

    With `config.preconditioned_times` the layers F predict a correction (Karras et al. 2022, "Elucidating the design
    space of diffusion-based generative models", here for α x_0 + σ ε and for changes of size)::

        x̂ = c_skip(t) · L x_t + c_out(t) · F(c_in(t) · x_t, t),   L the bilinear interpolation to the size of x̂

    with the coefficients of `precondition`; until it is called they are 0, 1 and 1.

    Raises:
        TypeError: For wrong kinds.
        ValueError: For wrong shapes, unknown sizes and levels, and labels that are missing, unwanted or (on the
            CPU, where looking costs no synchronisation) out of range.
    """

    needs_data = False  # what it computes does not depend on the values that it is given
    batch_independent = True

    def __init__(self, config: FlexiUNetConfig) -> None:
        super().__init__()
        if not isinstance(config, FlexiUNetConfig):
            raise TypeError(f"FlexiUNet: expected a FlexiUNetConfig, got {type(config).__name__}")
        self.config = config
        base = config.channels[0]
        self.time_embedding = TimeEmbedding(config.base_channels)
        self.label_embedding: nn.Embedding | None = None
        if config.num_classes is not None:
            rows = config.num_classes + (config.null_label is not None)
            self.label_embedding = nn.Embedding(rows, 4 * config.base_channels)
        self.stem = nn.Conv2d(config.in_channels, base, 3, padding=1)
        self.encoder = nn.ModuleList(EncoderStage(config, k) for k in range(config.stages))
        self.middle = Middle(config)
        self.decoder = nn.ModuleList(DecoderStage(config, k) for k in range(config.stages))
        # from stage k + 1 to stage k
        self.upsamplings = nn.ModuleList(Upsample(channels) for channels in config.channels[1:])
        # stages of equal width share an adapter, so the width is its name
        used = {config.stage(level) for level in range(len(config.level_sizes))}
        if config.released_behaviour:
            used = set(range(config.stages))
        entries = sorted({config.entry_channels[k] for k in used} - {base})
        exits = sorted({config.channels[k] for k in used} - {base})
        self.input_adapters = nn.ModuleDict({str(c): nn.Conv2d(base, c, 1) for c in entries})
        self.output_adapters = nn.ModuleDict({str(c): nn.Conv2d(c, base, 1) for c in exits})
        self.head_norm = Norm(base)
        self.head_conv = zeroed(nn.Conv2d(base, config.in_channels, 3, padding=1))
        # Rows c_in, c_skip, c_out over t = 0..T. A parameter that is not trained: whatever keeps, averages, copies or
        # shares out the weights takes it along.
        self.coefficients: nn.Parameter | None = None
        if config.preconditioned_times is not None:
            plain = torch.tensor([1.0, 0.0, 1.0])[:, None].repeat(1, config.preconditioned_times + 1)
            self.coefficients = nn.Parameter(plain, requires_grad=False)
        self.compiled = False  # by `compile_paths`: a new batch size then costs a compilation
        self._compiler: Callable[[Path], Path] | None = None
        self._compiled: dict[tuple[object, ...], Path] = {}

    @property
    def sizes(self) -> tuple[Size, ...]:
        """(h, w) of every level, full size first."""
        return self.config.level_sizes

    @property
    def channels(self) -> int:
        return self.config.in_channels

    @property
    def num_classes(self) -> int | None:
        return self.config.num_classes

    @property
    def null_label(self) -> int | None:
        return self.config.null_label

    def precondition(self, process: ssd.LinearDiffusion) -> FlexiUNet:
        """Take the coefficients for states of this process; returns self.

        They are those of the prediction "edm" (`ssdcore_torch.denoisers.predictions`): at every time F is asked for
        something of deviation one. Raises ValueError unless the network has `preconditioned_times` and the process as
        many.
        """
        if self.coefficients is None or self.config.preconditioned_times != process.steps:
            raise ValueError(
                f"precondition: expected a network with preconditioned_times = {process.steps}, as many as the process "
                f"has, got {self.config.preconditioned_times}"
            )
        c_in, c_skip, c_out, _ = prediction_named("edm").table("edm", process)
        with torch.no_grad():
            self.coefficients.copy_(torch.from_numpy(np.stack([c_in, c_skip, c_out])))
        return self

    def compile_paths(self, backend: str | Callable[..., Any] = "inductor", mode: str | None = None) -> FlexiUNet:
        """From now on run each path as one compiled graph, made when the path first meets a batch size; returns self.

        Static shapes, whole graphs: what cannot be compiled so is an error, never a silent fall-back. The results agree
        with the plain network's to rounding. Inductor keeps what it made on disk (TORCHINDUCTOR_CACHE_DIR), so that
        another process starts in a fraction of the time. Copies and pickles of the network are made uncompiled.

        Args:
            backend, mode: of torch.compile. mode="reduce-overhead" replays CUDA graphs: for sampling, and for
                training where each step has one backward pass and starts from gradients of None.
        """

        def compiler(run: Path) -> Path:
            return torch.compile(run, backend=backend, mode=mode, fullgraph=True, dynamic=False)

        self._compiler, self._compiled, self.compiled = compiler, {}, True
        return self

    def capture_paths(self) -> FlexiUNet:
        """From now on, where no gradients are kept, run each path and batch size on CUDA as one graph, captured at its
        second call: the same kernels without the host's time between them. Returns self.

        The weights must stay where they are; what was captured follows their values.
        """
        self._compiler, self._compiled, self.compiled = functools.partial(Replayed, pool=Pool()), {}, False
        return self

    def checkpoint_activations(self, enabled: bool = True) -> FlexiUNet:
        """Keep only the inputs of each block for the backward pass, which computes the rest again: about a sixth of the
        memory, for one more forward pass. The gradients are the same. Returns self."""
        for module in self.modules():
            if isinstance(module, Block):
                module.checkpointed = enabled
        self._compiled = {}
        return self

    def lower_precision(self, dtype: torch.dtype = torch.bfloat16) -> FlexiUNet:
        """Convolutions, attention and what conditions them in this dtype from now on; the norms, the embeddings of time
        and label and the coefficients stay as they are. Returns self.

        For drawing: what `torch.autocast` computes, without casting the weights again in every step. Training needs the
        weights as they are.
        """
        kept = set(self.time_embedding.modules())
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and module not in kept:
                module.to(dtype)
        self._compiled = {}
        return self

    def __getstate__(self) -> dict[str, Any]:
        # compiled code is bound to this network: a copy that kept it would run with this one's weights
        return {**super().__getstate__(), "compiled": False, "_compiler": None, "_compiled": {}}

    def forward(self, x: Tensor, t: Tensor, out_level: int | None = None, label: Tensor | None = None) -> Tensor:
        config = self.config
        self._check_input(x, t)
        level = config.level_sizes.index((x.shape[2], x.shape[3]))
        out_level = self._check_out_level(out_level, level)
        self._check_label(label, x.shape[0])
        if self._compiler is None or torch.compiler.is_compiling():
            return self._run(x, t, label, level, out_level)
        # all that a graph is bound to, so that each code object compiles once and meets no limit
        modes = (self.training, torch.is_grad_enabled(), torch.is_autocast_enabled(x.device.type))
        key = (level, out_level, x.shape[0], *modes, *(None if v is None else v.dtype for v in (x, t, label)))
        if key not in self._compiled:
            self._compiled[key] = self._compiler(self._path(level, out_level))
        y = self._compiled[key](x, t, label, level, out_level)
        # the next replay of a CUDA graph overwrites what this one returned
        return y if torch.is_grad_enabled() else y.clone()

    def _path(self, level: int, out_level: int) -> Path:
        """`_run` with code of its own: torch.compile counts graphs by the code they come from, and stops at a few."""
        run = FlexiUNet._run
        code = run.__code__.replace(co_name=f"run_{level}_to_{out_level}")
        return types.MethodType(types.FunctionType(code, run.__globals__), self)

    def _run(self, x: Tensor, t: Tensor, label: Tensor | None, level: int, out_level: int) -> Tensor:
        """The network on checked arguments."""
        if self.coefficients is None:
            return self._layers(x, t, label, level, out_level)
        at = t.clamp(0, self.coefficients.shape[1] - 1)  # a time that is not whole takes its share of both neighbours
        rows = self.coefficients[:, at.floor().long()]
        rows = torch.lerp(rows, self.coefficients[:, at.ceil().long()], (at - at.floor()).to(rows.dtype))
        c_in, c_skip, c_out = rows.to(x.dtype)[:, :, None, None, None]
        lifted = x
        if out_level != level:
            lifted = F.interpolate(x, self.config.level_sizes[out_level], mode="bilinear", align_corners=False)
        return torch.addcmul(c_skip * lifted, c_out, self._layers(c_in * x, t, label, level, out_level))

    def _layers(self, x: Tensor, t: Tensor, label: Tensor | None, level: int, out_level: int) -> Tensor:
        config, dtype = self.config, x.dtype
        embedding = self.time_embedding(t)
        if self.label_embedding is not None:
            embedding = embedding + self._embed_label(label, t)
        embedding = F.silu(embedding).to(self.stem.weight.dtype)
        if out_level < level and (not config.flexi or (config.released_behaviour and out_level == 0)):
            x = F.interpolate(x, config.level_sizes[out_level], mode="bilinear", align_corners=False)
            level = out_level
        entry = config.stage(level)
        h = self.stem(x.to(self.stem.weight.dtype))
        if config.entry_channels[entry] != config.channels[0]:
            h = self.input_adapters[str(config.entry_channels[entry])](h)
        skips = [h]
        for stage in self.encoder[entry:]:
            h = stage(h, embedding, skips)
        h = self.middle(h, embedding)
        h = self._decode(h, embedding, skips, level, out_level)
        if h.shape[1] != config.channels[0]:
            h = self.output_adapters[str(h.shape[1])](h)
        return self.head_conv(self.head_norm.activated(h)).to(dtype)

    def _decode(self, h: Tensor, embedding: Tensor, encoded: list[Tensor], level: int, out_level: int) -> Tensor:
        """Decoder stages up to the output's. Those the encoder has been to run on the input's grid, with its
        skips; those above, on the output's grid, without. A larger output that shares the input's stage makes
        that stage one of those above."""
        config = self.config
        size, out_size = config.level_sizes[level], config.level_sizes[out_level]
        entry, last = config.stage(level), config.stage(out_level)
        grows = out_level != level
        for k in reversed(range(last, config.stages)):
            has_skips = k > entry or (k == entry and (entry > last or not grows))
            if has_skips:
                grid = (size[0] >> (k - entry), size[1] >> (k - entry))
            else:
                grid = (out_size[0] >> (k - last), out_size[1] >> (k - last))
            if k < config.stages - 1:
                h = self.upsamplings[k](h, grid)
            elif not has_skips:
                h = F.interpolate(h, grid, mode="nearest-exact")
            skips: list[Tensor | None] = [None] * (config.blocks_per_stage + 1)
            if has_skips:
                skips = [encoded.pop() for _ in skips]
            if config.released_behaviour and k == last:
                skips.pop()
            elif config.released_behaviour and k == entry:
                skips[-1] = None
            h = self.decoder[k](h, embedding, skips)
        return h

    def _embed_label(self, label: Tensor | None, t: Tensor) -> Tensor:
        assert self.label_embedding is not None
        if label is None:
            assert self.config.null_label is not None
            label = torch.full_like(t, self.config.null_label, dtype=torch.long)
        return self.label_embedding(label)

    def _check_input(self, x: Tensor, t: Tensor) -> None:
        config = self.config
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: expected one floating-point tensor (a batch has one size), got {_kind(x)}")
        if x.ndim != 4 or x.shape[1] != config.in_channels:
            raise ValueError(f"x: expected shape (batch, {config.in_channels}, h, w), got {tuple(x.shape)}")
        if tuple(x.shape[2:]) not in config.level_sizes:
            raise ValueError(
                f"x: no level has the size {tuple(x.shape[2:])}; this network's levels are {config.level_sizes}"
            )
        if not isinstance(t, Tensor) or t.dtype is torch.bool or t.is_complex():
            raise TypeError(f"t: expected a tensor of real numbers, got {_kind(t)}")
        if t.shape != (x.shape[0],):
            raise ValueError(f"t: expected shape ({x.shape[0]},), one time per image, got {tuple(t.shape)}")

    def _check_out_level(self, out_level: int | None, level: int) -> int:
        if out_level is None:
            return level
        if not isinstance(out_level, int) or isinstance(out_level, bool):
            raise TypeError(f"out_level: expected None or a whole number, got {out_level!r}")
        if not 0 <= out_level <= level:
            raise ValueError(
                f"out_level: the input is of level {level} and the network keeps or raises the size, "
                f"so expected 0..{level} (0 = full size), got {out_level}"
            )
        return out_level

    def _check_label(self, label: Tensor | None, batch: int) -> None:
        config = self.config
        if config.num_classes is None:
            if label is not None:
                raise ValueError("label: this network has no classes (num_classes is None); leave it out")
            return
        highest = config.num_classes - 1 if config.null_label is None else config.null_label
        if label is None:
            if config.null_label is None:
                raise ValueError(f"label: this network has no null label; give each image one of 0..{highest}")
            return
        if not isinstance(label, Tensor) or label.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"label: expected an int64 or int32 tensor, got {_kind(label)}")
        if label.shape != (batch,):
            raise ValueError(f"label: expected shape ({batch},), one per image, got {tuple(label.shape)}")
        if label.device.type == "cpu" and not torch.compiler.is_compiling():
            bad = [n for n in label.tolist() if not 0 <= n <= highest]
            if bad:
                raise ValueError(f"label: expected labels in 0..{highest}, got {bad[:8]}")


def build(config: FlexiUNetConfig, process: ssd.LinearDiffusion) -> FlexiUNet:
    """The network of this shape, with new weights, preconditioned for the process if the shape says so."""
    net = FlexiUNet(config)
    return net if config.preconditioned_times is None else net.precondition(process)


@functools.lru_cache(maxsize=256)
def forward_flops(config: FlexiUNetConfig, level: int, out_level: int | None = None) -> int:
    """`operations` of the network of this shape, from `level` to `out_level` (None: the same)."""
    with torch.device("meta"):
        net = FlexiUNet(config)
    return operations(net, level, level if out_level is None else out_level)


def _kind(value: object) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
