"""What the published methods' components are worth: every variant is trained alike and compared with the whole method.

    python -m benchmarks.component_ablation --dataset 4 --configuration 2d --iterations 1000 [--methods LDSeg cDAL ...]

LDSeg (arXiv 2407.12952, table V): label and image encoder, learned or replaced by nearest-neighbour down-sampling. cDAL
(arXiv 2502.06997): with and without attention, with and without the random latent embedding, and with the generator's
adversarial term. MedSegDiff-V2 (arXiv 2301.11798): with and without uncertain spatial attention (the anchor is then
added) and SS-Former (the embeddings are then added). The flagship: its head alone, that is nnU-Net's U-Net with
nnU-Net's loss and our optimiser and weight average (the samples of this variant mean nothing). A whole method that
:mod:`benchmarks.methods` trained with the same budget into the same results folder is not trained again, and an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from benchmarks.common import report
from benchmarks.methods import add_judging_flags, comparison_settings, earlier_rows, train_and_judge
from benchmarks.methods_common import (
    add_budget_flags,
    budget_from,
    class_name,
    data_parser,
    stop_cleanly_on_terminate,
)
from benchmarks.methods_data import data_from, result_name
from benchmarks.methods_figures import new_figure, save_figure
from nndiffseg.cli.common import choose, run
from nndiffseg.errors import UserError
from nndiffseg.methods.cdal.generator import CDALGenerator, layout_of
from nndiffseg.methods.cdal.method import CDAL
from nndiffseg.methods.latent.losses import LatentLosses
from nndiffseg.methods.latent.method import LatentDiffusion
from nndiffseg.methods.protocol import Batch, SegmentationLoss
from nndiffseg.trainers import (
    nnDiffSegTrainer,
    nnDiffSegTrainerCDAL,
    nnDiffSegTrainerLDSeg,
    nnDiffSegTrainerMedSegDiffV2,
)
from nndiffseg.uncertainty.evaluation import number

# ---- variants -----------------------------------------------------------------------------------------------------


def variant(name: str, trainer: type, **defaults: Any) -> type:
    """A trainer of this name whose method has other options."""

    class Changed(trainer.method_class):  # type: ignore[misc, name-defined]
        @classmethod
        def read_options(cls, values: Any) -> Any:
            return super().read_options({**defaults, **values})

    return type(name, (trainer,), {"method_class": Changed, "__module__": __name__})


LDSegNearestLabel = variant("LDSegNearestLabel", nnDiffSegTrainerLDSeg, learned_label_encoder=False)
LDSegNearestImage = variant("LDSegNearestImage", nnDiffSegTrainerLDSeg, learned_image_encoder=False)
LDSegNearestBoth = variant("LDSegNearestBoth", nnDiffSegTrainerLDSeg, learned_label_encoder=False, learned_image_encoder=False)
CDALNoAttention = variant("CDALNoAttention", nnDiffSegTrainerCDAL, attention=False)
CDALAdversarial = variant("CDALAdversarial", nnDiffSegTrainerCDAL, adversarial_weight=0.1)
MedSegDiffNoAttention = variant("MedSegDiffNoAttention", nnDiffSegTrainerMedSegDiffV2, uncertain_attention=False)
MedSegDiffNoSSFormer = variant("MedSegDiffNoSSFormer", nnDiffSegTrainerMedSegDiffV2, ss_former=False)
MedSegDiffNeither = variant("MedSegDiffNeither", nnDiffSegTrainerMedSegDiffV2, uncertain_attention=False, ss_former=False)


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


#: method -> what a row is called -> trainer
VARIANTS: dict[str, dict[str, type]] = {
    "LDSeg": {
        "both encoders learned": nnDiffSegTrainerLDSeg,
        "nearest label": LDSegNearestLabel,
        "nearest image": LDSegNearestImage,
        "both nearest": LDSegNearestBoth,
    },
    "cDAL": {
        "whole": nnDiffSegTrainerCDAL,
        "without attention": CDALNoAttention,
        "without latent": CDALNoLatent,
        "with adversarial term": CDALAdversarial,
    },
    "MedSegDiff-V2": {
        "whole": nnDiffSegTrainerMedSegDiffV2,
        "without U-SA": MedSegDiffNoAttention,
        "without SS-Former": MedSegDiffNoSSFormer,
        "without both": MedSegDiffNeither,
    },
    "flagship": {"whole": nnDiffSegTrainer, "head alone": FlagshipHeadAlone},
}
PUBLISHED = ["LDSeg", "cDAL", "MedSegDiff-V2"]


def spec_of(trainer: type) -> str:
    """How :func:`benchmarks.methods_common.find_class` finds a variant in another process."""
    own = trainer.__module__.startswith("nndiffseg.")
    return trainer.__name__ if own else f"benchmarks.component_ablation:{trainer.__name__}"


# ---- command ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--methods",
        nargs="+",
        default=PUBLISHED,
        metavar="METHOD",
        help="of LDSeg, cDAL, MedSegDiff-V2, flagship (default: the published ones)",
    )
    add_budget_flags(parser)
    add_judging_flags(parser)
    args = parser.parse_args(argv)
    for method in args.methods:
        choose("method", method, list(VARIANTS))
    data, budget = data_from(args), budget_from(args)
    name = args.name or result_name("component_ablation", data)
    settings = comparison_settings(args, data, budget)
    rows, failed = earlier_rows(name, settings), []
    for method in args.methods:
        for trainer in VARIANTS[method].values():
            row = train_and_judge(args, data, budget, spec_of(trainer))
            if row is None:
                failed.append(trainer.__name__)
                continue
            rows[class_name(spec_of(trainer))] = row
            publish(name, rows, settings)
    if failed:
        raise UserError(f"{', '.join(failed)} failed, see above; give the same command again to go on.")


def publish(name: str, rows: dict[str, dict[str, Any]], settings: dict[str, Any]) -> None:
    """Table, JSON and figure of all variants so far."""
    header, table = assemble(rows)
    report(name, table, header, {"settings": settings, "methods": rows})
    draw(name, rows)


def assemble(rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells; ``rows`` by class name."""
    header = [
        "method",
        "variant",
        "Dice",
        "determ.",
        "mean of s.",
        "one s.",
        "NSD",
        "GED^2",
        "d(S,S')",
        "ECE",
        "AUROC",
        "M param.",
        "s/iter.",
    ]
    cells = []
    for method, variants in VARIANTS.items():
        for label, trainer in variants.items():
            if (row := rows.get(trainer.__name__)) is not None:
                cells.append(
                    [
                        method,
                        label,
                        *(number(row[f"dice_{k}"]["mean"], 4) for k in ("fused", "deterministic", "samples", "single")),
                        number(row["nsd_fused"]["mean"], 4),
                        number(row["ged2"]),
                        number(row["ged_within_samples"]),
                        number(row["ece"], 4),
                        number(row["error_auroc"]),
                        number(row["prediction"]["parameters"] / 1e6, 2),
                        number(row["training"]["seconds_per_iteration"], 3),
                    ]
                )
    return header, cells


