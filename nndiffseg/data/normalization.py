"""nnU-Net's preprocessor with normalisations of the user's own."""

from __future__ import annotations

from pathlib import Path

import nnunetv2
import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nndiffseg.data.folders import EXT_TRAINER
from nndiffseg.data.own_classes import NORMALIZATIONS, find_own_class, stands_in_nnunet
from nndiffseg.errors import UserError


class OwnNormalizations(DefaultPreprocessor):
    """nnU-Net's preprocessor, which looks for normalisations in the folders of ``nnUNet_extTrainer``, too."""

    def _normalize(
        self,
        data: np.ndarray,
        seg: np.ndarray,
        configuration_manager: ConfigurationManager,
        foreground_intensity_properties_per_channel: dict,
    ) -> np.ndarray:
        schemes, masks = configuration_manager.normalization_schemes, configuration_manager.use_mask_for_norm
        for c in range(len(data)):
            made = normalization(schemes[c])(masks[c], foreground_intensity_properties_per_channel[str(c)])
            data[c] = made.run(data[c], seg[0])
        return data


def preprocessor_of(configuration: ConfigurationManager, *, verbose: bool = False) -> DefaultPreprocessor:
    """The preprocessor that checked plans ask for: nnU-Net's own, unless they name a normalisation that it would not find.

    Raises:
        UserError: there is no such normalisation.
    """
    foreign = [name for name in configuration.normalization_schemes if not stands_in_nnunet(name, NORMALIZATIONS)]
    for name in foreign:
        normalization(name)
    return OwnNormalizations(verbose=verbose) if foreign else configuration.preprocessor_class(verbose=verbose)


def normalization(name: str) -> type[ImageNormalization]:
    """A normalisation by name, nnU-Net's or the user's own.

    Raises:
        UserError: there is none.
    """
    package = "nnunetv2.preprocessing.normalization"
    found = recursive_find_python_class(str(Path(nnunetv2.__path__[0]) / NORMALIZATIONS), name, package)
    found = found or find_own_class(name)
    if not (isinstance(found, type) and issubclass(found, ImageNormalization)):
        raise UserError(
            f"The plans normalise with {name}, which is no class derived from nnU-Net's ImageNormalization here; put it into a "
            f"folder that {EXT_TRAINER} names."
        )
    return found
