"""nnU-Net imports every file of the folders in ``nnUNet_extTrainer`` and takes the trainer it seeks from any of them.

The imported names are the real classes (the same objects, picklable), because they are defined elsewhere.
"""

from nndiffseg.trainers import *  # noqa: F403
