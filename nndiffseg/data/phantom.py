"""A 3D phantom whose label is uncertain in a known way: two touching lobes with a random boundary.

The image shows a *base* shape, blurred by a point-spread function. The label's surface lies at the base surface plus a
random offset that the image does not show, so p(label | image) is known exactly: :func:`draw_label` samples it and
:func:`draw_volumes` gives the true distribution of each structure's volume.

With phi_k the signed distance to the base surface of structure k (negative inside), a draw is

    psi_k(x) = phi_k(x) - delta_k - f_k(x),   delta_k ~ N(0, rigid_sd^2),   f_k a smooth Gaussian field of sd field_sd
    label(x) = 1 + argmin_k psi_k(x)  where min_k psi_k(x) < 0,  else 0,

delta and f independent between the structures and between draws. Where the lobes touch, the interface moves by
(delta_1 - delta_2) / 2. Laws with several modes are in :mod:`nndiffseg.data.phantom_variants`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from nndiffseg.data.files import check_gzip, full_disk_told
from nndiffseg.errors import UserError

STRUCTURES = ("front lobe", "rear lobe")
SPACING = 1.0  # mm, isotropic
SHAPE = (40, 40, 40)
VALIDATION_CASES = 12  # of fold 0: enough for conformal intervals, and few, so that the validation takes seconds

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class BoundaryLaw:
    """How the boundary of a label varies around the base surface.

    Attributes:
        rigid_sd: standard deviation of the offset that a whole structure shares, mm.
        field_sd: standard deviation of the smooth field on top of it at each point, mm.
        field_length: correlation length of that field, mm.
    """

    rigid_sd: float = 0.35
    field_sd: float = 0.15
    field_length: float = 13.0


@dataclass(frozen=True)
class PhantomGeometry:
    """What one case's image and labels have in common.

    Attributes:
        distance: signed distance to each structure's base surface in mm, ``(2, *spatial)``, negative inside.
        spacing: edge of a voxel, mm.
        law: how labels vary around the base surface.
        front_surfaces: signed distances ``(M, *spatial)`` to M surfaces of the front lobe that a draw chooses from evenly;
            None for the base surface.
        presence: probability that a draw labels the rear lobe at all.
        contrast: of the rear lobe to the background, divided by the front lobe's; None for tissue that varies on its own.
    """

    distance: FloatArray
    spacing: float = SPACING
    law: BoundaryLaw = BoundaryLaw()
    front_surfaces: FloatArray | None = None
    presence: float = 1.0
    contrast: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.distance.shape[1:]


def draw_geometry(
    rng: np.random.Generator, shape: tuple[int, int, int] = SHAPE, law: BoundaryLaw | None = None
) -> PhantomGeometry:
    """Two overlapping ellipsoids of random size, pose and gentle irregularity; where they overlap, the nearer wins."""
    rotation = Rotation.from_rotvec(rng.normal(0, 0.3, size=3)).as_matrix()
    axes = np.array([[9.0, 10.5, 10.5], [9.5, 10.0, 10.5]]) * rng.uniform(0.9, 1.1, size=(2, 3))  # semi-axes, mm
    gap = 0.75 * (axes[0, 0] + axes[1, 0])  # centres closer than the sum of the semi-axes: the lobes touch
    middle = SPACING * (np.array(shape) - 1) / 2 + rng.normal(0, 0.6, size=3)
    lateral = np.array([0.0, *rng.normal(0, 1.0, size=2)])
    distances = []
    for semi_axes, side in zip(axes, (-0.5, 0.5), strict=True):
        centre = middle + rotation @ (np.array([side * gap, 0, 0]) + side * lateral)
        distances.append(ellipsoid_distance(shape, centre, semi_axes, rotation) + smooth_field(rng, shape, 0.5, 7.0))
    return PhantomGeometry(np.stack(distances).astype(np.float32), law=law or BoundaryLaw())


def ellipsoid_distance(shape: tuple[int, ...], centre: NDArray, semi_axes: NDArray, rotation: NDArray) -> NDArray[np.float64]:
    """Signed distance to an ellipsoid in mm, to first order at its surface; exact for a sphere.

    d = k0 (k0 - 1) / k1 with k0 = |p / r|, k1 = |p / r^2| (I. Quilez, "ellipsoid SDF", 2008).
    """
    grid = np.stack(np.meshgrid(*(SPACING * np.arange(n) for n in shape), indexing="ij"), axis=-1)
    p = (grid - centre) @ rotation  # coordinates along the ellipsoid's own axes, (*spatial, 3)
    k0 = np.linalg.norm(p / semi_axes, axis=-1)
    k1 = np.linalg.norm(p / semi_axes**2, axis=-1)
    return k0 * (k0 - 1) / np.maximum(k1, 1e-9)


def field_basis(shape: tuple[int, ...], length: float) -> list[FloatArray]:
    """Per axis, Gaussian bumps ``(n, centres)`` with unit square sum in every row.

    The field sum_ijk c_ijk a_i(x) b_j(y) c_k(z) with independent standard normal c then has variance 1 everywhere.
    """
    basis = []
    for n in shape:
        x = SPACING * np.arange(n)[:, None]
        count = max(2, round(SPACING * (n - 1) / length) + 1)
        bumps = np.exp(-((x - np.linspace(0, SPACING * (n - 1), count)) ** 2) / length**2)
        basis.append((bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32))
    return basis


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], sd: float, length: float) -> FloatArray:
    """A Gaussian field of standard deviation ``sd`` at each voxel and correlation length ``length`` mm."""
    a, b, c = field_basis(shape, length)
    coefficients = rng.standard_normal((a.shape[1], b.shape[1], c.shape[1]), dtype=np.float32)
    return np.float32(sd) * np.einsum("ijk,xi,yj,zk->xyz", coefficients, a, b, c, optimize=True)


def label_of(psi: NDArray) -> NDArray[np.uint8]:
    """psi ``(2, *anything)`` -> labels ``(*anything)``: the nearer structure inside, 0 outside."""
    return np.where(psi.min(axis=0) < 0, 1 + psi.argmin(axis=0), 0).astype(np.uint8)


def base_label(geometry: PhantomGeometry) -> NDArray[np.uint8]:
    """The label with no offset; what the image shows."""
    return label_of(geometry.distance)


def draw_label(geometry: PhantomGeometry, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One draw of p(label | image), ``(*spatial)`` with values 0, 1, 2."""
    law = geometry.law
    offset = np.stack(
        [rng.normal(0, law.rigid_sd) + smooth_field(rng, geometry.shape, law.field_sd, law.field_length) for _ in STRUCTURES]
    )
    distance = geometry.distance
    if geometry.front_surfaces is not None:
        distance = np.stack([geometry.front_surfaces[rng.integers(len(geometry.front_surfaces))], distance[1]])
    label = label_of(distance - offset)
    if geometry.presence < 1 and rng.random() >= geometry.presence:
        label[label == 2] = 0
    return label


