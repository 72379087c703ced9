"""The default planner: nnU-Net's residual-encoder plan plus a ``diffusion`` section for every configuration."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
)
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nndiffseg.data.check import reader_of, training_cases
from nndiffseg.data.dataset_json import channel_names, structures_of
from nndiffseg.data.files import write_json
from nndiffseg.errors import UserError
from nndiffseg.methods import METHODS
from nndiffseg.planning import cascade
from nndiffseg.planning.cost import Architecture
from nndiffseg.planning.decisions import Size, expected_overhead
from nndiffseg.planning.labels import Label, load_labels
from nndiffseg.planning.memory import add_entries
from nndiffseg.planning.plans_file import check_plans_name, custom_configurations, keep_data_apart
from nndiffseg.planning.section import WIDTH, Section, decide

#: the trainer that patch and batch of the plans are made for
FLAGSHIP = "nnDiffSegTrainer"


class DiffSegPlanner(ResEncUNetPlanner):
    """Size M: the image network of nnU-Net's ResEnc planner at 8 GB, the memory of all networks counted.

    The plans keep nnU-Net's own names for preprocessor, resampling, reader, label manager and network, so stock
    nnU-Net trains on them too. Each configuration gets a section ``diffusion`` (docs/reference/plans.md).

    Attributes:
        size: what distinguishes this planner from the other sizes.
        latent: ``paper`` lets the trainer of LDSeg use the latent that LDSeg was published with; ``planned`` does not.
        report: after :meth:`plan_experiment`, the decisions as a text table.
    """

    size = Size("nnDiffSegPlans", memory_gb=8, widths=((16, 48), (16, 64), (24, 64), (24, 96)))
    latent = "planned"
    UNet_vram_target_GB: float

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ):
        """Arguments of nnU-Net's planners; memory and name are the size's where none are given."""
        plans_name = plans_name if plans_name is not None else self.size.plans_name
        check_plans_name(plans_name)
        super().__init__(
            dataset_name_or_id,
            self.size.memory_gb if gpu_memory_target_in_gb is None else gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )
        names = channel_names(self.dataset_json)  # nnU-Net chooses normalisations in the order in which they stand
        self.dataset_json["channel_names"] = {str(i): name for i, name in enumerate(names)}
        self.cases = training_cases(Path(self.raw_dataset_folder), self.dataset_json)
        self.dataset = {c.name: {"images": list(c.images), "label": c.label} for c in self.cases}  # without hidden files
        self._reader: type[BaseReaderWriter] | None = None
        size = self.size
        self.UNet_reference_val_corresp_GB = size.reference_gb
        self.UNet_reference_val_2d, self.UNet_reference_val_3d = size.reference_elements
        self.UNet_base_num_features = size.base_features
        self.UNet_max_features_2d, self.UNet_max_features_3d = size.max_features
        self.UNet_blocks_per_stage_encoder, self.UNet_blocks_per_stage_decoder = size.encoder_blocks, size.decoder_blocks
        self.preprocessed_folder = Path(nnUNet_preprocessed.require()) / self.dataset_name
        labels = LabelManager(self.dataset_json["labels"], self.dataset_json.get("regions_class_order"))
        self.heads, self.regions = int(labels.num_segmentation_heads), bool(labels.has_regions)
        self.ignore: int | None = labels.ignore_label
        self.channels, self.structures = len(names), structures_of(self.dataset_json)
        self.foreground_labels = len(labels.foreground_labels)  # channels of a segmentation as the input of a next stage
        self.report = ""
        self._architectures: dict[str, Architecture] = {}

    def plan_experiment(self) -> dict[str, Any]:
        """Plans, and writes the plans file in one piece.

        Raises:
            UserError: a plans file of this name exists that nndiffseg did not make, or that names what no planner writes.
        """
        plans_file = self.preprocessed_folder / f"{self.plans_identifier}.json"
        custom = custom_configurations(plans_file)
        # nnU-Net copies dataset.json with its permissions, so a second run would fail on a read-only original.
        if (copy := self.preprocessed_folder / "dataset.json").is_file():
            copy.chmod(copy.stat().st_mode | 0o200)
        plans = super().plan_experiment()
        labels, sections = self._load_labels(plans["transpose_forward"]), {}
        notes = []
        for name, plan in sorted((n, c) for n, c in plans["configurations"].items() if n != cascade.NAME):
            sections[name], note = self._add_diffusion(name, plan, labels)
            notes.append(note)
        if cascade.NAME in plans["configurations"]:
            notes.append(self._add_cascade(plans, sections))
        recursive_fix_for_json_export(plans)
        notes += self._fit_methods(plans)
        keep_data_apart(plans, self.preprocessed_folder)
        plans["configurations"].update(custom)
        write_json(plans, plans_file, strict=False)
        self.report = "\n".join(notes)
        return plans

    def determine_reader_writer(self) -> type[BaseReaderWriter]:
        """nnU-Net's choice, without the tracebacks that it prints while it searches."""
        if self._reader is None:
            self._reader = reader_of(self.cases, self.dataset_json)
        return self._reader

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """nnU-Net's order of the axes, the slice axis first: where most images are single slices, that of one voxel.

        Raises:
            UserError: most images are single slices, but not all along the same axis.
        """
        shapes = np.array(self.dataset_fingerprint["shapes_after_crop"])
        flat = np.median(shapes, 0) == 1
        if self.suppress_transpose or not flat.any():
            if not flat.any() and ((shapes == 1).any(1)).mean() > 0.5:
                raise UserError(
                    f"Most images of {self.dataset_name} are single slices, but along different axes; save them all with the "
                    "slices along the same axis, or train on each kind alone."
                )
            return super().determine_transpose()
        spacing = self.determine_fullres_target_spacing()
        first = max(np.flatnonzero(flat), key=lambda axis: spacing[axis])
        forward = [int(first), *(i for i in range(3) if i != first)]
        return forward, [forward.index(i) for i in range(3)]

    @staticmethod
    def static_estimate_VRAM_usage(
        patch_size: tuple[int, ...],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict,
        arch_kwargs_req_import: tuple[str, ...],
    ) -> int:
        """nnU-Net's number of features of all convolutions, from a network without weights.

        nnU-Net makes the weights, with as many threads as ``nnUNet_n_proc_DA`` says; 0 of them is an error of torch.
        """
        with torch.device("meta"):
            network = get_network_from_plans(
                arch_class_name, arch_kwargs, arch_kwargs_req_import, input_channels, output_channels, allow_init=False
            )
        return network.compute_conv_feature_map_size(patch_size)

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Writes nothing: nnU-Net calls this before :meth:`plan_experiment` has completed the plans."""

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Shares nnU-Net's preprocessed data unless this plan preprocesses differently."""
        if self.overwrite_target_spacing is not None or self.preprocessor_name != "DefaultPreprocessor":
            return f"{self.plans_identifier}_{configuration_name}"
        return super().generate_data_identifier(configuration_name)

    def get_plans_for_configuration(self, spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache):
        """nnU-Net's plan for the memory that the light networks leave."""
        target = float(self.UNet_vram_target_GB)
        arguments = (spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache)
        try:  # nnU-Net reads the target from this attribute
            plan = super().get_plans_for_configuration(*arguments)
            self.UNet_vram_target_GB = target / (1 + expected_overhead(self._architecture(plan), self.size))
            plan = super().get_plans_for_configuration(*arguments)
        finally:
            self.UNet_vram_target_GB = target
        plan["batch_size"] = min(plan["batch_size"], self.size.batch_cap.get(len(spacing), plan["batch_size"]))
        return plan

    def _architecture(self, plan: dict[str, Any]) -> Architecture:
        """Of a configuration; the same one again for equal plans, since its costs are counted once."""
        key = f"{plan['architecture']} {list(plan['patch_size'])}"
        return self._architectures.setdefault(key, Architecture.of(plan, self.channels, self.heads))

    def _image_network_gb(self, arch: Architecture, batch_size: int) -> float:
        """nnU-Net's own scale: a feature map of reference size needs the reference's memory at the reference's batch."""
        two = len(arch.patch) == 2
        elements = self.UNet_reference_val_2d if two else self.UNet_reference_val_3d
        batch = self.UNet_reference_val_corresp_bs_2d if two else self.UNet_reference_val_corresp_bs_3d
        return self.UNet_reference_val_corresp_GB * arch.image.elements / elements * batch_size / batch

    def _load_labels(self, transpose_forward: list[int]) -> list[Label]:
        reader = self.determine_reader_writer()()
        files = [str(c["label"]) for c in self.dataset.values()]
        labels = load_labels(files, reader, transpose_forward, ignore=self.ignore)
        if not labels:
            raise UserError(f"No training label of {self.dataset_name} holds any structure; check labelsTr.")
        return labels

    def _add_diffusion(self, name: str, plan: dict[str, Any], labels: list[Label]) -> tuple[Section, str]:
        arch = self._architecture(plan)
        gb = self._image_network_gb(arch, plan["batch_size"])
        section = decide(arch, plan["spacing"], labels, self.structures, self.size)
        plan["diffusion"] = section.to_plan(self.regions, gb, self.latent)
        unit = "pixels" if issubclass(self.determine_reader_writer(), NaturalImage2DIO) else "mm"
        return section, section.report(name, plan["batch_size"], unit, gb, self.latent)

    def _add_cascade(self, plans: dict[str, Any], sections: Mapping[str, Section]) -> str:
        parent = sections[plans["configurations"][cascade.NAME]["inherits_from"]]
        target = float(self.UNet_vram_target_GB)
        planned = cascade.plan_cascade(plans, parent, self.channels, self.foreground_labels, target, self._image_network_gb)
        diffusion = planned.section.to_plan(self.regions, planned.image_network_gb, self.latent)
        plans["configurations"][cascade.NAME] = {**planned.configuration, "diffusion": diffusion}
        return planned.note

    def _input_channels(self, name: str) -> int:
        return self.channels + (self.foreground_labels if name == cascade.NAME else 0)

    def _fit_methods(self, plans: dict[str, Any]) -> list[str]:
        """Gives each other method a patch and batch with which it fits the target, where memory is scarce."""
        methods = {trainer: method for trainer, method in METHODS.items() if trainer != FLAGSHIP}
        target = float(self.UNet_vram_target_GB)
        return [
            textwrap.fill(note, WIDTH, subsequent_indent="    ")
            for name in sorted(plans["configurations"])
            for note in add_entries(methods, plans, name, self._input_channels(name), self.heads, target)
        ]
