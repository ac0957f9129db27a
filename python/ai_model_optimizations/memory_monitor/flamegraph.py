"""A flame graph of call sites as one self-contained SVG: no script, no font, no network.

The outermost frame is at the bottom; a box is as wide as the live bytes that its frame and the
frames it called allocated. Pointing at a box shows the frame, its bytes and its share.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import PurePath

from .allocations import UNKNOWN, Frame, Site, format_bytes

__all__ = ["render"]

_WIDTH = 1200.0
_ROW = 18
_MARGIN = 10
_HEADER = 40
_NARROWEST = 0.3  # a box of fewer pixels is left out
_CHARACTER = 6.6  # width of one of the monospaced letters


@dataclass(slots=True)
class _Box:
    """A frame and everything allocated by it or the frames it called."""

    label: str
    title: str
    size: int = 0
    children: dict[Frame | None, _Box] = field(default_factory=dict)


def _build(sites: Iterable[Site]) -> _Box:
    root = _Box("all", "all")
    for site in sites:
        box = root
        box.size += site.live_bytes
        for frame in site.traceback or (None,):
            if frame not in box.children:
                box.children[frame] = _Box(_label(frame), str(frame or UNKNOWN))
            box = box.children[frame]
            box.size += site.live_bytes
    return root


def _label(frame: Frame | None) -> str:
    if frame is None:
        return UNKNOWN
    name = PurePath(frame.filename).name or frame.filename
    return f"{frame.function or name} {name}:{frame.line}" if frame.line else str(frame)


def _depth(root: _Box) -> int:
    depth, row = 0, [root]
    while row:
        depth += 1
        row = [child for box in row for child in box.children.values()]
    return depth


def _colour(label: str) -> str:
    """A warm colour that a frame keeps from one graph to the next."""
    digest = zlib.crc32(label.encode("utf-8", "replace"))
    return f"hsl({digest % 50},{70 + digest // 50 % 25}%,{58 + digest // 1250 % 14}%)"


def _text(box: _Box, width: float) -> str:
    room = int((width - 6) / _CHARACTER)
    if room < 3:
        return ""
    return box.label if len(box.label) <= room else box.label[: room - 2] + ".."


def _printable(text: str) -> str:
    """Escaped, and without the control characters that XML forbids."""
    return escape("".join(c if c.isprintable() else "?" for c in text))


def _element(box: _Box, x: float, y: float, width: float, total: int) -> str:
    title = f"{box.title}: {format_bytes(box.size)} ({100.0 * box.size / total:.1f}%)"
    return (
        f'<g><title>{_printable(title)}</title><rect x="{x:.2f}" y="{y:.0f}" width="{width:.2f}" '
        f'height="{_ROW - 1}" rx="2" fill="{_colour(box.label)}"/>'
        f'<text x="{x + 3:.2f}" y="{y + 13:.0f}">{_printable(_text(box, width))}</text></g>'
    )


def _elements(root: _Box, height: float) -> Iterable[str]:
    if root.size <= 0:
        return
    scale = (_WIDTH - 2 * _MARGIN) / root.size
    pending = [(root, float(_MARGIN), height - _MARGIN - _ROW)]
    while pending:
        box, x, y = pending.pop()
        if box.size * scale < _NARROWEST:
            continue
        yield _element(box, x, y, box.size * scale, root.size)
        for child in sorted(box.children.values(), key=lambda b: -b.size):
            pending.append((child, x, y - _ROW))
            x += child.size * scale


def render(sites: Iterable[Site], title: str = "Live Python memory by call site") -> str:
    """Return the flame graph of `sites` as the text of an SVG file."""
    root = _build(sites)
    height = _HEADER + _depth(root) * _ROW + 2 * _MARGIN
    heading = f"{title}: {format_bytes(root.size)}"
    body = "\n".join(_elements(root, height))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height}" '
        f'width="{_WIDTH:.0f}" height="{height}" font-family="monospace" font-size="11">\n'
        f'<rect width="100%" height="100%" fill="#fffdf8"/>\n'
        f'<text x="{_MARGIN}" y="24" font-size="15">{_printable(heading)}</text>\n{body}\n</svg>\n'
    )
