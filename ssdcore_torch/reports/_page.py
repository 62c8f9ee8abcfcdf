"""The HTML of a report: one file that needs no network, every text from outside escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --faint: #8883; --soft: #6b7280; --accent: #1f77b4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c; --soft: #9aa1ab; --accent: #6cb2eb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--faint); padding-top: 1rem; }
p { max-width: 42rem; } .note { color: var(--soft); font-size: .9rem; }
nav a { margin-right: 1rem; } a { color: var(--accent); }
img { image-rendering: pixelated; max-width: 100%; }
.tiles { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
.tiles figcaption { max-width: 8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--faint); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--faint); padding: .6rem .8rem; overflow-x: auto; border-radius: .3rem; }
svg { width: 100%; height: auto; font-size: 11px; } svg text { fill: var(--soft); }
svg .rule { stroke: var(--faint); } svg polyline { fill: none; stroke-width: 1.6; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0 0 0 64px; margin: .2rem 0;
          font-size: .85rem; color: var(--soft); }
.legend span { display: inline-block; width: 1.2em; height: .25em; margin-right: .4em; vertical-align: middle; }
.frames { max-width: 44rem; } .frames input { width: 100%; } .frames .frame { display: none; }
.frames .frame.shown { display: block; } .frames .bar { display: flex; gap: .8rem; align-items: center; }
.rows { display: flex; flex-direction: column; gap: .4rem; } .rows img { display: block; }
button { font: inherit; padding: .1rem .8rem; }
"""

SCRIPT = """
for (const box of document.querySelectorAll('.frames')) {
  const frames = box.querySelectorAll('.frame');
  const slider = box.querySelector('input'), play = box.querySelector('button');
  let timer = null;
  const show = i => { frames.forEach((f, k) => f.classList.toggle('shown', k === i)); slider.value = i; };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = 'Play'; };
  slider.addEventListener('input', () => { stop(); show(+slider.value); });
  play.addEventListener('click', () => {
    if (timer) return stop();
    if (+slider.value === frames.length - 1) show(0);
    play.textContent = 'Pause';
    timer = setInterval(() => {
      show(+slider.value + 1);
      if (+slider.value === frames.length - 1) stop();
    }, +box.dataset.milliseconds);
  });
}
"""


def page(title: str, head: str, sections: Mapping[str, str]) -> str:
    """The whole document: sections by heading, those without content left out."""
    kept = {name: body for name, body in sections.items() if body}
    anchors = {name: f"part-{i}" for i, name in enumerate(kept)}
    links = " ".join(f'<a href="#{anchors[name]}">{html.escape(name)}</a>' for name in kept)
    body = "\n".join(f'<h2 id="{anchors[name]}">{html.escape(name)}</h2>\n{text}' for name, text in kept.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{head}\n<nav>{links}</nav>\n{body}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def paragraph(text: str, note: bool = False) -> str:
    return f"<p{' class=note' if note else ''}>{html.escape(text)}</p>"


def code(lines: Iterable[str]) -> str:
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def picture(image: Image.Image | bytes, width: int | None = None, alternative: str = "") -> str:
    """An <img> that holds its data. `width` in CSS pixels; bytes are a PNG file."""
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        image = buffer.getvalue()
    data = base64.b64encode(image).decode("ascii")
    size = "" if width is None else f' width="{width}"'
    return f'<img{size} alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'


def captioned(image: str, caption: str) -> str:
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def tiles(figures: Iterable[str]) -> str:
    return f'<div class="tiles">{"".join(figures)}</div>'


def frames(contents: Sequence[str], milliseconds: int, first: int = 0) -> str:
    """One of several contents at a time, with a slider and a button to play them."""
    if len(contents) == 1:
        return f'<div class="frames"><div class="frame shown">{contents[0]}</div></div>'
    shown = "".join(
        f'<div class="frame{" shown" if i == first else ""}">{content}</div>' for i, content in enumerate(contents)
    )
    slider = f'<input type="range" min="0" max="{len(contents) - 1}" value="{first}" aria-label="position">'
    bar = f'<div class="bar"><button type="button">Play</button>{slider}</div>'
    return f'<div class="frames" data-milliseconds="{milliseconds}">{bar}{shown}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of text; the columns `numbers` are right-aligned."""
    right = set(numbers)
    top = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=number' if i in right else ''}>{html.escape(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'
