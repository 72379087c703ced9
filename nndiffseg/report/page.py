"""The HTML of a report: one page, nothing loaded from elsewhere, every name escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from nndiffseg.uncertainty.volumes import error_bars

STYLE = """
:root { --ink: #1f2933; --quiet: #5b6773; --line: #e3e8ed; --paper: #ffffff; --accent: #1769aa; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 0 0 .7rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 48rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.quiet { color: var(--quiet); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.2rem 1.4rem;
  margin-top: 1.2rem; }
section h2 small { font-weight: 400; color: var(--quiet); font-size: .95rem; margin-left: .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
.wide { width: 100%; }
th, td { text-align: right; padding: .34rem 0 .34rem 1.1rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 0; text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 10rem; }
.settings td { text-align: left; }
summary { cursor: pointer; font-weight: 600; }
tr:last-child td { border-bottom: 0; }
.bar { display: inline-block; width: 3.5rem; height: .5rem; border-radius: 3px; background: #e9eef3; margin-right: .6rem;
  vertical-align: .06rem; } .bar i { display: block; height: 100%; border-radius: 3px; background: #6aa9d8; }
img { max-width: 100%; height: auto; display: block; margin-top: .8rem; }
dl { display: grid; grid-template-columns: minmax(7.5rem, max-content) 1fr; gap: .45rem 1.2rem; margin: .6rem 0; }
dt { font-weight: 600; } dd { margin: 0; max-width: 44rem; }
.note { border-left: 3px solid #e0a100; padding: .25rem .9rem; background: #fffaf0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 1rem; margin-top: 1.2rem; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem; }
.card b { display: block; font-size: 1.9rem; line-height: 1.2; font-weight: 600; }
.card span { font-weight: 600; } .card p { font-size: .9rem; color: var(--quiet); margin: .3rem 0 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); gap: 1.4rem; }
figure { margin: 0; } figcaption { font-size: .88rem; color: var(--quiet); margin-top: .4rem; }
@media (max-width: 600px) { dl { grid-template-columns: 1fr; gap: .1rem; } dd { margin-bottom: .5rem; } }
@media print { body { background: #fff; } section, .card { break-inside: avoid; } }
"""


def page(title: str, subtitle: str, body: Iterable[str]) -> str:
    """The whole document; ``body`` is HTML, the titles are text."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="quiet">{escape(subtitle)}</p>\n'
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def ml(value: float | None) -> str:
    """A volume in ml, with three significant digits."""
    if value is None or value != value:
        return "–"
    digits = next((d for d, least in enumerate((100, 10, 1)) if abs(value) >= least), None)
    return f"{value:.3g}" if digits is None else f"{value:.{digits}f}"


def interval(low_high: Sequence[float] | None) -> str:
    """An interval in ml."""
    return "–" if not low_high else f"{ml(low_high[0])} to {ml(low_high[1])}"


def section(title: str, content: Iterable[str], *, aside: str = "", anchor: str = "") -> str:
    """A box with a heading; ``content`` is HTML, the rest is text."""
    small = f"<small>{escape(aside)}</small>" if aside else ""
    name = f' id="{anchor}"' if anchor else ""
    return f"<section{name}>\n<h2>{escape(title)}{small}</h2>\n" + "\n".join(content) + "\n</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, wide: bool = False) -> str:
    """A table; the head is text, cells are HTML."""
    lines = ["<tr>" + "".join(f"<th>{escape(h)}</th>" for h in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return f'<div class="scroll"><table{" class=wide" if wide else ""}>\n' + "\n".join(lines) + "\n</table></div>"


def dice_cell(value: float | None) -> str:
    """A Dice with a small bar."""
    if value is None or value != value:
        return "–"
    return f'<span class="bar"><i style="width:{100 * min(1.0, max(0.0, value)):.0f}%"></i></span>{value:.3f}'


def picture(source: str, alternative: str) -> str:
    """An embedded image."""
    return f'<img src="{source}" alt="{escape(alternative)}">'


def card(value: str, title: str, sentence: str) -> str:
    """A headline number and the sentence that explains it; all text."""
    return f'<div class="card"><span>{escape(title)}</span><b>{escape(value)}</b><p>{escape(sentence)}</p></div>'


def chart(source: str, title: str, caption: str) -> str:
    """A chart with its caption."""
    return (
        f"<figure><strong>{escape(title)}</strong>{picture(source, title)}<figcaption>{escape(caption)}</figcaption></figure>"
    )


def explanation(*, several_folds: bool, samples_saved: bool, with_reference: bool) -> str:
    """What the pictures and tables mean, in plain words."""
    words = {
        "Segmentation": "The solid outlines: the label that the model thinks most probable at each voxel."
        + (
            " The thin outlines are its samples: each is one plausible segmentation of the whole image, and where they "
            "part, the model is in doubt."
            if samples_saved
            else " The samples themselves were not saved; with --save_samples their outlines are drawn too."
        ),
        "Total uncertainty": "How undecided the model is about a voxel’s label. Uncoloured means certain; the bright end "
        "of the colour bar means that two labels are equally probable, or worse.",
    }
    if several_folds:
        words |= {
            "Aleatoric": "The part of the total that every fold’s model has on its own: what the image leaves open, such "
            "as a blurred edge.",
            "Epistemic": "The rest: what the folds’ models disagree about. It is high where the training data taught "
            "them too little, and more such data would lower it.",
        }
    else:
        words["Aleatoric, epistemic"] = (
            "One fold was used, so no models could disagree: the aleatoric map equals the total and is not drawn twice, "
            "and there is no epistemic map. To tell the two apart, predict with several folds, as in -f 0 1 2 3 4."
        )
    if with_reference:
        words["True outline, errors"] = (
            "The dashed white outline is the true label; red voxels carry a wrong one. Good "
            "uncertainty maps are bright where the red is."
        )
    words |= {
        "Volumes": "The segmentation’s volume, and the samples’ mean volume with standard deviation (sd) and 90 % interval. "
        "These two are calibrated on the training’s validation cases: of such cases nine of ten true volumes lie in the "
        "interval (fewer where there are less than 19 samples).",
        "Expected Dice": "How well two samples overlap on average (1: identical). Were the truth one more sample, this "
        "would be the Dice to expect of a sample. The least certain cases come first: look at those.",
    }
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in words.items())
    note = (
        '<p class="note">Where the training data hold one annotator per case, the spread of the samples is the '
        "model’s uncertainty about the label, not the variability between annotators.</p>"
    )
    return section("How to read this", [f"<dl>{rows}</dl>", note])


def settings_box(settings: Mapping[str, str]) -> str:
    """How the prediction was made, folded away."""
    rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in settings.items())
    return f'<section><details><summary>How this was made</summary><table class="settings">{rows}</table></details></section>'


def volume_table(structures: Mapping[str, Mapping[str, Any]], known: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """A case's structures. ``known`` adds the true volume and, where it is known, its standard deviation."""
    head = ["volumes in ml", "segmentation", "mean", "sd", "90 % interval", "expected Dice"]
    rows = []
    for name, s in structures.items():
        sd, low_high = error_bars(s)
        rows.append(
            [
                escape(name),
                ml(s.get("segmentation_ml")),
                ml(s.get("mean_ml")),
                ml(sd),
                interval(low_high),
                number(s.get("expected_dice")),
            ]
        )
    if known:
        spread = any(v.get("known_sd_ml") for v in known.values())
        head += ["true volume", *(["true sd"] if spread else [])]
        for row, name in zip(rows, structures, strict=True):
            row.append(ml(known.get(name, {}).get("reference_ml")))
            if spread:
                row.append(ml(known.get(name, {}).get("known_sd_ml")))
    return table(head, rows)
