"""Knee MRI as LDSeg ships it: five volumes of the Osteoarthritis Initiative with both bones.

Zaman et al., LDSeg (github.com/FahimZaman/LDSeg, ``Data/Knee``). The files have no geometry (spacing 1, no orientation),
and are copied as they are. Which label is which bone was read off the images: 1 has the notch between its condyles, so it
is the femur. Five volumes are a demonstration, no benchmark.

    nndiffseg_convert LDSegKnee LDSeg/Data/Knee
"""

from __future__ import annotations

from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.source import Part

KNEE = Published(
    name="LDSegKnee",
    number=502,
    task="femur and tibia in MRI of the knee, 3D, five volumes",
    licence="data use agreement of the Osteoarthritis Initiative",
    reference="Zaman et al., LDSeg (github.com/FahimZaman/LDSeg); data: Osteoarthritis Initiative, https://nda.nih.gov/oai",
    get="https://github.com/FahimZaman/LDSeg, Data/Knee; the whole set: https://nda.nih.gov/oai",
    channels=("MRI",),
    labels={"background": 0, "femur": 1, "tibia": 2},
    ending=".nii.gz",
    parts=(
        Part(
            "volumes",
            images=r"Knee/Image/(?P<case>Case\d+)\.nii\.gz",
            labels=r"Knee/Label/(?P<case>Case\d+)_label\.nii\.gz",
            count=(5,),
            example="Knee/Image/Case1.nii.gz",
            prefix="knee_",
        ),
    ),
)
CONVERTERS = (KNEE.converter(),)
