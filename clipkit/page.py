"""HTML pages that need nothing beside them, and figures. What comes from strangers is escaped: captions, names."""

import base64
import html
import io
import os
import unicodedata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipkit.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

INK = "#1f2328"
DPI = 100
HELD = 250  # characters that a line of a sheet holds at most, were they as narrow as can be
ALLOWED = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --soft: #6e7781; --bar: #2f81f7; --warn: #d9822b; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { overflow-wrap: anywhere; } h2 { margin-top: 2.2rem; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem 2.2rem; }
.tiles b { display: block; font-size: 1.7rem; color: var(--bar); } .tiles span { color: var(--soft); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; } td { padding: .15rem 1rem .15rem 0;
  vertical-align: top; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
figure { margin: 0; width: 10rem; } figure img { width: 100%; border-radius: .4rem; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; }
"""


def document(title: str, body: str, style: str = "") -> str:
    """The whole page; `body` is HTML, `style` is added to STYLE. The page may ask for nothing, and run nothing."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f'<meta http-equiv=Content-Security-Policy content="{ALLOWED}">'
        f"<title>{safe(title)}</title><style>{STYLE}{style}</style>{body}</html>\n"
    )


def safe(text: object) -> str:
    """Escaped, also inside of quotes; halves of surrogate pairs cannot be written as UTF-8."""
    return html.escape(str(text).encode("utf-8", "replace").decode(), quote=True)


def tiles(found: list[tuple[str, str]]) -> str:
    """Large numbers, each over what it counts: (number, what)."""
    inside = "".join(f"<div><b>{safe(number)}</b><span>{safe(what)}</span></div>" for number, what in found)
    return f"<div class=tiles>{inside}</div>"


def jpeg(image: "Image.Image") -> str:
    """A picture as an address that holds it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_png(figure: Any, path: Path, dpi: int) -> None:
    """Write a matplotlib figure in one piece."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # other scripts are drawn as boxes
        figure.savefig(buffer, format="png", dpi=dpi)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def need_matplotlib(option: str) -> None:
    """Raises: UserError, naming the option that draws, when matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        raise UserError(f"{option} is drawn by matplotlib; type: pip install 'clipkit[demo]'") from None
    matplotlib.use("Agg")


def plain(text: str) -> str:
    """One line without control characters and halves of surrogate pairs, which fonts cannot draw."""
    line = " ".join(text.split())
    return "".join(letter for letter in line if unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn"))


class Wrap:
    """Cuts text into lines that fit a width in points, by the measures of the font that draws it."""

    def __init__(self, points: float, bold: bool = False) -> None:
        from matplotlib.font_manager import FontProperties, findfont
        from PIL import ImageFont

        # eight times as large: the measure is of whole pixels
        weight = "bold" if bold else "normal"
        path = findfont(FontProperties(family="DejaVu Sans", weight=weight))
        self.font = ImageFont.truetype(path, round(points * 8), layout_engine=ImageFont.Layout.BASIC)

    def width(self, text: str) -> float:
        """In points; a letter that the font lacks counts as the box it is drawn as."""
        return self.font.getlength(text) / 8 * 1.03  # drawn on whole pixels, letters take up to that much more

    def __call__(self, text: str, width: float, most: int) -> list[str]:
        """At most `most` lines; what is left over ends in an ellipsis."""
        lines, line = [], ""
        words = plain(text[: 4 * HELD * most]).split(" ")
        while words and len(lines) < most:
            longer = f"{line} {words[0]}" if line else words[0]
            if self.width(longer) <= width:
                line = longer
                words.pop(0)
            elif line:
                lines.append(line)
                line = ""
            else:  # a word that no line holds
                fits = next((n for n in range(1, HELD) if self.width(words[0][: n + 1]) > width), HELD)
                lines.append(words[0][:fits])
                words[0] = words[0][fits:]
        if line and len(lines) < most:
            lines.append(line)
        elif lines and (words or line):
            last = lines[-1]
            while last and self.width(f"{last}…") > width:
                last = last[:-1]
            lines[-1] = f"{last}…"
        return lines


class Sheet:
    """A matplotlib figure whose parts are placed in inches from its top left corner."""

    def __init__(self, wide: float, high: float) -> None:
        from matplotlib.figure import Figure

        self.wide, self.high = wide, high
        self.figure = Figure(figsize=(wide, high), facecolor="white")

    def text(self, x: float, y: float, text: str, points: float, **more: Any) -> None:
        """Text whose upper left corner is at (x, y); nothing in it is taken for a formula."""
        more = {"color": INK, "va": "top", "family": "DejaVu Sans", **more}
        drawn = self.figure.text(x / self.wide, 1 - y / self.high, text, fontsize=points, **more)
        drawn.set_parse_math(False)

    def axes(self, x: float, y: float, wide: float, high: float) -> Any:
        """Axes whose upper left corner is at (x, y)."""
        return self.figure.add_axes((x / self.wide, 1 - (y + high) / self.high, wide / self.wide, high / self.high))

    def save(self, path: Path) -> None:
        """Write the PNG in one piece."""
        write_png(self.figure, path, DPI)
