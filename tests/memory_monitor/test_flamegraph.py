"""Flame graphs: well-formed whatever the names, widths in proportion, nothing lost."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from ai_model_optimizations.memory_monitor.allocations import Frame, Site
from ai_model_optimizations.memory_monitor.flamegraph import render

SVG = "{http://www.w3.org/2000/svg}"


def boxes(svg: str) -> dict[str, tuple[float, float, float]]:
    """Title without its size -> x, y, width."""
    found = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        title, rectangle = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        assert title is not None and rectangle is not None
        name = (title.text or "").rpartition(": ")[0]
        found[name] = tuple(float(rectangle.attrib[a]) for a in ("x", "y", "width"))
    return found  # type: ignore[return-value]


def site(size: int, *functions: str) -> Site:
    return Site(tuple(Frame("app.py", 1, f) for f in functions), size, 1, 0.0, 1)


def test_boxes_are_as_wide_as_their_bytes_and_children_lie_above_their_parent() -> None:
    found = boxes(render([site(600, "a", "b"), site(300, "a", "c"), site(100, "d")]))
    assert set(found) == {"all", *(f"app.py:1 ({f})" for f in "abcd")}
    x, y, width = found["all"]
    a, b = found["app.py:1 (a)"], found["app.py:1 (b)"]
    assert abs(a[2] - 0.9 * width) < 0.1 and abs(b[2] - 0.6 * width) < 0.1
    assert b[1] < a[1] < y
    assert a[0] - 0.01 <= b[0] and b[0] + b[2] <= a[0] + a[2] + 0.01 <= x + width + 0.02


def test_no_sites_and_unknown_stacks_still_make_a_graph() -> None:
    assert boxes(render([])) == {}
    assert set(boxes(render([Site((), 100, 1, 0.0, 1)]))) == {"all", "<unknown>"}


def test_very_deep_stacks_are_drawn_without_recursion() -> None:
    deep = [f"f{i}" for i in range(3000)]
    assert len(boxes(render([site(100, *deep)]))) == 3001


names = st.text(st.characters(codec="utf-8"), max_size=20)
frames = st.builds(Frame, names, st.integers(0, 10**6), names)
sites = st.builds(
    Site,
    st.lists(frames, max_size=5).map(tuple),
    st.integers(0, 10**15),
    st.just(1),
    st.just(0.0),
    st.just(1),
)


@given(st.lists(sites, max_size=8), names)
def test_any_names_give_well_formed_xml(drawn: list[Site], title: str) -> None:
    ElementTree.fromstring(render(drawn, title))
