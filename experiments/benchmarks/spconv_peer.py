"""The published classifier's layers on spconv and torch: the benchmark's opponent.

    pip install -e '.[peers]'
    python -m experiments.benchmarks.spconv_peer FIXTURE.npz

compares it with a fixture of the published code and prints one JSON line of relative
errors: below 1e-6, and 1e-5 for gradients. It does so on one thread: spconv 2.3.8 adds
rows from several threads at once on a CPU and loses some of them, so with two threads
its times are good and its values are not.

The modules nest as the published parameter names do (`enc.0.blocks.0.block.1.weight`),
so a published state loads without a table. Index pairs are built inside the forward
pass and shared within a level, as in the published network.
"""

# pyright: reportMissingImports=false

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import spconv.pytorch as spconv
import torch
from jaxtyping import Float, Int
from spconv.core import ConvAlgo
from spconv.pytorch import ops
from torch import nn

from e3dsnn_jax.training.devices import num_cores

# The published code leaves this room around the batch's extent.
_MARGIN = 96

if not torch.cuda.is_available():
    # The backward pass asks for the CUDA stream even where it then runs on the CPU and
    # never uses it; torch without CUDA raises at that question.
    ops.get_current_stream = lambda: 0


def on_threads(run: Callable[[], object]) -> dict[str, Callable[[], object]]:
    """The same on one thread of torch and on all, by the name of the contender.

    Its threads wait by spinning, so that on a busy machine one is the faster.
    """

    def on(threads: int) -> Callable[[], object]:
        def timed() -> object:
            torch.set_num_threads(threads)
            return run()

        return timed

    counts = sorted({1, num_cores()})
    return {f"spconv_{threads}_threads": on(threads) for threads in counts}


class _SpikeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, membrane):
        ctx.save_for_backward((membrane > 0) & (membrane < 4))
        return membrane.clamp(0, 4).add_(0.5).floor_()

    @staticmethod
    def backward(ctx, *grad_outputs):
        (inside,) = ctx.saved_tensors
        (gradient,) = grad_outputs
        return gradient * inside


class Spike(nn.Module):
    """Integer spikes 0 to 4, rounded half up, with a rectangular surrogate."""

    def forward(self, membrane):
        """Returns the spikes of the membrane potentials."""
        return _SpikeFunction.apply(membrane)


def _norm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


def _submanifold(c_in: int, c_out: int, level: str) -> spconv.SubMConv3d:
    return spconv.SubMConv3d(
        c_in, c_out, 3, bias=False, indice_key=level, algo=ConvAlgo.Native
    )


class Block(spconv.SparseModule):
    """A convolution and then two, each pair added to the membranes it started from."""

    def __init__(self, channels: int, level: str):
        super().__init__()
        self.block = spconv.SparseSequential(
            Spike(), _submanifold(channels, channels, level), _norm(channels)
        )
        self.voxel_block = spconv.SparseSequential(
            Spike(),
            _submanifold(channels, channels, level),
            _norm(channels),
            Spike(),
            _submanifold(channels, channels, level),
            _norm(channels),
        )

    def forward(self, x):
        """Returns the membranes after both shortcuts."""
        x = x.replace_feature(x.features + self.block(x).features)
        return x.replace_feature(x.features + self.voxel_block(x).features)


class Stage(nn.Module):
    """Down by two, then the blocks of one level."""

    def __init__(self, c_in: int, c_out: int, depth: int, index: int):
        super().__init__()
        self.down = spconv.SparseSequential(
            Spike(),
            spconv.SparseConv3d(
                c_in,
                c_out,
                2,
                stride=2,
                bias=False,
                indice_key=f"spconv{index}",
                algo=ConvAlgo.Native,
            ),
            _norm(c_out),
        )
        self.blocks = spconv.SparseSequential(
            *(Block(c_out, f"subm{index + 1}") for _ in range(depth))
        )

    def forward(self, x):
        """Returns the membranes of the next coarser level."""
        return self.blocks(self.down(x))


