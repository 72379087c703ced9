"""Self-configuring latent-diffusion segmentation built on nnU-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# In a checkout the leaves (planners, trainers, dataset_conversion) lie beside this folder, not in it. A program that
# starts in the checkout's root imports this folder, whatever is installed, and must find them too.
if (_root := Path(__file__).resolve().parents[1]).joinpath("trainers", "nnDiffSegTrainer.py").is_file():
    __path__.append(str(_root))

__version__ = "0.2.0"
__all__ = ["Predictor", "__version__", "predict_files", "predict_folder"]


def __getattr__(name: str) -> Any:
    # ``import nndiffseg`` must stay cheap (command-line help, worker processes), so torch loads on first use.
    if name == "Predictor":
        from nndiffseg.inference.predictor import Predictor

        return Predictor
    if name in ("predict_files", "predict_folder"):
        from nndiffseg.inference import folder

        return getattr(folder, name)
    raise AttributeError(f"module 'nndiffseg' has no attribute {name!r}")
