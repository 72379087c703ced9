"""Self-configuring latent-diffusion segmentation built on nnU-Net."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    # ``import nndiffseg`` must stay cheap (command-line help, worker processes), so torch loads on first use.
    if name == "Predictor":
        from nndiffseg.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'nndiffseg' has no attribute {name!r}")
