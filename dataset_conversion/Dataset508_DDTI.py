"""DDTI: thyroid nodules in ultrasound, as TRFE-Net and others give it: 637 images with masks.

Pedraza et al., SPIE 9287:92870W, 2015. The first release has outlines in XML; this is the one with folders ``image`` and
``mask`` (``1_or_data`` in some downloads). Which images belong to one patient is not told by it, so folds may divide
patients.

    nndiffseg_convert DDTI DDTI
"""

from __future__ import annotations

from nndiffseg.dataset_conversion.labels import Above
from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.source import Part

KIND = r"(?:png|jpg|bmp)"
#: the folder of preprocessed copies
ORIGINAL = r"(?<!stage1/)(?<!stage2/)"

DDTI = Published(
    name="DDTI",
    number=508,
    task="thyroid nodules in ultrasound, 2D",
    licence="not stated; open access",
    reference="Pedraza et al., An open access thyroid ultrasound image database, Proc SPIE 9287:92870W, 2015",
    get="https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation; http://cimalab.intec.co/applications/thyroid",
    channels=("ultrasound",),
    labels={"background": 0, "nodule": 1},
    read_label=Above(127),
    parts=(
        Part(
            "images",
            images=rf"{ORIGINAL}(?:p_)?image/(?P<case>\d+)\.{KIND}",
            labels=rf"{ORIGINAL}(?:p_)?mask/(?P<case>\d+)\.{KIND}",
            count=(637,),
            example="image/0001.PNG",
            prefix="ddti_",
        ),
    ),
)
CONVERTERS = (DDTI.converter(),)
