"""The mathematical font of the site: STIX Two Math as ziamath ships it, cut to what equations use."""

from __future__ import annotations

import io
from importlib.resources import files

RANGES: tuple[tuple[int, int], ...] = (
    *((0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x2000, 0x214F), (0x2190, 0x23FF), (0x27E0, 0x27EF)),
    *((0x2A00, 0x2AFF), (0x1D400, 0x1D7FF), (0x300, 0x36F)),
)


def math_font() -> bytes:
    """WOFF with the table of mathematical metrics kept."""
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    font = TTFont(io.BytesIO(files("ziamath.fonts").joinpath("STIXTwoMath-Regular.ttf").read_bytes()))
    options = Options(
        layout_features=["ssty", "kern"], hinting=False, notdef_outline=True, recalc_timestamp=False
    )
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=[code for first, last in RANGES for code in range(first, last + 1)])
    subsetter.subset(font)
    font.flavor = "woff"
    file = io.BytesIO()
    font.save(file)
    return file.getvalue()
