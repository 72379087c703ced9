"""cDAL: a few-step denoising-diffusion GAN on label maps (Hejrati et al., MICCAI 2024, arXiv 2502.06997).

Part of the method -> where it is
    label map as one channel per head in [-1, 1], T steps (section 2) -> ``steps``; x0 = 2 onehot - 1
    variance-preserving schedule, beta 0.1 to 20 -> :class:`nndiffseg.diffusion.schedules.Linear`
    generator p(x0 | x_t, image, z), latent embedding z -> :class:`nndiffseg.methods.cdal.generator.CDALGenerator`
    posterior q(x_{t-1} | x_t, x0) (DDPM, arXiv 2006.11239, eq. 6 and 7) -> :mod:`nndiffseg.methods.cdal.pairs` in training,
        :func:`nndiffseg.diffusion.ancestral.sample_ancestral` in prediction
    discriminator D(x_{t-1}, x_t, t), softplus loss, R1 (DDGAN, arXiv 2112.07804)
        -> :mod:`nndiffseg.methods.cdal.discriminator`
    attention from the discriminator's features, training only -> ``Discriminator.attention``, ``loss_terms``

Departures, and why
    - ``adversarial_weight`` is 0. In the released code no adversarial gradient reaches the generator either; the
      discriminator then acts through the attention alone. A positive weight adds DDGAN's non-saturating term. With 0.1
      it does not help in a short training (hippocampus slices, 400 iterations, one seed: Dice of the mean of samples 0.737
      without and 0.729 with it, spread 0.144 and 0.140; ``benchmarks.component_ablation --methods cDAL``).
    - CE + Dice (nnU-Net's loss) on x0 joins the squared error, which alone weighs a structure by its number of voxels.
    - A quarter of the items train the deterministic answer: t = 1 with noise and z zero. Nothing else would ever show
      the generator these inputs, and the fused prediction and nnU-Net's own tools rely on them.
    - ``attention = False`` switches the attention off; the same trial cannot tell the two apart (deterministic 0.743 with,
      0.735 without; mean of samples 0.722 and 0.730).
    - The attention is standardised, squashed and scaled to a maximum of 1, so that it depends on where the
      discriminator looks and not on how large its features are.
    - t = 1 is pure noise (zero terminal SNR, arXiv 2305.08891), where sampling starts; cDAL's alpha(1) is 0.007.
    - Sizes come from the plan, also in 3D; multi-class labels are one-hot, regions sigmoid heads.
    - AdamW with warm-up and decay and averaged weights, as for every trainer here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nndiffseg.diffusion.schedules import add_noise
from nndiffseg.methods.cdal.discriminator import Discriminator, discriminator_loss, r1_penalty
from nndiffseg.methods.cdal.generator import VECTOR, build_cdal_generator, layout_from
from nndiffseg.methods.cdal.pairs import posterior_sample, random_steps, real_pair
from nndiffseg.nn.precision import autocast_for
from nndiffseg.training.loader import seed_of
from nndiffseg.training.trainer import DiffusionTrainer

#: learning rate of the discriminator, relative to the generator's
DISCRIMINATOR_RATE = 0.5


class nnDiffSegTrainerCDAL(DiffusionTrainer):
    """Trains generator and discriminator in turn.

    Attributes:
        steps: T, diffusion steps in training and the default in prediction, 2 to 8.
        adversarial_weight: weight of the generator's adversarial term.
        attention: weight the label by the discriminator's attention before it is noised.
        r1_gamma: factor of the R1 penalty.
        deterministic_share: share of the items that train the deterministic answer.
    """

    steps = 4
    adversarial_weight = 0.0
    attention = True
    r1_gamma = 1.0
    deterministic_share = 0.25

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        if not 2 <= cls.steps <= 8:
            raise ValueError(f"{cls.__name__}.steps must be 2 to 8, got {cls.steps}.")
        return build_cdal_generator(configuration_manager, num_input_channels, num_output_channels, cls.steps)

    @classmethod
    def training_pass(cls, network: Any, image: Tensor, onehot: Tensor) -> Any:
        """The generator's; the discriminator's step, which comes before, keeps less than half as much."""
        t, z = image.new_ones(len(image)), image.new_zeros(len(image), VECTOR)
        return network(image, onehot, t, z)

    def initialize(self) -> None:
        super().initialize()
        torch.manual_seed(seed_of(self.seed, self.fold, "discriminator"))
        layout = layout_from(self.configuration_manager)
        channels = [max(8, c // 2) for c in layout.channels]
        self.discriminator = Discriminator(
            self.label_manager.num_segmentation_heads, channels, layout.strides, layout.kernels
        ).to(self.device)
        # DDGAN's choice of betas: little momentum, since the generator moves the target.
        self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=self.initial_lr, betas=(0.5, 0.9))

    def prepare_network(self, network: Any) -> None:
        network.regions.fill_(self.label_manager.has_regions)

    def _build_loss(self) -> nn.Module:
        return super()._build_loss().loss  # without the wrapper for deep supervision

    # ---- one step: discriminator, then generator ------------------------------------------------------------------

    def train_step(self, batch: dict) -> dict[str, float]:
        """One step of each optimiser; returns every term of both losses."""
        terms = self._train_discriminator(batch)
        return super().train_step(batch) | terms

    def _train_discriminator(self, batch: dict) -> dict[str, float]:
        data, targets = self._to_device(batch)
        generator = torch.Generator().manual_seed(
            seed_of(self.seed, self.fold, self.local_rank, "discriminator", self.iteration)
        )
        x0 = 2 * self.onehot(targets[0]) - 1
        t, s = (v.to(self.device) for v in random_steps(len(x0), self.steps, generator))
        schedule = self.bare_network.schedule
        x_s, x_t = real_pair(schedule, x0, t, s, _noise(x0, generator), _noise(x0, generator))
        with torch.no_grad(), autocast_for(self.device):
            z = torch.randn(len(x0), VECTOR, generator=generator).to(x0)
            guess = self.network(data, x_t, t, z).float()
        fake_s = posterior_sample(schedule, guess, x_t, t, s, _noise(x0, generator))
        # In float32 throughout: R1 differentiates twice.
        real = self.discriminator(x_s.requires_grad_(), x_t, t)
        gan = discriminator_loss(real, self.discriminator(fake_s, x_t, t))
        r1 = self.r1_gamma / 2 * r1_penalty(real, x_s)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        (gan + r1).backward()
        self._average_gradients()
        for group in self.discriminator_optimizer.param_groups:
            group["lr"] = DISCRIMINATOR_RATE * self.optimizer.param_groups[0]["lr"]
        self.discriminator_optimizer.step()
        return {"discriminator": float(gan.detach()), "r1": float(r1.detach())}

    def _average_gradients(self) -> None:
        """Keeps the discriminators of all ranks equal, without a wrapper that would forbid two passes a step."""
        if self.is_ddp:
            for gradient in (p.grad for p in self.discriminator.parameters() if p.grad is not None):
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()

    def loss_terms(self, data: Tensor, targets: list[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        x0 = 2 * self.onehot(targets[0]) - 1
        t, s = (v.to(self.device) for v in random_steps(len(x0), self.steps, generator))
        noise, z = _noise(x0, generator), torch.randn(len(x0), VECTOR, generator=generator).to(x0)
        x_t = add_noise(self.bare_network.schedule, self._attended(x0, t, s, generator), noise, t)
        quiet = (torch.rand(len(x0), generator=generator) < self.deterministic_share).to(x0.device)
        t = torch.where(quiet, 1.0, t)
        z = z * ~quiet[:, None]
        x_t = x_t * ~quiet.view(-1, *[1] * (x0.ndim - 1))
        guess = self.network(data, x_t, t, z).float()
        terms = {"x0": F.mse_loss(guess, x0), "label": self.loss(self.bare_network.to_logits(guess), targets[0])}
        if self.adversarial_weight > 0:
            terms["adversarial"] = self.adversarial_weight * self._adversarial(guess, x_t, t, s, ~quiet, generator)
        return terms

    def _attended(self, x0: Tensor, t: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
        """The label, weaker where the discriminator does not look; training only, so nothing leaks into prediction."""
        if not self.attention:
            return x0
        x_s, x_t = real_pair(self.bare_network.schedule, x0, t, s, _noise(x0, generator), _noise(x0, generator))
        return x0 * self.discriminator.attention(x_s, x_t, t)

    def _adversarial(self, guess: Tensor, x_t: Tensor, t: Tensor, s: Tensor, use: Tensor, generator: torch.Generator) -> Tensor:
        """softplus(-D(fake)), mean over the items in ``use`` (DDGAN, section 3.2)."""
        fake_s = posterior_sample(self.bare_network.schedule, guess, x_t, t, s, _noise(guess, generator))
        self.discriminator.requires_grad_(False)
        score = F.softplus(-self.discriminator(fake_s, x_t, t).float())
        self.discriminator.requires_grad_(True)
        return (score * use).sum() / use.sum().clamp_min(1)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def method_state(self) -> dict[str, Any]:
        return super().method_state() | {
            "discriminator": self.discriminator.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        super().load_method_state(state)
        self.discriminator.load_state_dict(state["discriminator"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise, drawn on the CPU so that every device sees the same."""
    return torch.randn(like.shape, generator=generator).to(like)
