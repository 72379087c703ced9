"""What the published methods' components are worth: every variant is trained alike and compared with the whole method.

    python -m benchmarks.component_ablation --dataset 4 --configuration 2d --iterations 1000 [--methods LDSeg cDAL ...]

LDSeg (arXiv 2407.12952, table V): label and image encoder, learned or replaced by nearest-neighbour down-sampling. cDAL
(arXiv 2502.06997): with and without attention, with and without the random latent embedding, and with the generator's
adversarial term. MedSegDiff-V2 (arXiv 2301.11798): with and without uncertain spatial attention (the anchor is then
added) and SS-Former (the embeddings are then added). The flagship: its head alone, that is nnU-Net's U-Net with
nnU-Net's loss and our optimiser and weight average (the samples of this variant mean nothing).

Most variants are options of a method, as ``nndiffseg_train --option`` takes them, and lie in ``with_options`` of the results
folder; what no option switches is a class below. A whole method that :mod:`benchmarks.methods` trained with the same budget
into the same results folder is not trained again, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from benchmarks.common import report
from benchmarks.compare.data import data_from, result_name
from benchmarks.compare.entries import Row, add_evaluation_flags, evaluate, make, plainly, settings_of
from benchmarks.compare.flags import add_budget_flags, budget_from, data_parser
from benchmarks.compare.plots import new_figure, save_figure
from benchmarks.compare.processes import stop_cleanly_on_terminate
from benchmarks.compare.trainers import Entry
from nndiffseg.cli.common import choose, run
from nndiffseg.errors import UserError
from nndiffseg.methods.cdal.generator import CDALGenerator, layout_of
from nndiffseg.methods.cdal.method import CDAL
from nndiffseg.methods.latent.losses import LatentLosses
from nndiffseg.methods.latent.method import LatentDiffusion
from nndiffseg.methods.protocol import Batch, SegmentationLoss
from nndiffseg.trainers import nnDiffSegTrainer, nnDiffSegTrainerCDAL

# ---- variants that no option switches -----------------------------------------------------------------------------


class GeneratorWithoutLatent(CDALGenerator):
    """The embedding sees the same zeros in every step: x_t alone makes samples differ."""

    def denoise(self, x: Tensor, t: Tensor, condition: Tensor, vector: Tensor | None) -> Tensor:
        assert vector is not None
        return super().denoise(x, t, condition, vector * 0)


class CDALWithoutLatent(CDAL):
    def network(self) -> GeneratorWithoutLatent:
        plan = self.plan
        return GeneratorWithoutLatent(plan.input_channels, plan.heads, plan.patch, layout_of(plan), self.options.steps)


class CDALNoLatent(nnDiffSegTrainerCDAL):
    method_class = CDALWithoutLatent


class HeadLosses(LatentLosses):
    """nnU-Net's loss of the deterministic head."""

    def forward(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = network(batch.image, deep_supervision=True)
        return {"deterministic": self.segmentation.deep([x.float() for x in logits], batch.targets)}


class HeadAlone(LatentDiffusion):
    def losses(self, segmentation: Callable[..., SegmentationLoss]) -> HeadLosses:
        return HeadLosses(segmentation(), self.plan.heads)


class FlagshipHeadAlone(nnDiffSegTrainer):
    method_class = HeadAlone


# ---- variants -----------------------------------------------------------------------------------------------------

LDSEG, CDAL_TRAINER, MEDSEGDIFF = "nnDiffSegTrainerLDSeg", "nnDiffSegTrainerCDAL", "nnDiffSegTrainerMedSegDiffV2"
#: method -> what a row is called -> what is trained: the one place where variants are defined
VARIANTS: dict[str, dict[str, Entry]] = {
    "LDSeg": {
        "both encoders learned": Entry(LDSEG),
        "nearest label": Entry(LDSEG, ("learned_label_encoder=false",)),
        "nearest image": Entry(LDSEG, ("learned_image_encoder=false",)),
        "both nearest": Entry(LDSEG, ("learned_label_encoder=false", "learned_image_encoder=false")),
    },
    "cDAL": {
        "whole": Entry(CDAL_TRAINER),
        "without attention": Entry(CDAL_TRAINER, ("attention=false",)),
        "without latent": Entry("benchmarks.component_ablation:CDALNoLatent"),
        "with adversarial term": Entry(CDAL_TRAINER, ("adversarial_weight=0.1",)),
    },
    "MedSegDiff-V2": {
        "whole": Entry(MEDSEGDIFF),
        "without U-SA": Entry(MEDSEGDIFF, ("uncertain_attention=false",)),
        "without SS-Former": Entry(MEDSEGDIFF, ("ss_former=false",)),
        "without both": Entry(MEDSEGDIFF, ("uncertain_attention=false", "ss_former=false")),
    },
    "flagship": {"whole": Entry("nnDiffSegTrainer"), "head alone": Entry("benchmarks.component_ablation:FlagshipHeadAlone")},
}
PUBLISHED = ["LDSeg", "cDAL", "MedSegDiff-V2"]
COLUMNS = (
    "Dice", "determ.", "mean of s.", "one s.", "NSD", "energy", "GED^2", "d(S,S')", "ECE", "AUROC", "M param.", "s/iter.",
)  # fmt: skip


# ---- command ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = data_parser("What the published methods' components are worth.")
    more = {"nargs": "+", "default": PUBLISHED, "metavar": "METHOD"}
    parser.add_argument("--methods", help=f"of {', '.join(VARIANTS)} (default: the published ones)", **more)
    add_budget_flags(parser)
    add_evaluation_flags(parser)
    args = parser.parse_args(argv)
    for method in args.methods:
        choose("method", method, list(VARIANTS))
    data, budget = data_from(args), budget_from(args)
    settings = settings_of(args, data, budget)
    entries = {f"{method}: {label}": e for method in args.methods for label, e in VARIANTS[method].items()}
    failed = [key for key, entry in entries.items() if not make(args, data, budget, entry)]
    if done := {key: entry for key, entry in entries.items() if key not in failed}:
        rows = evaluate(args, data, done)
        name = args.name or result_name("component_ablation", data)
        cells = [[*key.split(": ", 1), *(row.cell(c) for c in COLUMNS)] for key, row in rows.items()]
        report(name, cells, ["method", "variant", *COLUMNS], {"settings": settings, **plainly(rows)})
        draw(name, rows)
    if failed:
        raise UserError(f"{', '.join(failed)} failed, see above; give the same command again to go on.")


def draw(name: str, rows: Mapping[str, Row]) -> None:
    """Dice of the mean of samples (bars) and of the deterministic prediction (ticks), one panel per method."""
    methods = list(dict.fromkeys(key.split(": ", 1)[0] for key in rows))
    figure, axes = new_figure(len(methods))
    for axis, method in zip(axes, methods, strict=True):
        present = {key.split(": ", 1)[1]: row.metrics for key, row in rows.items() if key.startswith(f"{method}: ")}
        kinds = ("Dice: mean of samples", "Dice: deterministic part", "Dice: one sample")
        mean, head, one = ([m[kind] or 0.0 for m in present.values()] for kind in kinds)
        places = range(len(present))
        axis.barh(places, mean, 0.6, label="mean of samples", alpha=0.6)
        axis.plot(head, places, "k|", markersize=18, label="deterministic")
        axis.plot(one, places, "rx", label="one sample")
        axis.set_yticks(places, list(present))
        axis.invert_yaxis()
        axis.set(xlabel="Dice", title=method, xlim=(max(0.0, min(*mean, *head, *one) - 0.1), None))
        axis.legend(fontsize=8)
    save_figure(figure, name)


if __name__ == "__main__":
    stop_cleanly_on_terminate()
    raise SystemExit(main())