class Classifier(nn.Module):
    """E-3DSNN's classifier; T is (16, 32, 64, 128) channels, one block a stage."""

    def __init__(
        self,
        *,
        in_channels: int = 6,
        embed_channels: int = 16,
        stage_channels: tuple[int, ...] = (16, 32, 64, 128),
        stage_depths: tuple[int, ...] = (1, 1, 1, 1),
        num_classes: int = 40,
    ):
        super().__init__()
        self.stem = spconv.SparseSequential(
            _submanifold(in_channels, embed_channels, "stem"),
            _norm(embed_channels),
            Spike(),
            _submanifold(embed_channels, embed_channels, "stem"),
            _norm(embed_channels),
            Spike(),
            _submanifold(embed_channels, embed_channels, "stem"),
            _norm(embed_channels),
        )
        widths = (embed_channels, *stage_channels)
        self.enc = nn.ModuleList(
            Stage(widths[i], widths[i + 1], depth, i)
            for i, depth in enumerate(stage_depths)
        )
        self.final = spconv.SubMConv3d(widths[-1], num_classes, 1, bias=True)
        for module in self.modules():
            if isinstance(module, spconv.SubMConv3d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features, coords, num_clouds: int):
        """Logits of every cloud.

        Args:
          features: [voxels, in_channels], float32.
          coords: [voxels, 4] of (batch, x, y, z), int32.
          num_clouds: How many clouds the batch index counts.

        Returns:
          [clouds, classes]: the mean over each cloud's voxels on the coarsest level.
        """
        extent = (coords[:, 1:].amax(0) + _MARGIN).tolist()
        x = spconv.SparseConvTensor(features, coords, extent, num_clouds)
        x = self.stem(x)
        for stage in self.enc:
            x = stage(x)
        x = self.final(x)
        cloud = x.indices[:, 0].long()
        total = torch.zeros(num_clouds, x.features.shape[1]).index_add_(
            0, cloud, x.features
        )
        return total / torch.bincount(cloud, minlength=num_clouds)[:, None]


class Convolution:
    """One submanifold layer, its index pairs built once and kept.

    Args:
      coords: Voxels of one cloud.
      features: Inputs.
      weights: One matrix an offset, in row-major order of the offsets.
      cotangent: Of the outputs.
    """

    def __init__(
        self,
        coords: Int[np.ndarray, "voxels 4"],
        features: Float[np.ndarray, "voxels channels"],
        weights: Float[np.ndarray, "offsets c_in c_out"],
        cotangent: Float[np.ndarray, "voxels c_out"],
    ):
        _, c_in, c_out = weights.shape
        self._layer = _submanifold(c_in, c_out, "layer")
        ordered = torch.from_numpy(weights.transpose(2, 0, 1).copy())
        self._layer.weight.data = ordered.reshape(c_out, 3, 3, 3, c_in)
        self._features = torch.from_numpy(features).requires_grad_()
        self._cotangent = torch.from_numpy(cotangent)
        extent = [int(cells) + 1 for cells in coords[:, 1:].max(0)]
        self._inputs = spconv.SparseConvTensor(
            self._features, torch.from_numpy(coords), extent, 1
        )
        with torch.no_grad():  # the pairs stay in the tensor's own table
            self._indices = self._layer(self._inputs).indice_dict

    def _run(self):
        self._inputs.indice_dict = self._indices
        return self._layer(self._inputs).features

    def forward(self) -> Float[np.ndarray, "voxels c_out"]:
        """The outputs, without a derivative."""
        with torch.inference_mode():
            return self._run().numpy()

    def both(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Outputs, gradient by the inputs, gradient by the weights."""
        self._features.grad = self._layer.weight.grad = None
        outputs = self._run()
        outputs.backward(self._cotangent)
        d_inputs: Any = self._features.grad
        d_weight: Any = self._layer.weight.grad
        c_out, *_, c_in = d_weight.shape
        d_weights = d_weight.reshape(c_out, -1, c_in).permute(1, 2, 0)
        return outputs.detach().numpy(), d_inputs.numpy(), d_weights.numpy()


class Trainer:
    """The published recipe around the peer: what the benchmark times.

    Args:
      model: The network; its parameters are changed in place.
      label_smoothing: Share of the target spread over all classes.
    """

    def __init__(self, model: Classifier, *, label_smoothing: float = 0.2):
        self.model = model
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True
        )

    def index_pairs(
        self, coords: Int[np.ndarray, "voxels 4"], *, num_clouds: int
    ) -> list[int]:
        """Builds the pairs of every level, as a forward pass does on its way.

        Returns:
          The number of voxels of each level.
        """
        found = torch.from_numpy(coords)
        extent = (found[:, 1:].amax(0) + _MARGIN).tolist()
        rows = [len(found)]
        zero, one, two, three = ([n] * 3 for n in (0, 1, 2, 3))
        where = (num_clouds, extent, ConvAlgo.Native)
        ops.get_indice_pairs(found, *where, three, one, one, one, zero, subm=True)
        for _ in self.model.enc:
            found, *_ = ops.get_indice_pairs(found, *where, two, two, zero, one, zero)
            extent = [cells // 2 for cells in extent]
            where = (num_clouds, extent, ConvAlgo.Native)
            ops.get_indice_pairs(found, *where, three, one, one, one, zero, subm=True)
            rows.append(len(found))
        return rows

    def forward(
        self,
        features: Float[np.ndarray, "voxels channels"],
        coords: Int[np.ndarray, "voxels 4"],
        *,
        num_clouds: int,
    ) -> Float[np.ndarray, "clouds classes"]:
        """Logits in inference mode, index pairs built on the way."""
        self.model.eval()
        with torch.inference_mode():
            logits = self.model(
                torch.from_numpy(features), torch.from_numpy(coords), num_clouds
            )
        return logits.numpy()

    def train_step(
        self,
        features: Float[np.ndarray, "voxels channels"],
        coords: Int[np.ndarray, "voxels 4"],
        labels: Int[np.ndarray, " clouds"],
    ) -> float:
        """One step of SGD; returns the loss before it."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(
            torch.from_numpy(features), torch.from_numpy(coords), len(labels)
        )
        loss = self.loss(logits, torch.from_numpy(labels).long())
        loss.backward()
        self.optimizer.step()
        return loss.item()


