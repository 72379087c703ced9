"""The default planner: nnU-Net's residual-encoder plan plus a ``diffusion`` section for every configuration."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
)
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.data.dataset_json import channel_names, structures_of
from nndiffseg.data.files import write_json
from nndiffseg.data.plan_names import check_plan_names
from nndiffseg.errors import UserError
from nndiffseg.methods import METHODS
from nndiffseg.methods.ldseg.method import LDSegMethod
from nndiffseg.planning import cost, memory
from nndiffseg.planning.decisions import (
    Architecture,
    Candidate,
    Size,
    candidate,
    choose,
    cross,
    curve_table,
    latent_stages,
    paper_latent_reason,
)
from nndiffseg.planning.labels import Label, load_labels, resample_label
from nndiffseg.planning.rate_distortion import rate_distortion
from nndiffseg.planning.thickness import thickness

#: the trainer that patch and batch of the plans are made for
FLAGSHIP = "nnDiffSegTrainer"
#: no trainer needs so many times the memory of the image network; where even that much fits, none is asked
MEMORY_BOUND = 6.0
STANDARD = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
#: what the preprocessed data of a configuration depends on
PREPROCESSING_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_seg",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs",
)
PREPROCESSING_KEYS_OF_PLANS = (
    "transpose_forward",
    "image_reader_writer",
    "foreground_intensity_properties_per_channel",
)


def check_plans_name(name: str) -> None:
    """Checks a name for plans.

    Raises:
        UserError: it is not a file name, would break the names of result folders, or is one of nnU-Net's.
    """
    if not re.fullmatch(r"[\w.-]+", name) or "__" in name or name.startswith("."):
        raise UserError(f"{name} cannot name plans; use letters, digits, dots, dashes and single underscores.")
    if name.startswith("nnUNet"):
        raise UserError(f"The plans name {name} belongs to nnU-Net; choose another -overwrite_plans_name.")


class DiffSegPlanner(ResEncUNetPlanner):
    """Size M: the image network of nnU-Net's ResEnc planner at 8 GB, the memory of all networks counted.

    The plans keep nnU-Net's own names for preprocessor, resampling, reader, label manager and network, so stock
    nnU-Net trains on them too. Each configuration gets ``diffusion``: ``settings``
    (:class:`nndiffseg.methods.settings.DiffusionSettings`), ``rate_distortion`` (the whole curve), ``reason``, ``cost``,
    ``thickness`` and, where memory is scarce, ``trainers``: patch and batch of the other methods.

    Attributes:
        latent: ``paper`` lets the trainer of LDSeg use the latent that LDSeg was published with; ``planned`` does not.
        report: after :meth:`plan_experiment`, the decisions as a text table.
    """

    latent = "planned"

    UNet_vram_target_GB: float
    size = Size(widths=((16, 48), (16, 64), (24, 64), (24, 96)), budget=1.0)
    batch_size_cap: dict[int, int] = {}  # noqa: RUF012  # dimension of the configuration -> largest batch

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnDiffSegPlans",
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ):
        check_plans_name(plans_name)
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )
        self.preprocessed_folder = Path(nnUNet_preprocessed.require()) / self.dataset_name
        labels = LabelManager(self.dataset_json["labels"], self.dataset_json.get("regions_class_order"))
        if labels.has_ignore_label:
            raise UserError(
                f"{self.dataset_name} has an ignore label, which nndiffseg does not support yet; remove it from "
                "dataset.json and from the labels."
            )
        self.heads, self.regions = int(labels.num_segmentation_heads), bool(labels.has_regions)
        self.structures = structures_of(self.dataset_json)
        self.report = ""

    # ---- patch and batch size, the memory of all networks counted -------------------------------------------------

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Shares nnU-Net's preprocessed data unless this plan preprocesses differently."""
        if self.overwrite_target_spacing is not None or self.preprocessor_name != "DefaultPreprocessor":
            return f"{self.plans_identifier}_{configuration_name}"
        return super().generate_data_identifier(configuration_name)

    def get_plans_for_configuration(self, spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache):
        """nnU-Net's plan for the memory that the light networks leave."""
        target = float(self.UNet_vram_target_GB)
        arguments = (spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache)
        try:
            plan = super().get_plans_for_configuration(*arguments)
            self.UNet_vram_target_GB = target / (1 + self._overhead(plan))
            plan = super().get_plans_for_configuration(*arguments)
        finally:
            self.UNet_vram_target_GB = target
        plan["batch_size"] = min(plan["batch_size"], self.batch_size_cap.get(len(spacing), plan["batch_size"]))
        return plan

    def _architecture(self, plan: dict[str, Any]) -> Architecture:
        patch = tuple(int(n) for n in plan["patch_size"])
        return Architecture(plan["architecture"]["arch_kwargs"], len(channel_names(self.dataset_json)), self.heads, patch)

    def _overhead(self, plan: dict[str, Any]) -> float:
        """Memory of the light networks in training relative to the image network's, for a latent of medium depth."""
        arch = self._architecture(plan)
        stage = min(2, latent_stages(len(arch.grids))[-1])
        return self._memory_ratio(arch, candidate(arch, stage, self.size))

    @staticmethod
    def _memory_ratio(arch: Architecture, light: Candidate) -> float:
        own = cost.image_network(arch.arch_kwargs, arch.input_channels, arch.heads, arch.patch).elements
        return cost.training_overhead(light.settings, arch.arch_kwargs, arch.heads, arch.patch) / own

    def plan_experiment(self) -> dict[str, Any]:
        """Plans and writes the plans file; see the class for what it holds."""
        # nnU-Net copies dataset.json with its permissions, so a second run would fail on a read-only original.
        copy = self.preprocessed_folder / "dataset.json"
        if copy.is_file():
            copy.chmod(copy.stat().st_mode | 0o200)
        return super().plan_experiment()

    # ---- the diffusion section ------------------------------------------------------------------------------------

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Adds the diffusion sections, drops the cascade and writes the plans in one piece.

        nnU-Net calls this once, at the end of ``plan_experiment``.

        Raises:
            UserError: a plans file of this name exists that nndiffseg did not make, or that names what no planner writes.
        """
        plans_file = self.preprocessed_folder / f"{self.plans_identifier}.json"
        custom = self._custom_configurations(plans_file)
        configurations = plans["configurations"]
        notes = []
        if configurations.pop("3d_cascade_fullres", None) is not None:
            configurations["3d_lowres"].pop("next_stage", None)
            notes.append("No 3d_cascade_fullres: nndiffseg has no cascade; 3d_lowres and 3d_fullres stand alone.")
        labels = self._load_labels(plans["transpose_forward"])
        for name in sorted(configurations):
            text = self._add_diffusion(name, configurations[name], labels)
            notes.append(text)
        recursive_fix_for_json_export(plans)
        notes.extend(text for name in sorted(configurations) for text in self._fit_trainers(name, plans))
        self._keep_data_apart(plans)
        configurations.update({k: v for k, v in custom.items() if k not in STANDARD})
        write_json(plans, plans_file, strict=False)
        self.report = "\n".join(notes)

    def _custom_configurations(self, plans_file: Path) -> dict[str, Any]:
        if not plans_file.is_file():
            return {}
        plans = json.loads(plans_file.read_text())
        check_plan_names(plans, str(plans_file))
        old = plans["configurations"]
        if not any("diffusion" in c for c in old.values()):
            raise UserError(f"{plans_file} was not made by nndiffseg; choose another -overwrite_plans_name.")
        return old

    def _load_labels(self, transpose_forward: list[int]) -> list[Label]:
        reader = self.determine_reader_writer()()
        labels = load_labels([str(c["label"]) for c in self.dataset.values()], reader, transpose_forward)
        if not labels:
            raise UserError(f"No training label of {self.dataset_name} holds any structure; check labelsTr.")
        return labels

    def _add_diffusion(self, name: str, plan: dict[str, Any], labels: list[Label]) -> str:
        arch = self._architecture(plan)
        spacing = [float(s) for s in plan["spacing"]]
        arrays = [resample_label(label, spacing) for label in labels]
        candidates = {s: candidate(arch, s, self.size) for s in latent_stages(len(arch.grids))}
        curve = [
            p
            for s in range(1, min(len(arch.grids), latent_stages(len(arch.grids))[-1] + 2))
            for p in rate_distortion(arrays, arch.strides(s), self.structures)
        ]
        settings, reason = choose(arch, candidates, curve, self.size)
        widths = thickness(arrays, spacing, self.structures)
        plan["diffusion"] = {
            "settings": settings.to_plan(),
            "regions": self.regions,
            "rate_distortion": [asdict(p) for p in curve],
            "reason": reason,
            "cost": self._cost(arch, settings, plan["batch_size"]),
            "thickness": {k: asdict(v) for k, v in widths.items()},
        }
        reasons = [reason]
        if self.latent == "paper":
            plan["diffusion"]["options"] = {LDSegMethod.name: {"latent": self.latent}}
            reasons.append(paper_latent_reason(arch, curve))
        gb = plan["diffusion"]["cost"]["training_memory_gb"]
        unit = "pixels" if issubclass(self.determine_reader_writer(), NaturalImage2DIO) else "mm"
        return "\n".join(
            [
                f"{name}: patch {cross(arch.patch)}, batch size {plan['batch_size']}, spacing {cross(spacing)} {unit}, "
                f"about {gb['all_networks']:.1f} GB to train ({gb['image_network']:.1f} GB of it the image network)",
                *(f"    {k}: {v.median_mm:.3g} {unit} thick (5th percentile {v.p5_mm:.3g})" for k, v in widths.items()),
                curve_table(candidates, curve, settings),
                *(textwrap.fill(r, 116, initial_indent="    ", subsequent_indent="    ") for r in reasons),
            ]
        )

    def _cost(self, arch: Architecture, settings: Any, batch_size: int) -> dict[str, Any]:
        image = cost.image_network(arch.arch_kwargs, arch.input_channels, arch.heads, arch.patch)
        step = cost.denoiser(settings, arch.grids[settings.latent_stage])
        decode = cost.label_decoder(settings, arch.heads, arch.grids)
        # nnU-Net's own scale: a feature map of reference_val elements needs reference_GB at the reference batch size.
        two = len(arch.patch) == 2
        reference = self.UNet_reference_val_2d if two else self.UNet_reference_val_3d
        batch = self.UNet_reference_val_corresp_bs_2d if two else self.UNet_reference_val_corresp_bs_3d
        gb = self.UNet_reference_val_corresp_GB * image.elements / reference * batch_size / batch
        extra = self._memory_ratio(arch, Candidate(settings, 0.0, True))
        return {
            "image_network_gflop": image.flops / 1e9,
            "denoiser_step_gflop": step.flops / 1e9,
            "label_decoder_gflop": decode.flops / 1e9,
            "samples": settings.samples,
            "samples_to_image_ratio": arch.ratio(settings),
            "budget": self.size.budget,
            "training_memory_gb": {"image_network": gb, "all_networks": gb * (1 + extra)},
        }

    def _fit_trainers(self, name: str, plans: dict[str, Any]) -> list[str]:
        """Asks each method's trainer for its memory, and gives it a patch and batch with which it fits the target."""
        plan, target = plans["configurations"][name], float(self.UNet_vram_target_GB)
        image_gb = plan["diffusion"]["cost"]["training_memory_gb"]["image_network"]
        if MEMORY_BOUND * image_gb <= target:
            return []
        methods = {trainer: method for trainer, method in METHODS.items() if trainer != FLAGSHIP}
        entries = memory.plan_entries(
            methods, PlansManager(plans), name, len(channel_names(self.dataset_json)), self.heads, image_gb, target
        )
        plan["diffusion"][memory.KEY] = entries
        return [
            textwrap.fill(f"{name}, {trainer}: {memory.sentence(entry)}", 116, subsequent_indent="    ")
            for trainer, entry in entries.items()
            if entry["planned"]["training_memory_gb"] > target
        ]

    def _keep_data_apart(self, plans: dict[str, Any]) -> None:
        """Gives a configuration its own data folder where other plans preprocess into the shared one differently."""
        for file in self.preprocessed_folder.glob("*.json"):
            if file.stem == self.plans_identifier:
                continue
            other = json.loads(file.read_text())
            if not isinstance(other, dict) or "configurations" not in other:
                continue
            for name, configuration in plans["configurations"].items():
                for theirs in other["configurations"].values():
                    if theirs.get("data_identifier") != configuration["data_identifier"]:
                        continue
                    if _preprocessing(plans, configuration) != _preprocessing(other, theirs):
                        configuration["data_identifier"] = f"{self.plans_identifier}_{name}"


def _preprocessing(plans: dict[str, Any], configuration: dict[str, Any]) -> str:
    relevant = [configuration.get(k) for k in PREPROCESSING_KEYS] + [plans.get(k) for k in PREPROCESSING_KEYS_OF_PLANS]
    return json.dumps(relevant, sort_keys=True)
