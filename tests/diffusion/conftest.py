from __future__ import annotations

import pytest

from nndiffseg.diffusion import Cosine, Linear


@pytest.fixture(params=[Cosine(), Linear(), Linear(0.5, 10.0)], ids=["cosine", "linear", "linear-short"])
def schedule(request):
    return request.param