def draw_volumes(geometry: PhantomGeometry, rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
    """Volumes of ``draws`` labels in ml, ``(draws, 2)``.

    The law of :func:`draw_label`, computed only where the label can change: voxels within 4.5 standard deviations of
    the base surface of the union, or of the interface. With several modes from whole labels.
    """
    if geometry.front_surfaces is not None or geometry.presence < 1:
        labels = (draw_label(geometry, rng) for _ in range(draws))
        return np.array([[np.sum(label == k) for k in (1, 2)] for label in labels]) * geometry.spacing**3 / 1000
    law, phi = geometry.law, geometry.distance
    reach = 4.5 * float(np.hypot(law.rigid_sd, law.field_sd))
    nearest, interface = phi.min(axis=0), np.abs(phi[0] - phi[1]) / np.sqrt(2)
    band = (np.abs(nearest) < reach) | ((interface < reach) & (nearest < reach))
    a, b, c = field_basis(geometry.shape, law.field_length)
    x, y, z = np.nonzero(band)
    basis = np.einsum("vi,vj,vk->vijk", a[x], b[y], c[z], optimize=True).reshape(len(x), -1)  # (voxels, coefficients)
    phi_band = phi[:, band].T[:, None]  # (voxels, 1, 2)
    fixed = np.bincount(base_label(geometry)[~band].ravel(), minlength=3)[1:]
    counts = []
    for chunk in np.array_split(np.arange(draws), max(1, draws // 25)):
        coefficients = law.field_sd * rng.standard_normal((basis.shape[1], 2 * len(chunk)), dtype=np.float32)
        delta = law.rigid_sd * rng.standard_normal((len(chunk), 2), dtype=np.float32)
        first, second = np.moveaxis(phi_band - delta - (basis @ coefficients).reshape(-1, len(chunk), 2), -1, 0)
        is_first = first <= second
        counts.append(np.stack([np.sum(is_first & (first < 0), axis=0), np.sum(~is_first & (second < 0), axis=0)], -1))
    counts = fixed + np.concatenate(counts)
    return counts * geometry.spacing**3 / 1000


def render_image(geometry: PhantomGeometry, rng: np.random.Generator) -> FloatArray:
    """The image ``(*spatial)`` of the base shape; it never sees an offset.

    Partial volume, tissue texture, point-spread blur (1.2 mm), multiplicative bias field, then Rician noise
    (Gudbjartsson and Patz 1995, MRM 34:910): the magnitude of the signal plus complex Gaussian noise.
    """
    phi = geometry.distance
    inside = np.clip(0.5 - phi.min(axis=0) / geometry.spacing, 0, 1)
    front = np.clip(0.5 - (phi[0] - phi[1]) / (2 * geometry.spacing), 0, 1)  # share of the front lobe
    background, first, second = np.array([90.0, 170.0, 250.0]) * rng.uniform(0.92, 1.08, size=3)
    if geometry.contrast is not None:
        second = background + geometry.contrast * (first - background)
    signal = background + inside * (front * first + (1 - front) * second - background)
    signal = signal * (1 + smooth_field(rng, geometry.shape, 0.03, 4.0))
    signal = gaussian_filter(signal, 1.2 / geometry.spacing)
    signal = signal * np.exp(smooth_field(rng, geometry.shape, 0.1, 25.0)) * rng.uniform(0.7, 1.4)
    sigma = 0.05 * signal.mean()
    noise = rng.normal(0, sigma, size=(2, *geometry.shape))
    return np.hypot(signal + noise[0], noise[1]).astype(np.float32)


@dataclass(frozen=True)
class Variant:
    """A law of labels: the dataset's name, how a case is drawn (as :func:`draw_geometry`), and how its boundary varies."""

    name: str
    draw: Callable[..., PhantomGeometry]
    law: BoundaryLaw = BoundaryLaw()


PLAIN = Variant("Phantom", draw_geometry)


def case_generators(seed: int, index: int) -> list[np.random.Generator]:
    """Independent generators of one case: geometry, image, label, Monte Carlo truth."""
    return [np.random.default_rng(s) for s in np.random.SeedSequence([seed, index]).spawn(4)]


def write_phantom_dataset(
    folder: str | os.PathLike[str],
    *,
    cases: int = 96,
    test_cases: int = 10,
    seed: int = 0,
    dataset_id: int = 999,
    draws: int = 400,
    law: BoundaryLaw | None = None,
    variant: Variant = PLAIN,
    validation_cases: int | None = None,
    annotations: int = 0,
) -> Path:
    """Writes ``folder/DatasetXXX_NAME`` in nnU-Net's raw format; the same arguments give the same voxels.

    Beside nnU-Net's folders it holds ``labelsTs``, ``splits_final.json`` (one fold, few validation cases) and
    ``truth.json``: the law of the boundary and, per case and structure, the mean and standard deviation of the volume
    in ml over ``draws`` Monte Carlo draws. ``ratersTr`` holds ``annotations`` true draws of every validation case.
    ``law`` None is the variant's; ``validation_cases`` None is a quarter of the cases, at most 12.

    Returns:
        The dataset's folder.

    Raises:
        UserError: the dataset's folder exists already, there are too few cases, or the disk is full.
    """
    if cases < 4 or test_cases < 0:
        raise UserError(f"A phantom dataset needs at least 4 training cases, not {cases}; ask for more of them.")
    dataset = Path(folder) / f"Dataset{dataset_id:03d}_{variant.name}"
    if dataset.exists():
        raise UserError(f"{dataset} exists already; delete it or choose another folder.")
    law = law or variant.law
    held_out = min(VALIDATION_CASES, cases // 4) if validation_cases is None else validation_cases
    partial = dataset.with_name(f".{dataset.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for sub in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (partial / sub).mkdir(parents=True)
    with full_disk_told(partial, "the phantoms"):
        names, truth, presence = [], {}, {}
        for index in range(cases + test_cases):
            split = "Tr" if index < cases else "Ts"
            name = f"phantom_{index:03d}"
            for_geometry, for_image, for_label, for_truth = case_generators(seed, index)
            geometry = variant.draw(for_geometry, law=law)
            _write(render_image(geometry, for_image), partial / f"images{split}" / f"{name}_0000.nii.gz")
            _write(draw_label(geometry, for_label), partial / f"labels{split}" / f"{name}.nii.gz")
            if cases - held_out <= index < cases:
                for draw in range(annotations):
                    _write(draw_label(geometry, for_label), partial / "ratersTr" / name / f"draw_{draw:02d}.nii.gz")
            truth[name] = _volume_statistics(draw_volumes(geometry, for_truth, draws))
            presence[name] = geometry.presence
            names.append(name)
        more = {} if variant is PLAIN else {"variant": variant.name, "presence": presence}
        _write_metadata(partial, names[:cases], held_out, {**_law_in_words(law), "draws": draws, **more, "cases": truth})
        check_gzip(partial)
    os.replace(partial, dataset)
    return dataset


def _volume_statistics(volumes: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    return {
        structure: {"mean_ml": float(v.mean()), "sd_ml": float(v.std(ddof=1))}
        for structure, v in zip(STRUCTURES, volumes.T, strict=True)
    }


def _law_in_words(law: BoundaryLaw) -> dict[str, dict[str, float]]:
    return {"law": {"rigid_sd_mm": law.rigid_sd, "field_sd_mm": law.field_sd, "field_length_mm": law.field_length}}


def _write_metadata(dataset: Path, training: list[str], held_out: int, truth: dict) -> None:
    validation = training[-held_out:]
    contents = {
        "dataset.json": {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **{structure: k for k, structure in enumerate(STRUCTURES, start=1)}},
            "numTraining": len(training),
            "file_ending": ".nii.gz",
            "name": "Phantom",
            "description": "Two touching lobes whose boundary is drawn from a known distribution (nndiffseg.data.phantom).",
        },
        "splits_final.json": [{"train": [c for c in training if c not in validation], "val": validation}],
        "truth.json": truth,
    }
    for name, content in contents.items():
        (dataset / name).write_text(json.dumps(content, indent=2) + "\n")


def _write(array: NDArray, path: Path) -> None:
    """Axes of ``array`` are (x, y, z)."""
    path.parent.mkdir(exist_ok=True, parents=True)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing((SPACING,) * 3)
    image.SetOrigin((-20.0, -35.0, 12.0))
    sitk.WriteImage(image, str(path), useCompression=True)
