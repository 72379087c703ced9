"""BTCV: thirteen abdominal organs in CT, of the MICCAI 2015 challenge "Multi-Atlas Labeling Beyond the Cranial Vault".

Landman et al., doi:10.7303/syn3193805. The labels of the 20 test volumes are not published. Volumes are copied as they are.

    nndiffseg_convert BTCV RawData
"""

from __future__ import annotations

from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.source import Part

ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "oesophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)

BTCV = Published(
    name="BTCV",
    number=511,
    task="13 abdominal organs in CT, 3D",
    licence="registration; data use agreement of Synapse syn3193805",
    reference="Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault, 2015, doi:10.7303/syn3193805",
    get="https://www.synapse.org/Synapse:syn3193805, Abdomen/RawData.zip",
    channels=("CT",),
    labels={"background": 0, **{organ: i for i, organ in enumerate(ORGANS, 1)}},
    ending=".nii.gz",
    parts=(
        Part(
            "training volumes",
            images=r"Training/img/img(?P<case>\d{4})\.nii\.gz",
            labels=r"Training/label/label(?P<case>\d{4})\.nii\.gz",
            count=(30,),
            example="Training/img/img0001.nii.gz",
            prefix="btcv_",
        ),
        Part(
            "test volumes",
            images=r"Testing/img/img(?P<case>\d{4})\.nii\.gz",
            labels=None,
            count=(20,),
            example="Testing/img/img0061.nii.gz",
            test=True,
            prefix="btcv_",
        ),
    ),
)
CONVERTERS = (BTCV.converter(),)
