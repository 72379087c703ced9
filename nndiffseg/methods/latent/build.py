"""Builds the model of one configuration from the plans."""

from __future__ import annotations

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nndiffseg.methods.latent.network import LatentDiffusionSegmenter
from nndiffseg.methods.settings import DiffusionSettings


def build_latent_diffusion(configuration: ConfigurationManager, input_channels: int, heads: int) -> LatentDiffusionSegmenter:
    """The image network is exactly the one that nnU-Net would build from these plans.

    Raises:
        UserError: the configuration holds no diffusion settings.
    """
    settings = DiffusionSettings.from_configuration(configuration.configuration)
    unet = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        input_channels,
        heads,
        allow_init=True,
        deep_supervision=True,
    )
    strides = configuration.network_arch_init_kwargs["strides"][1:]  # the first entry belongs to the stem
    return LatentDiffusionSegmenter(unet, strides, heads, settings)
