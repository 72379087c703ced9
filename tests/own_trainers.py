"""Trainers of a user: nnU-Net's variants mixed into nndiffseg's trainer, and attributes of one's own.

The tests that use it put this file into a folder that ``nnUNet_extTrainer`` names.
"""

import torch
from nnunetv2.training.nnUNetTrainer.variants.benchmarking.nnUNetTrainerBenchmark_5epochs import nnUNetTrainerBenchmark_5epochs
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainer_noDummy2DDA import nnUNetTrainer_noDummy2DDA
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDAOrd0 import nnUNetTrainer_DASegOrd0
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainer_onlyMirror01,
    nnUNetTrainerNoMirroring,
)
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerTopkLoss import nnUNetTrainerTopk10Loss
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainerCosAnneal import nnUNetTrainerCosAnneal
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam3en4
from nnunetv2.training.nnUNetTrainer.variants.sampling.nnUNetTrainer_probabilisticOversampling import (
    nnUNetTrainer_probabilisticOversampling_033,
)

from nndiffseg.trainers import nnDiffSegTrainer


class OwnNoMirroring(nnUNetTrainerNoMirroring, nnDiffSegTrainer):
    pass


class OwnOnlyMirror01(nnUNetTrainer_onlyMirror01, nnDiffSegTrainer):
    pass


class OwnNoDA(nnUNetTrainerNoDA, nnDiffSegTrainer):
    pass


class OwnDA5(nnUNetTrainerDA5, nnDiffSegTrainer):
    pass


class OwnDASegOrd0(nnUNetTrainer_DASegOrd0, nnDiffSegTrainer):
    pass


class OwnNoDummy2DDA(nnUNetTrainer_noDummy2DDA, nnDiffSegTrainer):
    pass


class OwnDice(nnUNetTrainerDiceLoss, nnDiffSegTrainer):
    pass


class OwnCE(nnUNetTrainerCELoss, nnDiffSegTrainer):
    pass


class OwnTopk(nnUNetTrainerTopk10Loss, nnDiffSegTrainer):
    pass


class OwnAdam(nnUNetTrainerAdam3en4, nnDiffSegTrainer):
    pass


class OwnCosAnneal(nnUNetTrainerCosAnneal, nnDiffSegTrainer):
    pass


class OwnOversampling(nnUNetTrainer_probabilisticOversampling_033, nnDiffSegTrainer):
    pass


class OwnNoDeepSupervision(nnUNetTrainerNoDeepSupervision, nnDiffSegTrainer):
    pass


class OwnBenchmark(nnUNetTrainerBenchmark_5epochs, nnDiffSegTrainer):
    pass


class OwnNumbers(nnDiffSegTrainer):
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this exact signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 2
        self.num_iterations_per_epoch = 3
        self.num_val_iterations_per_epoch = 5
        self.oversample_foreground_percent = 1.0
        self.initial_lr = 3e-4
        self.weight_decay = 0.02
        self.save_every = 1
        self.seed = 11
