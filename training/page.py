"""How every report looks: one HTML file that reaches for nothing outside itself, its plots inside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
"""Told apart by everybody (Okabe and Ito 2008, jfly.uni-koeln.de/color)."""
DOTS_PER_INCH = 144
NO_INTERVAL = "†"
NAMES = {
    "roc_auc": "ROC AUC",
    "pr_auc": "PR AUC (average precision)",
    "loss": "Loss (log loss)",
    "calibration_error": "Calibration error (ECE)",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
}
STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --tint: #f3f6f9; --blue: #0072b2; }
* { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto;
  max-width: 62rem; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: 1rem; border-top: 3px solid var(--blue); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
summary { cursor: pointer; margin: 1rem 0; color: var(--blue); }
p, ul { max-width: 46rem; } li { margin: .2rem 0; }
.lead, .note { color: var(--soft); } .note { font-size: .88rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
.tile { background: var(--tint); border-radius: 6px; padding: .7rem .8rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { display: block; color: var(--soft); font-size: .85rem; }
.beware { border-left: 5px solid #d55e00; background: #fdf3ec; padding: .6rem 1rem; margin: 1rem 0; }
.beware p { margin: .25rem 0; }
.verdict { border: 3px solid var(--of); border-radius: 8px; margin: 1.5rem 0; overflow: hidden; }
.verdict b { display: block; background: var(--of); color: #000; font-size: 2.4rem; line-height: 1.2;
  padding: .6rem 1.2rem; }
.verdict p { font-size: 1.1rem; margin: .8rem 1.2rem; max-width: none; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .88rem; margin-bottom: -.6rem; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); } tbody th { font-weight: 500; }
td { white-space: nowrap; } td:only-of-type { white-space: normal; overflow-wrap: anywhere; }
.wraps td { white-space: normal; min-width: 5rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; margin: .5rem 0; }
.long { font-size: .8rem; columns: 22rem; overflow-wrap: anywhere; max-width: none; }
@media screen and (max-width: 40rem) { body { padding: 1rem 1rem 3rem; } h1 { font-size: 1.4rem; }
  .wide > img { max-width: none; width: 44rem; } tbody th { min-width: 7rem; }
  .verdict b { font-size: 1.7rem; } }
@media print { html { font-size: 12px; } body { max-width: none; padding: 0; print-color-adjust: exact; }
  table { font-size: .8rem; } td { white-space: normal; } .wide { overflow: visible; }
  details::details-content { content-visibility: visible; height: auto; }
  h2, h3, figcaption { break-after: avoid; } img, tr, .tile, .beware, .verdict { break-inside: avoid; } }
"""


def render(title: str, body: Iterable[str], images: str = "data:") -> str:
    """The page around ``body``, pieces of HTML. ``images``: where its pictures may come from, as a
    Content-Security-Policy has it."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy" '
            f"content=\"default-src 'none'; img-src {images}; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def paragraphs(lines: Iterable[str]) -> str:
    """Text as paragraphs."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def items(lines: Iterable[str], style: str = "") -> str:
    """Text as a list; ``style``: a class of STYLE."""
    kind = f' class="{style}"' if style else ""
    return f"<ul{kind}>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def note(text: str) -> str:
    """A small remark."""
    return f'<p class="note">{escape(text)}</p>'


def beware(lines: Sequence[str]) -> str:
    """A box that cannot be overlooked; nothing without lines."""
    return f'<div class="beware">{paragraphs(lines)}</div>' if lines else ""


def folded(title: str, content: str) -> str:
    """HTML that is shown on a click, and in print."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def tiles(of: Iterable[tuple[str, str, str]]) -> str:
    """The few figures that matter, each with its name and what stands under it."""
    tiles = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(figure)}</b>'
        f"<span>{escape(under)}</span></div>"
        for name, figure, under in of
    )
    return f'<div class="tiles">{tiles}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", wraps: bool = False) -> str:
    """Text in rows, the first cell of each its heading. ``wraps``: cells hold words, not figures."""
    titles = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) if any(head) else ""
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    name = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    kind = "wide wraps" if wraps else "wide"
    return (
        f'<figure>{name}<div class="{kind}"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></figure>"
    )


def value(of: Mapping[str, float] | None, signed: bool = False) -> str:
    """A figure of ``training.metrics`` with its interval, where it has one."""
    if of is None:
        return "-"
    return _number(of["value"], signed) + (f" {interval(of, signed)}" if "low" in of else "")


def interval(of: Mapping[str, float], signed: bool = False) -> str:
    """A figure's interval; NO_INTERVAL where no resample differed."""
    if not of["low"] < of["high"]:
        return NO_INTERVAL
    return f"({_number(of['low'], signed)}, {_number(of['high'], signed)})"


def _number(of: float, signed: bool) -> str:
    # Adding zero takes the sign from what rounds to -0.
    return f"{round(of, 3) + 0.0:{'+' if signed else ''}.3f}"


def sentence(text: str) -> str:
    """Words with a capital and a full stop."""
    return text[0].upper() + text[1:] + "."


def axes(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure in inches and its plots, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    plots = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for ax in plots:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
    return figure, plots


def plain(text: str) -> str:
    """Text as matplotlib draws it as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def image(figure: Figure, alt: str) -> str:
    """A figure inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = round(figure.get_figwidth() * 96)
    return (
        f'<div class="wide"><img alt="{escape(alt)}" width="{width}" '
        f'src="data:image/png;base64,{data}"></div>'
    )
