"""``python -m nndiffseg.ext_path`` prints the folder that stock nnU-Net needs in ``nnUNet_extTrainer``.

With ``export nnUNet_extTrainer="$(python -m nndiffseg.ext_path)"`` the commands ``nnUNetv2_train``,
``nnUNetv2_predict`` and their siblings find nndiffseg's trainers by name.
"""

from __future__ import annotations

from pathlib import Path


def ext_path() -> Path:
    """The folder with the one file that imports nndiffseg's trainers for nnU-Net's search by name."""
    return Path(__file__).resolve().parent / "_nnunet_ext"


if __name__ == "__main__":
    print(ext_path())