def draw(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """Dice of the mean of samples (bars) and of the deterministic prediction (ticks), one panel per method."""
    methods = [m for m, variants in VARIANTS.items() if any(t.__name__ in rows for t in variants.values())]
    figure, axes = new_figure(len(methods))
    for axis, method in zip(axes, methods, strict=True):
        present = {label: rows[t.__name__] for label, t in VARIANTS[method].items() if t.__name__ in rows}
        places = range(len(present))
        axis.barh(places, [r["dice_samples"]["mean"] for r in present.values()], 0.6, label="mean of samples", alpha=0.6)
        axis.plot(
            [r["dice_deterministic"]["mean"] for r in present.values()], places, "k|", markersize=18, label="deterministic"
        )
        axis.plot([r["dice_single"]["mean"] for r in present.values()], places, "rx", label="one sample")
        axis.set_yticks(places, list(present))
        axis.invert_yaxis()
        lowest = min(r[f"dice_{k}"]["mean"] for r in present.values() for k in ("samples", "deterministic", "single"))
        axis.set(xlabel="Dice", title=method, xlim=(max(0.0, lowest - 0.1), None))
        axis.legend(fontsize=8)
    save_figure(figure, name)


if __name__ == "__main__":
    stop_cleanly_on_terminate()
    raise SystemExit(main())