def fixture_errors(path: Path, *, threads: int = 1) -> dict[str, float]:
    """Relative errors, max|ours - theirs| / max|theirs|, on a classifier fixture.

    Args:
      path: An npz with `state/*`, `input/*`, `eval/out`, `train/out`, `cotangent`,
        `grad/*` and `after_train/*` as the published code computed them.
      threads: Of torch and spconv from now on; above 1 the errors are large.

    Returns:
      The worst error of each kind of quantity.
    """
    torch.set_num_threads(threads)
    with np.load(path) as archive:
        fixture = {name: archive[name] for name in archive.files}
    state = {
        name.removeprefix("state/"): torch.from_numpy(value)
        for name, value in fixture.items()
        if name.startswith("state/")
    }
    stages = sum(name.endswith("down.1.weight") for name in state)
    model = Classifier(
        in_channels=state["stem.0.weight"].shape[-1],
        embed_channels=state["stem.0.weight"].shape[0],
        stage_channels=tuple(
            state[f"enc.{i}.down.1.weight"].shape[0] for i in range(stages)
        ),
        stage_depths=tuple(
            sum(
                name.startswith(f"enc.{i}.") and name.endswith(".block.1.weight")
                for name in state
            )
            for i in range(stages)
        ),
        num_classes=state["final.weight"].shape[0],
    )
    model.load_state_dict(state)

    offset = fixture["input/offset"]
    cloud = np.repeat(np.arange(len(offset)), np.diff(offset, prepend=0))
    coords = torch.from_numpy(
        np.column_stack([cloud, fixture["input/grid_coord"]]).astype(np.int32)
    )
    features = torch.from_numpy(fixture["input/feat"])

    def error(ours: torch.Tensor, name: str) -> float:
        theirs = fixture[name]
        worst = np.abs(ours.detach().numpy() - theirs).max()
        return float(worst / np.abs(theirs).max())

    model.eval()
    errors = {"eval_out": error(model(features, coords, len(offset)), "eval/out")}
    model.train()
    out = model(features, coords, len(offset))
    errors["train_out"] = error(out, "train/out")
    (out * torch.from_numpy(fixture["cotangent"])).sum().backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    errors["gradients"] = max(error(g, f"grad/{name}") for name, g in gradients.items())
    errors["running_statistics"] = max(
        error(buffer, f"after_train/{name}")
        for name, buffer in model.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    )
    return errors


def main() -> None:
    """Compares the peer with each fixture named on the command line."""
    for path in sys.argv[1:]:
        print(json.dumps({"fixture": path, **fixture_errors(Path(path))}))


if __name__ == "__main__":
    main()
