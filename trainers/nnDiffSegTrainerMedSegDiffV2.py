"""MedSegDiff-V2 (Wu et al., arXiv 2301.11798), as published where a self-configuring 2D and 3D version allows it.

| paper | here |
|---|---|
| condition model, a U-Net on the image | nnU-Net's planned U-Net, ``MedSegDiff.condition_model`` |
| diffusion model, a U-Net on the noisy label | ``DiffusionModel``: the same stages, half the features |
| anchor condition, U-SA | ``nndiffseg.methods.medsegdiff.uncertain_attention`` |
| semantic condition, SS-Former with NBP-filter | ``nndiffseg.methods.medsegdiff.ss_former`` |
| anchor loss, Dice + CE on the condition model | ``anchor`` in the log |
| noise loss | ``denoising`` in the log |
| T = 1000, linear schedule | ``nndiffseg.diffusion.schedules.Linear``, t in {1/T, ..., 1}, evenly spread over a batch |
| DPM-Solver++ of order 2, 20 to 50 steps | ``dpmpp_2m``, 20 steps |
| fusion by STAPLE | ``nndiffseg_predict --fuse staple`` |

The authors never released the code of U-SA and SS-Former, and the paper leaves details open. Departures and choices:

- Any number of labels or regions, one channel each in [-1, 1]; the published code merges all classes. U-SA has one
  attention map per label instead of one, which could not tell structures apart.
- The network predicts v and the loss is the squared error of x0, where the paper predicts the noise. The schedule ends
  in pure noise, from which no x0 follows by way of the noise; and of all three, x0's error weighs the noisy steps most,
  where a mask is decided (arXiv 2504.05977).
- The anchor loss is paid at all time steps, where the paper pays it at every fifth (alpha = 5): the condition model
  does not see t, so that this changes the loss's weight only. And it is nnU-Net's own loss, so CE weighs 1 where the
  paper has 10: this head is the deterministic answer, which must equal nnU-Net's. ``ce_weight`` changes it.
- Both of an SS-Former block's cross-attentions act in Fourier space. Queries and keys are normalised and carry a code
  of their frequency, see :class:`~nndiffseg.methods.medsegdiff.ss_former.SpectralCrossAttention`.
- The Gaussian of U-SA learns its width along each axis; where voxels are anisotropic no one number would do.
- AdamW with the learning rate 1e-3, decaying to zero, and an average of decay 0.999 (paper: 1e-4, constant, 0.9999): the
  published values need hundreds of thousands of iterations.
- Samples are fused by the mean unless STAPLE is asked for, because the mean keeps the probabilities.
"""

from nndiffseg.methods.medsegdiff.method import MedSegDiffV2
from nndiffseg.training.trainer import DiffusionTrainer


class nnDiffSegTrainerMedSegDiffV2(DiffusionTrainer):
    """Trains :class:`~nndiffseg.methods.medsegdiff.method.MedSegDiffV2`."""

    method_class = MedSegDiffV2
