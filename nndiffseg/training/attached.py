"""Training on a finished nnU-Net: its network is frozen, and stays the one that the plans record."""

from __future__ import annotations

from typing import Any

from nndiffseg.methods.latent.source import Source, load_finished, read_finished
from nndiffseg.training.average import WeightAverage
from nndiffseg.training.trainer import DiffusionTrainer


class AttachedTrainer(DiffusionTrainer):
    """Base of trainers whose image network is a finished nnU-Net (:class:`~nndiffseg.methods.latent.source.Source`)."""

    @property
    def source(self) -> Source:
        """What the plans say about the nnU-Net."""
        return Source.from_configuration(self.configuration_manager.configuration)

    def load_pretrained_weights(self, path: str) -> None:
        """Takes over the nnU-Net's weights, its segmentation layers too.

        Raises:
            UserError: they do not fit exactly, or are not those that the plans record.
        """
        if not self.was_initialized:
            self.initialize()
        load_finished(self.bare_network.image_network.unet, read_finished(path)["network_weights"], path)
        self.method.check_weights(self.bare_network, self.fold)
        self.print_to_log_file(f"The image network is that of {self.source.trainer}, from {path}; it stays as it is.")
        self.average = WeightAverage(self.bare_network)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        assert self.average is not None
        for network in (self.bare_network, self.average.network):
            self.method.check_weights(network, self.fold)

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        self.method.check_weights(self.bare_network, self.fold)  # an nnU-Net of random weights would never learn
        super().on_train_start()

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """nnU-Net's, but for the axes that the finished network was mirrored along."""
        *others, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        axes = self.source.mirror_axes or None
        self.inference_allowed_mirroring_axes = axes
        return *others, axes
