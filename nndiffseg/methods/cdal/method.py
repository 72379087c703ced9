"""cDAL's method object: its options, networks and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from nndiffseg.data.schema import CONFIG, Count, Share, Switch, Weight
from nndiffseg.diffusion.items import uniform
from nndiffseg.diffusion.schedules import Schedule, add_noise, normal_like
from nndiffseg.methods.cdal.discriminator import Discriminator, discriminator_loss, r1_penalty
from nndiffseg.methods.cdal.generator import STYLE, VECTOR, CDALGenerator, layout_of
from nndiffseg.methods.cdal.pairs import posterior_sample, random_steps, real_pair
from nndiffseg.methods.protocol import Batch, Losses, MethodPlan, SegmentationLoss, unwrapped
from nndiffseg.methods.published import PublishedMethod, PublishedOptions
from nndiffseg.nn.annotated import mean
from nndiffseg.nn.precision import autocast_for
from nndiffseg.nn.ranks import average_gradients, sum_over_ranks

#: learning rate of the discriminator, relative to the generator's
DISCRIMINATOR_RATE = 0.5


@dataclass(frozen=True, config=CONFIG)
class CDALOptions(PublishedOptions):
    """Options of cDAL.

    Attributes:
        steps: T, diffusion steps in training and the default in prediction.
        adversarial_weight: weight of the generator's adversarial term.
        attention: weight the label by the discriminator's attention before it is noised.
        attention_block: after which block of the discriminator its features are read; its last where it has fewer.
        attention_raw: their mean itself weights the label; otherwise it is standardised, squashed and scaled to at most 1.
        r1_gamma: factor of the R1 penalty.
        r1_every: iterations from one R1 penalty to the next.
        label_weight: weight of nnU-Net's loss beside the squared error of x0.
        mapping_layers, mapping_width: of the network that makes a style of z.
        image_blocks: residual blocks of the image encoder.
        deterministic_share: share of the items that train the deterministic answer.
    """

    paper: ClassVar[Mapping[str, Any]] = {
        "attention_block": 3,
        "attention_raw": True,
        "r1_every": 10,
        "label_weight": 0.0,
        "mapping_layers": 4,
        "mapping_width": 256,
        "image_blocks": 5,
        "deterministic_share": 0.0,
        "weight_decay": 0.0,
        "beta1": 0.5,
        "beta2": 0.9,
        "gradient_clipping": False,
        "weight_average": 0.0,
    }

    steps: Annotated[int, Field(strict=True, ge=2, le=8)] = 4
    adversarial_weight: Weight = 0.0
    attention: Switch = True
    attention_block: Count = 1
    attention_raw: Switch = False
    r1_gamma: Weight = 1.0
    r1_every: Count = 1
    label_weight: Weight = 1.0
    mapping_layers: Annotated[int, Field(strict=True, ge=1, le=16)] = 3
    mapping_width: Count = STYLE
    image_blocks: Annotated[int, Field(strict=True, ge=1, le=16)] = 2
    deterministic_share: Share = 0.25


class CDAL(PublishedMethod):
    """Generator and discriminator; see :mod:`nndiffseg.trainers.nnDiffSegTrainerCDAL`.

    The generator draws from p(x0 | x_t), so the ancestral sampler is the only one that it has.
    """

    name = "cdal"
    options_class = CDALOptions

    def network(self) -> CDALGenerator:
        plan, options = self.plan, self.options
        return CDALGenerator(
            plan.input_channels,
            plan.heads,
            plan.patch,
            layout_of(plan),
            options.steps,
            mapping=(options.mapping_layers, options.mapping_width),
            image_blocks=options.image_blocks,
        )

    def losses(self, segmentation: Callable[..., SegmentationLoss]) -> CDALLosses:
        return CDALLosses(segmentation(), self.plan, self.options)

    def training_pass(self, network: Any, image: Tensor, onehot: Tensor) -> Any:
        """The generator's; the discriminator's step, which comes before, keeps less than half as much."""
        t, z = image.new_ones(len(image)), image.new_zeros(len(image), VECTOR)
        return network(image, onehot, t, z)


class CDALLosses(Losses):
    """The generator's losses, and the discriminator with its optimiser."""

    def __init__(self, segmentation: SegmentationLoss, plan: MethodPlan, options: CDALOptions):
        super().__init__()
        self.segmentation, self.options = segmentation, options
        layout = layout_of(plan)
        channels = [max(8, c // 2) for c in layout.channels]
        self.discriminator = Discriminator(plan.heads.number, channels, layout.strides, layout.kernels)
        self._optimizer: torch.optim.Optimizer | None = None
        self._saved: dict[str, Any] | None = None

    # ---- one step: discriminator, then generator ------------------------------------------------------------------

    def before_step(self, network: nn.Module, batch: Batch, rate: float) -> dict[str, float]:
        """Trains the discriminator on a real and a generated pair (x_s, x_t)."""
        generator, image = batch.generator("discriminator"), batch.image
        schedule, x0 = unwrapped(network).schedule, 2 * batch.onehot - 1
        t, s = (v.to(x0.device) for v in random_steps(len(x0), self.options.steps, generator))
        x_s, x_t = real_pair(schedule, x0, t, s, normal_like(x0, generator), normal_like(x0, generator))
        with torch.no_grad(), autocast_for(x0.device):
            z = normal_like(x0.new_empty(len(x0), VECTOR), generator)
            guess = _completed(network(image, x_t, t, z).float(), batch, x0)
        fake_s = posterior_sample(schedule, guess, x_t, t, s, normal_like(x0, generator))
        # In float32 throughout: R1 differentiates twice.
        real = self.discriminator(x_s.requires_grad_(), x_t, t)
        gan = discriminator_loss(real, self.discriminator(fake_s, x_t, t))
        due = int(str(batch.key[-1])) % self.options.r1_every == 0
        r1 = self.options.r1_gamma / 2 * r1_penalty(real, x_s) if due else gan.new_zeros(())
        self.optimizer.zero_grad(set_to_none=True)
        ((gan + r1) * batch.weight).backward()
        average_gradients(self.discriminator)
        for group in self.optimizer.param_groups:
            group["lr"] = DISCRIMINATOR_RATE * rate
        self.optimizer.step()
        return {"discriminator": float(gan.detach()), "r1": float(r1.detach())}

    def forward(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        bare, options, generator = unwrapped(network), self.options, batch.generator("noise")
        x0 = 2 * batch.onehot - 1
        t, s = (v.to(x0.device) for v in random_steps(len(x0), options.steps, generator))
        noise, z = normal_like(x0, generator), normal_like(x0.new_empty(len(x0), VECTOR), generator)
        x_t = add_noise(bare.schedule, self._attended(bare.schedule, x0, t, s, generator), noise, t)
        quiet = (uniform(len(x0), generator) < options.deterministic_share).to(x0.device)
        t = torch.where(quiet, 1.0, t)
        z = z * ~quiet[:, None]
        x_t = x_t * _of_item(~quiet, x0)
        guess = network(batch.image, x_t, t, z).float()
        terms = {
            "x0": mean((guess - x0).square(), batch.weights(x0.shape[2:])),
            "label": options.label_weight * self.segmentation.full(bare.to_logits(guess), batch.targets[0]),
        }
        if options.adversarial_weight > 0:
            if options.attention:  # the discriminator knows pairs of the label itself, not of the weakened one
                x_t = add_noise(bare.schedule, x0, noise, t) * _of_item(~quiet, x0)
                guess = network(batch.image, x_t, t, z).float()
            score = self._adversarial(bare.schedule, _completed(guess, batch, x0), x_t, t, s, ~quiet, generator)
            terms["adversarial"] = options.adversarial_weight * score
        return terms

    def _attended(self, schedule: Schedule, x0: Tensor, t: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
        """The label, weaker where the discriminator does not look; training only, so nothing leaks into prediction."""
        if not self.options.attention:
            return x0
        x_s, x_t = real_pair(schedule, x0, t, s, normal_like(x0, generator), normal_like(x0, generator))
        return x0 * self.discriminator.attention(x_s, x_t, t, self.options.attention_block, self.options.attention_raw)

    def _adversarial(
        self, schedule: Schedule, guess: Tensor, x_t: Tensor, t: Tensor, s: Tensor, use: Tensor, generator: torch.Generator
    ) -> Tensor:
        """softplus(-D(fake)), mean over the items in ``use`` (DDGAN, section 3.2)."""
        fake_s = posterior_sample(schedule, guess, x_t, t, s, normal_like(guess, generator))
        self.discriminator.requires_grad_(False)
        score = F.softplus(-self.discriminator(fake_s, x_t, t).float())
        self.discriminator.requires_grad_(True)
        return sum_over_ranks((score * use).sum()) / sum_over_ranks(use.sum()).clamp_min(1)

    # ---- state ----------------------------------------------------------------------------------------------------

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the discriminator, made when it has its device; DDGAN's betas: little momentum, since the generator moves."""
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))
            if self._saved is not None:
                self._optimizer.load_state_dict(self._saved)
        return self._optimizer

    def get_extra_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._optimizer, self._saved = None, state


def _completed(guess: Tensor, batch: Batch, x0: Tensor) -> Tensor:
    """The generated label with that of the real pair in ignored voxels, where the discriminator then learns nothing."""
    return guess if batch.annotated is None else torch.where(batch.annotated, guess, x0)


def _of_item(values: Tensor, like: Tensor) -> Tensor:  # (B,) -> (B, 1, *1)
    return values.view(-1, *[1] * (like.ndim - 1))
