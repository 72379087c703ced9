"""Training and prediction of stochastic segmentation networks (:mod:`benchmarks.compare.ssn`) with nnU-Net's patches and tiles.

Written as one of nnU-Net's trainers, so that batches, budget, checkpoints and the cache of predictions are those of every other
model of a comparison.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.compare.ssn import LowRankGaussian, StochasticSegmentationNetwork, drawn_noise, negative_log_likelihood
from nndiffseg.errors import UserError
from nndiffseg.methods.latent.source import load_finished, read_finished
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.tiling import Frame, encode_tiled
from nndiffseg.uncertainty.statistics import CaseParts, label_map

if TYPE_CHECKING:
    from benchmarks.compare.library import Model, Options

TRAINER = "benchmarks.compare.ssn_model:StochasticSegmentation"
#: images whose maps are held at once, where volumes are cut into slices
SLICES = 8


class StochasticSegmentation(nnUNetTrainer):
    """Trains mean, factor and diagonal by Adam; :attr:`source` is the finished nnU-Net's checkpoint, set before the start."""

    source: str | None = None

    def __init__(  # nnU-Net reads its own arguments off this signature
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr, self.enable_deep_supervision = 1e-3, False
        self.heads = Heads(self.label_manager.num_segmentation_heads, self.label_manager.has_regions)
        if self.label_manager.has_ignore_label:
            raise UserError("Stochastic segmentation networks are not made for an ignore label; choose another dataset.")

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> StochasticSegmentationNetwork:
        """nnU-Net's planned network with the convolutions on it."""
        unet = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, False
        )
        return StochasticSegmentationNetwork(unet)

    def initialize(self) -> None:
        """Takes over the finished nnU-Net's weights, all of them, or raises UserError where they do not fit."""
        super().initialize()
        if self.source is not None:
            load_finished(self.network.unet, read_finished(self.source)["network_weights"], self.source)
            self.network.start_at_finished()

    def _do_i_compile(self) -> bool:
        return False

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is none."""

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Adam on what is not frozen."""
        optimizer = torch.optim.Adam([p for p in self.network.parameters() if p.requires_grad], self.initial_lr)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step; patch by patch, since all draws of a patch are alive at once."""
        data, target = (batch[k].to(self.device, non_blocking=True) for k in ("data", "target"))
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            features = self.network.features(data)
        total = 0.0
        for one in range(len(data)):
            item = slice(one, one + 1)
            gaussian = self.network.gaussian(features[item], data[item])
            loss = negative_log_likelihood(gaussian, target[item], self.heads) / len(data)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimizer.step()
        return {"loss": total}

    @staticmethod
    def predict_parts(model: Model, image: NDArray, case: str, options: Options) -> CaseParts:
        """Preprocessed image ``(C, *grid)`` -> softmax of the mean, mean of the samples' softmax, and the samples.

        A sample's common normal numbers belong to the whole volume and its voxels' own to their places, so tiles, slices and
        the order of the samples change nothing. Every sample sees one of the mirrorings: factors of mirrored images need
        not be alike, and their mean would have too little variance.
        """
        return _Prediction(model, image, case, options).run()


class _Prediction:
    """One case; sums over samples."""

    def __init__(self, model: Model, image: NDArray, case: str, options: Options):
        self.model, self.case, self.options = model, case, options
        self.patch = tuple(model.data.plans_manager.get_configuration(model.data.configuration).patch_size)
        data = torch.as_tensor(image).float()
        sliced = data.ndim - 1 > len(self.patch)
        self.images = data.transpose(0, 1) if sliced else data[None]  # (N, C, *grid)
        self.frame = Frame.around(self.images.shape[2:], self.patch, model.network.stride)
        self.manager = model.data.label_manager
        self.heads = Heads(self.manager.num_segmentation_heads, self.manager.has_regions)
        self.spatial = tuple(data.shape[1:])
        self.labels = np.zeros((options.samples, *self.spatial), dtype=np.uint8)
        grid = (len(self.images), self.heads.number, *self.images.shape[2:])
        self.mean, self.sampled = torch.zeros(grid), torch.zeros(grid)

    @torch.inference_mode()
    def run(self) -> CaseParts:
        axes = self.model.mirror_axes if self.options.mirroring else ()
        flips = [f for n in range(len(axes) + 1) for f in combinations(axes, n)][: self.options.samples]
        for number, flip in enumerate(flips):
            for first in range(0, len(self.images), SLICES):
                gaussian = self._gaussian(slice(first, first + SLICES), flip)
                self.mean[first : first + SLICES] += gaussian.mean / len(flips)
                for sample in range(number, self.options.samples, len(flips)):
                    self._draw(sample, first, gaussian)
        parts = [self._volume(p) for p in (self.heads.probabilities(self.mean), self.sampled / self.options.samples)]
        return CaseParts(*parts, self.labels, self.heads.regions)

    def _gaussian(self, which: slice, flip: tuple[int, ...]) -> LowRankGaussian:
        """Of some images, mirrored for the network and back."""
        along = [a + 2 for a in flip]
        image = self.frame.pad(self.images[which]).flip(along)
        network, device = self.model.network, self.model.device
        maps = encode_tiled(network, image, self.patch, 0.5, device, store=torch.device("cpu"), precision="float32")
        inner = tuple(slice(low, low + n) for low, n in zip(self.frame.lower, self.frame.shape, strict=True))
        mean, *factor, deviation = (m.float().flip(along)[(slice(None), slice(None), *inner)] for m in maps)
        rank_shape = (len(mean), self.heads.number, network.rank, *mean.shape[2:])
        return LowRankGaussian(mean, factor[0].reshape(rank_shape) if factor else mean.new_zeros(rank_shape), deviation)

    def _draw(self, sample: int, first: int, gaussian: LowRankGaussian) -> None:
        n, sliced = len(gaussian.mean), len(self.spatial) > len(self.patch)
        shape, origin = (n, *self.spatial[1:]) if sliced else self.spatial, (first, *[0] * (len(self.spatial) - 1))
        common, own = drawn_noise(
            self.options.seed, self.case, sample, self.model.network.rank, self.heads.number, shape, origin
        )
        own = own.transpose(0, 1) if sliced else own[None]  # (n, heads, *grid)
        p = self.heads.probabilities(gaussian.logits(common[None, None], own[:, None])[:, 0])
        self.sampled[first : first + n] += p
        labels = np.stack([label_map(one, self.manager).numpy() for one in p])
        self.labels[sample][slice(first, first + n) if sliced else ...] = labels if sliced else labels[0]

    def _volume(self, images: Tensor) -> Tensor:
        """``(N, heads, *grid)`` -> ``(heads, *spatial)``."""
        return images.transpose(0, 1).reshape(self.heads.number, *self.spatial)
