"""Phantoms whose labels have several modes: a lobe that annotators label or leave out, and surfaces they choose from.

Images look like those of :mod:`nndiffseg.data.phantom`, and the law of the label is known here as well. In the first two
variants the draws are nested (the lobe is there or not, one surface lies inside the other), so thresholds of the map of
probabilities reach the truth. A surface that is shifted one way or the other is not nested, and no threshold reaches it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import shift

from nndiffseg.data.phantom import BoundaryLaw, PhantomGeometry, Variant, draw_geometry

#: mm by which the second surface lies outside the base surface
OUTSIDE = 2.5
#: mm by which a surface is shifted, one way or the other
SHIFT = 3.0
#: range of the probability that the rear lobe is labelled
PRESENCE = (0.2, 0.8)
#: the surfaces differ by much more than this
SMALL = BoundaryLaw(rigid_sd=0.0)


def contrast_of(presence: float) -> float:
    """Contrast of a rear lobe that is labelled with this probability, in units of the front lobe's contrast."""
    return 1.3 + 1.4 * presence


def optional_lobe(rng: np.random.Generator, law: BoundaryLaw | None = None) -> PhantomGeometry:
    """The rear lobe is labelled or left out as a whole; how often varies between cases and shows in its contrast alone."""
    geometry, presence = draw_geometry(rng, law=law), float(rng.uniform(*PRESENCE))
    return replace(geometry, presence=presence, contrast=contrast_of(presence))


def two_boundaries(rng: np.random.Generator, law: BoundaryLaw | None = None) -> PhantomGeometry:
    """The front lobe ends at the base surface or :data:`OUTSIDE` mm outside it, as by two annotators' conventions."""
    geometry = draw_geometry(rng, law=law)
    base = geometry.distance[0]
    return replace(geometry, front_surfaces=np.stack([base, base - np.float32(OUTSIDE)]))


def shifted_boundary(rng: np.random.Generator, law: BoundaryLaw | None = None) -> PhantomGeometry:
    """The front lobe's surface is shifted by :data:`SHIFT` mm along the image's second axis, one way or the other."""
    geometry = draw_geometry(rng, law=law)
    moves = [(0, way * SHIFT / geometry.spacing, 0) for way in (-1, 1)]
    shifted = [shift(geometry.distance[0], move, order=1, mode="nearest") for move in moves]
    return replace(geometry, front_surfaces=np.stack(shifted))


#: by their names on the command line: the id of the dataset, and the variant
VARIANTS = {
    "optional": (990, Variant("PhantomOptional", optional_lobe)),
    "boundaries": (991, Variant("PhantomBoundaries", two_boundaries, SMALL)),
    "shift": (992, Variant("PhantomShift", shifted_boundary, SMALL)),
}
