"""From the grid of the preprocessed image back to the image: segmentation, maps, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, insert_crop_into_image
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nndiffseg.data.images import is_flat, three_axes
from nndiffseg.export.staple import consensus_of
from nndiffseg.uncertainty.statistics import CaseStatistics

#: Probabilities are kept this far from 0 and 1 before the logarithm.
EPSILON = 1e-7


@dataclass
class CaseGeometry:
    """Undoes nnU-Net's preprocessing of one case: resampling, cropping and transposition.

    Attributes:
        properties: as nnU-Net's preprocessor returns them.
        plans, configuration: managers of the model's plans.
    """

    properties: dict[str, Any]
    plans: PlansManager
    configuration: ConfigurationManager

    def __post_init__(self) -> None:
        self.properties = three_axes(self.properties)  # nnU-Net's preprocessed data keeps the four axes of a 4D image

    @property
    def is_2d(self) -> bool:
        """nnU-Net's readers give 2D images one slice of a huge thickness."""
        thickness = self.plans.transpose_forward.index(0)
        return is_flat([self.properties["shape_before_cropping"][thickness]], self.properties["spacing"])

    def voxel_volume(self, shape: tuple[int, ...] | None = None) -> float:
        """Volume in mm^3 of a voxel of the image, or of the preprocessed grid of this shape.

        The preprocessed grid has a whole number of voxels, so its true spacing differs a little from the planned one.
        A 2D image counts as 1 mm thick.
        """
        spacing = [1.0, *self.properties["spacing"][1:]] if self.is_2d else self.properties["spacing"]
        volume = float(np.prod(spacing))
        if shape is not None:
            volume *= np.prod(self.properties["shape_after_cropping_and_before_resampling"]) / np.prod(shape)
        return volume

    def _spacings(self) -> tuple[list[float], list[float]]:
        """Spacing of the preprocessed grid and of the transposed image (export_prediction.py of nnU-Net)."""
        image = [self.properties["spacing"][i] for i in self.plans.transpose_forward]
        planned = list(self.configuration.spacing)
        return planned if len(planned) == len(image) else [image[0], *planned], image

    def _restore(self, values: np.ndarray) -> np.ndarray:
        """Cropped ``(M, *crop)`` -> image ``(M, *image)``, 0 outside the crop."""
        whole = np.zeros((len(values), *self.properties["shape_before_cropping"]), values.dtype)
        whole = insert_crop_into_image(whole, values, self.properties["bbox_used_for_cropping"])
        return whole.transpose(0, *[i + 1 for i in self.plans.transpose_backward])

    def maps_to_image(self, maps: np.ndarray) -> np.ndarray:
        """Uncertainty maps ``(M, *grid)`` -> ``(M, *image)`` float32 in [0, 1], linearly resampled."""
        shape = self.properties["shape_after_cropping_and_before_resampling"]
        resampled = self.configuration.resampling_fn_probabilities(maps, shape, *self._spacings())
        return self._restore(np.clip(np.asarray(resampled, dtype=np.float32), 0, 1))

    def labels_to_image(self, labels: np.ndarray) -> np.ndarray:
        """One label map ``(*grid)`` -> ``(*image)``, resampled as nnU-Net resamples labels."""
        shape = self.properties["shape_after_cropping_and_before_resampling"]
        resampled = self.configuration.resampling_fn_seg(labels[None], shape, *self._spacings())
        return self._restore(np.asarray(resampled).astype(labels.dtype, copy=False))[0]

    def labels_to_grid(self, labels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """One label map ``(*image)`` -> on the preprocessed grid of this shape, as nnU-Net preprocesses labels."""
        grid, image = self._spacings()
        window = bounding_box_to_slice(self.properties["bbox_used_for_cropping"])
        cropped = labels.transpose(self.plans.transpose_forward)[window]
        resampled = self.configuration.resampling_fn_seg(cropped[None], tuple(shape), image, grid)
        return np.ascontiguousarray(np.asarray(resampled)[0], dtype=labels.dtype)

    def segmentation(
        self, statistics: CaseStatistics, dataset_json: dict[str, Any], *, with_probabilities: bool, fuse: str = "mean"
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """nnU-Net's own export, fed with ``log p`` (regions: ``logit p``): its softmax (sigmoid) gives p back.

        A stock nnU-Net's segmentation comes from its own logits. ``fuse="staple"`` puts the consensus of the samples in the
        place of nnU-Net's labels.

        Returns:
            Labels ``(*image)``, and probabilities ``(heads, *image)`` if asked for.
        """
        manager = self.plans.get_label_manager(dataset_json)
        segmentation, probabilities = None, None
        if statistics.logits is not None:
            segmentation, _ = self._export(statistics.logits, manager, False)
        if segmentation is None or with_probabilities:
            p = statistics.probabilities.clamp(EPSILON, 1 - EPSILON)
            logits = torch.logit(p) if statistics.regions else p.log_()
            made, probabilities = self._export(logits, manager, with_probabilities)
            segmentation = made if segmentation is None else segmentation
        if fuse == "staple":
            segmentation = self.labels_to_image(consensus_of(statistics, manager))
        return segmentation, probabilities

    def probabilities_of(self, logits: torch.Tensor, manager: LabelManager) -> np.ndarray:
        """Probabilities ``(heads, *image)`` float32 of a network's logits ``(heads, *grid)``, by nnU-Net's own export."""
        return np.asarray(self._export(logits, manager, True)[1], dtype=np.float32)

    def _export(self, logits: torch.Tensor, manager: LabelManager, with_probabilities: bool) -> tuple[Any, Any]:
        """Logits ``(heads, *grid)`` -> labels ``(*image)`` and probabilities ``(heads, *image)`` or None, by nnU-Net."""
        result = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits.numpy(),
            self.plans,
            self.configuration,
            manager,
            self.properties,
            return_probabilities=with_probabilities,
            num_threads_torch=torch.get_num_threads(),
        )
        return result if with_probabilities else (result, None)
