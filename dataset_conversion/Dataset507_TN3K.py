"""TN3K: thyroid nodules in ultrasound, with the five folds that the publishers give.

Gong et al., ISBI 2021 and Comput Biol Med 155:106389, 2023. The masks are JPEG, so 128 and above is the nodule. Which
images belong to one of the 2421 patients is not published; the folds of ``tn3k-trainval-fold0.json`` to ``4`` are taken
where they are there.

    nndiffseg_convert TN3K tn3k
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nndiffseg.data.splits import Fold
from nndiffseg.dataset_conversion.labels import Above
from nndiffseg.dataset_conversion.published import Published, read_folds
from nndiffseg.dataset_conversion.source import Part, list_files

FILES = [f"tn3k-trainval-fold{k}.json" for k in range(5)]


def published_folds(source: Path, names: Sequence[str]) -> list[Fold] | None:
    """The publishers' folds, whose lists hold numbers of images; None where images or files are missing."""
    places = {file.name: file for file in list_files(source).values() if file.name in FILES}
    if len(places) < len(FILES) or len(names) < 2879:
        return None
    return read_folds([places[f] for f in FILES], {str(int(n.rsplit("_")[-1])): n for n in names})


TN3K = Published(
    name="TN3K",
    number=507,
    task="thyroid nodules in ultrasound, 2D",
    licence="MIT, as the repository that gives it",
    reference="Gong et al., Thyroid Region Prior Guided Attention for Ultrasound Segmentation of Thyroid Nodules, "
    "Comput Biol Med 155:106389, 2023",
    get="https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation",
    channels=("ultrasound",),
    labels={"background": 0, "nodule": 1},
    read_label=Above(127),
    folds=published_folds,
    parts=(
        Part(
            "training images",
            images=r"trainval-image/(?P<case>\d{4})\.jpg",
            labels=r"trainval-mask/(?P<case>\d{4})\.jpg",
            count=(2879,),
            example="trainval-image/0000.jpg",
            prefix="trainval_",
        ),
        Part(
            "test images",
            images=r"test-image/(?P<case>\d{4})\.jpg",
            labels=r"test-mask/(?P<case>\d{4})\.jpg",
            count=(614,),
            example="test-image/0000.jpg",
            test=True,
            prefix="test_",
        ),
    ),
)
CONVERTERS = (TN3K.converter(),)
