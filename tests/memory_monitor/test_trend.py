"""The slope tells steady growth from steps, noise and waves; sites from sampling noise."""

import numpy as np
import pytest

from ai_model_optimizations.memory_monitor.alarms import LevelTracker
from ai_model_optimizations.memory_monitor.allocations import Frame, Site
from ai_model_optimizations.memory_monitor.trend import GrowingSites, GrowthTrend, robust_slope


def slope_low(values: list[float]) -> float:
    slope = robust_slope(list(range(len(values))), values)
    assert slope is not None
    return slope.low


def test_a_straight_line_has_its_slope_exactly() -> None:
    slope = robust_slope([0, 1, 2, 4, 8, 9], [10, 13, 16, 22, 34, 37])
    assert slope is not None
    assert (slope.estimate, slope.low, slope.high, slope.seconds) == (3, 3, 3, 9)


@pytest.mark.parametrize("at", range(1, 10))
def test_one_step_of_any_height_at_any_place_is_no_growth(at: int) -> None:
    assert slope_low([0.0] * at + [1e9] * (10 - at)) <= 0


def test_a_wave_is_no_growth() -> None:
    assert slope_low([0.0, 50, 100, 50] * 3) <= 0


def test_noise_alone_is_rarely_growth() -> None:
    random = np.random.default_rng(7)
    alarms = sum(slope_low(list(random.normal(0, 1, 10))) > 0 for _ in range(2000))
    assert alarms <= 2000 * 0.01


def test_growth_under_noise_of_half_its_size_is_found() -> None:
    random = np.random.default_rng(8)
    found = sum(
        slope_low(list(np.arange(12) + random.normal(0, 0.5, 12))) > 0.5 for _ in range(200)
    )
    assert found >= 190


def test_an_outlier_does_not_bend_the_slope() -> None:
    slope = robust_slope(list(range(12)), [0, 1, 2, 3, 4, 500, 6, 7, 8, 9, 10, 11])
    assert slope is not None and slope.estimate == pytest.approx(1, abs=0.01)


def test_equal_moments_do_not_divide_by_zero() -> None:
    assert robust_slope([1.0] * 10, list(range(10))) is None
    assert robust_slope([1.0, 2.0], [1, 2]) is None


def test_the_warm_up_does_not_count() -> None:
    trend = GrowthTrend(window=6, warmup=4)
    for i in range(4):
        trend.add(i, i * 10**9)
    for i in range(4, 9):
        trend.add(i, 7)
        assert trend.slope() is None
    trend.add(9, 7)
    slope = trend.slope()
    assert slope is not None and slope.estimate == 0


def site(name: str, live_bytes: int, error: float = 1.0) -> Site:
    return Site((Frame(name, 1, "f"),), live_bytes, 1, error, 10)


def test_only_sites_that_grow_every_time_and_beyond_their_error_are_named() -> None:
    sites = GrowingSites(3)
    for step in range(4):
        assert sites.growing() == []
        sites.add(
            [
                site("leak.py", 1000 * (step + 1)),
                site("flat.py", 5000),
                site("wave.py", 1000 * (step % 2 + 1)),
                site("noise.py", 1000 + step, error=500.0),
            ]
        )
    found = sites.growing()
    assert [str(entry) for entry in found] == ["leak.py:1 (f)"]
    assert (found[0].live_bytes, found[0].grown_bytes) == (4000, 3000)


def test_a_new_site_that_keeps_growing_is_named() -> None:
    sites = GrowingSites(2)
    for size in (0, 1000, 2000):
        sites.add([site("new.py", size)] if size else [])
    assert [str(entry) for entry in sites.growing()] == ["new.py:1 (f)"]


def test_levels_have_hysteresis() -> None:
    levels = LevelTracker()
    seen = []
    for ratio in (0.5, 0.92, 0.99, 1.01, 0.99, 0.96, 0.94, 0.86, 0.85, 1.2):
        levels.update(ratio, 0.0, 100.0)
        seen.append(levels.level)
    assert seen == [
        "normal",
        "elevated",
        "elevated",
        "high",
        "high",
        "high",
        "elevated",
        "elevated",
        "normal",
        "critical",
    ]


def test_hovering_at_the_threshold_alarms_once_and_again_after_the_cooldown() -> None:
    levels = LevelTracker()
    alarms = [levels.update(1.0 + 0.01 * (-1) ** i, float(i), 50.0) for i in range(120)]
    assert [i for i, alarm in enumerate(alarms) if alarm] == [0, 50, 100]


def test_a_higher_level_alarms_at_once() -> None:
    levels = LevelTracker()
    assert levels.update(1.0, 0.0, 1000.0)
    assert not levels.update(1.05, 1.0, 1000.0)
    assert levels.update(1.3, 2.0, 1000.0)
    assert not levels.update(1.3, 3.0, 1000.0)
