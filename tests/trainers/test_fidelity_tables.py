"""The tables in the published trainers' docstrings: every element is there, with what was published and what is built."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest

from nndiffseg.methods.cdal.method import CDAL
from nndiffseg.methods.ldseg.method import LDSegMethod
from nndiffseg.methods.medsegdiff.method import MedSegDiffV2
from nndiffseg.methods.protocol import Method

#: trainer -> its method and the elements of the publication that a reviewer looks for
REQUIRED: dict[str, tuple[type[Method], str]] = {
    "nnDiffSegTrainerLDSeg": (
        LDSegMethod,
        """setting; four networks; end-to-end or two-step; decoded latent in training; latent; label encoder: blocks;
        label encoder: down-sampling; label encoder: norm and dropout; label input; standardisation of the label latent;
        standardisation while sampling; image encoder: size; image encoder: norm; image encoder: attention; image latent;
        denoiser: levels and blocks; denoiser: skips; denoiser: attention; denoiser: norm and time; denoiser: condition;
        label decoder; schedule; times in a batch; noise in a batch; parameterisation; noise loss; segmentation loss;
        deterministic answer; recycling; image scaling; augmentation; optimiser; gradient clipping; batch and length;
        weight average; sampling; uncertainty; post-processing; ablation of the encoders; validation""",
    ),
    "nnDiffSegTrainerCDAL": (
        CDAL,
        """setting; label map; diffusion steps T; schedule; posterior; generator: blocks; generator: resampling;
        generator: skips and pyramid; generator: attention; generator: norm; mapping of z; random vector z; image encoder; time;
        generator output; discriminator: size; discriminator: resampling; discriminator: mini-batch statistic;
        discriminator: end; discriminator loss; R1; R1: rhythm; discriminator's rate; discriminator's optimiser;
        attention on the label; attention: layer; attention: values; x0 loss; adversarial gradient; adversarial pair;
        deterministic answer; weight average; optimiser; gradient clipping; learning rate; batch and length; ensemble;
        augmentation and crops; choice of the checkpoint""",
    ),
    "nnDiffSegTrainerMedSegDiffV2": (
        MedSegDiffV2,
        """setting; two networks; anchor: levels; anchor: U-SA; anchor: maps; anchor: Gaussian; anchor: start;
        anchor: released form; anchor: gradient; SS-Former; SS-Former: roles; SS-Former: values; SS-Former: queries and keys;
        SS-Former: band-pass filter; SS-Former: shifts; SS-Former: blocks; ablation: plain attention;
        ablation: no band-pass filter; diffusion U-Net: size; diffusion U-Net: attention; learned sigma; schedule; prediction;
        anchor loss: rhythm; anchor loss: weight of CE; recycling; label map; optimiser; weight average; batch and length;
        sampling; thresholding; ensemble; fusion; evaluation""",
    ),
}


def rows_of(docstring: str) -> list[list[str]]:
    """Cells of every row below the table's head."""
    lines = [line.strip() for line in docstring.splitlines() if line.strip().startswith("|")]
    assert lines[:2] == ["| element | published | here |", "|---|---|---|"]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def table_of(trainer: str) -> list[list[str]]:
    """Read from the source: importing a trainer imports nnU-Net's, which takes seconds."""
    source = (Path(__file__).resolve().parents[2] / "trainers" / f"{trainer}.py").read_text()
    return rows_of(ast.get_docstring(ast.parse(source)) or "")


def options_in(rows: list[list[str]]) -> list[tuple[str, object]]:
    """``NAME=VALUE`` of the last column, as ``nndiffseg_train --option`` reads it."""
    pairs = [pair for row in rows for pair in re.findall(r"``(\w+)=([^`]+)``", row[-1])]
    return [(name, json.loads(value) if re.fullmatch(r"[\d.e-]+|true|false", value) else value) for name, value in pairs]


def problems(rows: list[list[str]]) -> list[str]:
    """Rows that say too little."""
    found = [f"{row[0]}: {len(row)} cells" for row in rows if len(row) != 3 or not all(row)]
    for element, _, here in (row for row in rows if len(row) == 3):
        kind = re.match(r"(same|option|departure)\b", here)
        if kind is None:
            found.append(f"{element}: neither same nor option nor departure")
        elif kind[0] == "departure" and not re.search(r"\bbecause \w+", here):
            found.append(f"{element}: a departure without its reason")
        elif kind[0] == "option" and not options_in([[here]]):
            found.append(f"{element}: an option without its name")
    return found


@pytest.mark.parametrize("trainer", REQUIRED)
def test_every_row_says_what_was_published_and_what_is_here(trainer):
    assert problems(table_of(trainer)) == []


@pytest.mark.parametrize("trainer", REQUIRED)
def test_every_element_has_one_row(trainer):
    names = [row[0] for row in table_of(trainer)]
    required = [" ".join(name.split()) for name in REQUIRED[trainer][1].split(";")]
    assert sorted(names) == sorted(required)


@pytest.mark.parametrize("trainer", REQUIRED)
def test_every_option_named_exists_and_takes_the_value(trainer):
    method = REQUIRED[trainer][0]
    named = options_in(table_of(trainer))
    assert named
    for name, value in named:
        method.read_options({name: value})  # a UserError names what is wrong


@pytest.mark.parametrize("trainer", REQUIRED)
def test_every_row_marked_paper_names_what_that_setting_sets(trainer):
    marked = options_in([row for row in table_of(trainer) if "(paper)" in row[-1]])
    paper = REQUIRED[trainer][0].read_options({"setting": "paper"})
    assert [name for name in paper.paper if (name, paper.paper[name]) not in marked] == []
    assert not [row[0] for row in table_of(trainer) if "(paper)" in row[-1] and not options_in([row])]


@pytest.mark.parametrize("trainer", REQUIRED)
def test_every_option_of_the_method_is_in_its_table(trainer):
    method = REQUIRED[trainer][0]
    text = str(table_of(trainer))
    missing = [f.name for f in dataclasses.fields(method.options_class) if f"``{f.name}=" not in text]
    assert missing == []


@pytest.mark.parametrize(
    ("here", "problem"),
    [
        ("", "e: 3 cells"),
        ("something else", "e: neither same nor option nor departure"),
        ("departure: another width", "e: a departure without its reason"),
        ("option", "e: an option without its name"),
    ],
)
def test_a_row_that_says_too_little_is_found(here, problem):
    assert problem in problems([["e", "published", here]])
