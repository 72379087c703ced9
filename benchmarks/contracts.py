"""The predictor's contracts on a trained model: every file, its geometry, and what results may and may not depend on.

    python -m benchmarks.contracts -m MODEL_FOLDER -i IMAGES [--cases 4]

Runs the real command under different circumstances and compares the arrays of every file it writes.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmarks.common import command, report


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Voxels of every image that the prediction wrote."""
    return {str(p.relative_to(folder)): sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in folder.rglob("*.nii.gz")}


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", required=True, type=Path, help="model folder")
    parser.add_argument("-i", required=True, type=Path, help="folder with images")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--name", default="contracts", help="of the JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = check(args, Path(temporary))
    report(
        args.name,
        [[what, "yes" if ok else "NO"] for what, ok in rows],
        ["contract", "holds"],
        {"model": args.m.name, "cases": args.cases, "checks": {what: bool(ok) for what, ok in rows}},
    )
    if not all(ok for _, ok in rows):
        raise SystemExit(1)


class Runs:
    """Runs of ``nndiffseg_predict`` on copies of some images.

    Args:
        model: folder of the trained model.
        images: folder with images.
        cases: so many of them.
        work: folder for everything that is written.
    """

    def __init__(self, model: Path, images: Path, cases: int, work: Path):
        self.model, self.work, self.images = model, work, work / "in"
        self.images.mkdir()
        self.files = sorted(images.glob("*_0000.nii.gz"))[:cases]
        for path in self.files:
            shutil.copy(path, self.images)
        self.cases = [p.name.removesuffix("_0000.nii.gz") for p in self.files]

    def predict(self, output: str, *flags: str, source: Path | None = None, **options: Any) -> Path:
        """Folder ``work/output``; ``options`` are those of :func:`benchmarks.common.command`."""
        folders = ["-i", source or self.images, "-o", self.work / output, "-m", self.model]
        command(["nndiffseg_predict", *folders, "--save_samples", "--disable_progress_bar", *flags], **options)
        return self.work / output


def check(args: argparse.Namespace, work: Path) -> list[tuple[str, bool]]:
    """What is promised, and whether it holds."""
    runs = Runs(args.m, args.i, args.cases, work)
    base = runs.predict("base")
    reference = arrays(base)
    other = arrays(runs.predict("seed", "--seed", "1"))
    samples = [k for k in reference if k.startswith("samples")]
    return [
        ("every file of the contract is there", _complete(base, runs.cases)),
        ("every image has the input's origin, spacing, direction and size", _geometry(base, runs.images, runs.cases)),
        ("maps lie in [0, 1]", all(v.min() >= 0 and v.max() <= 1 for k, v in reference.items() if "uncertainty" in k)),
        ("the same seed gives identical arrays", equal(reference, arrays(runs.predict("again")))),
        *_circumstances(runs, reference),
        *_killed(runs, reference),
        ("another seed gives other samples", all(not np.array_equal(reference[k], other[k]) for k in samples)),
    ]


def _circumstances(runs: Runs, reference: dict[str, np.ndarray]) -> list[tuple[str, bool]]:
    """What results must not depend on."""
    for part in ("0", "1"):
        runs.predict("parts", "-num_parts", "2", "-part_id", part)
    workers = arrays(runs.predict("workers", "-npp", "2", "-nps", "2"))
    alone = runs.work / "alone"
    alone.mkdir()
    shutil.copy(runs.files[-1], alone)
    single = arrays(runs.predict("single", source=alone))
    same = all(np.array_equal(reference[k], v) for k, v in single.items())
    return [
        ("-num_parts 2 gives identical arrays", equal(reference, arrays(runs.work / "parts"))),
        ("-npp 2 -nps 2 gives identical arrays", equal(reference, workers)),
        ("a case predicted first and alone equals itself in a list", same),
    ]


def _killed(runs: Runs, reference: dict[str, np.ndarray]) -> list[tuple[str, bool]]:
    """What a kill leaves, and what continuing makes of it."""
    folder = runs.work / "killed"
    runs.predict("killed", kill_when=folder / f"{runs.cases[0]}.nii.gz", check=False)
    done = len(list(folder.glob("*.nii.gz")))
    whole = 0 < done < len(runs.cases) and _complete(folder, runs.cases[:done], False)
    goes_on = equal(reference, arrays(runs.predict("killed", "--continue_prediction")))
    return [
        ("a kill leaves only whole cases", whole),
        ("--continue_prediction after the kill gives identical arrays", goes_on),
    ]


def _complete(output: Path, cases: list[str], report_too: bool = True) -> bool:
    wanted = [output / "report.html"] if report_too else []
    for case in cases:
        wanted += [output / f"{case}.nii.gz", output / "uncertainty" / f"{case}.json"]
        wanted += [output / "uncertainty" / f"{case}_{kind}.nii.gz" for kind in ("total", "aleatoric")]
        wanted += [output / "samples" / f"{case}_s{n:02d}.nii.gz" for n in range(16)]
    return all(p.is_file() for p in wanted)


def _geometry(output: Path, images: Path, cases: list[str]) -> bool:
    for case in cases:
        image = sitk.ReadImage(str(images / f"{case}_0000.nii.gz"))
        for path in output.rglob(f"{case}*.nii.gz"):
            written = sitk.ReadImage(str(path))
            if written.GetSize() != image.GetSize() or not all(
                np.allclose(getattr(written, get)(), getattr(image, get)(), atol=1e-6)
                for get in ("GetOrigin", "GetSpacing", "GetDirection")
            ):
                return False
    return True


if __name__ == "__main__":
    main()
