"""The rate by hand and as others compute it."""

import math

import pytest

from clipkit.optim import Settings, lr_at

STEPS = 110


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.1),
        (4, 0.5),
        (9, 1.0),
        (10, 1.0),
        (35, 0.2 + 0.8 * (2 + math.sqrt(2)) / 4),
        (60, 0.6),
        (110, 0.2),
        (999, 0.2),
    ],
)
def test_a_cosine_by_hand(step: int, lr: float) -> None:
    assert lr_at(Settings(lr=1.0, lr_end=0.2, warmup=10), step, STEPS) == pytest.approx(lr)


def test_a_cosine_is_open_clips() -> None:
    """`cosine_lr` of open_clip_train/scheduler.py, which knows no lr_end."""
    cfg = Settings(lr=3e-4, warmup=7)
    for step in range(STEPS):
        e, es = step - 7, STEPS - 7
        theirs = 3e-4 * (step + 1) / 7 if step < 7 else 0.5 * (1 + math.cos(math.pi * e / es)) * 3e-4
        assert lr_at(cfg, step, STEPS) == pytest.approx(theirs)


def test_a_constant_rate_stays_after_its_warmup() -> None:
    cfg = Settings(lr=2.0, warmup=4, schedule="constant")
    assert [lr_at(cfg, step, 5) for step in (0, 3, 4, 99)] == [0.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("step", "linear", "sqrt"),
    [(4, 0.5, 0.5), (9, 1.0, 1.0), (79, 1.0, 1.0), (80, 1.0, 1.0), (85, 0.8, 0.6), (100, 0.2, 0.2), (999, 0.2, 0.2)],
)
def test_wsd_by_hand(step: int, linear: float, sqrt: float) -> None:
    cfg = Settings(lr=1.0, lr_end=0.2, warmup=10, schedule="wsd", cooldown=0.2)
    assert lr_at(cfg, step, 100) == pytest.approx(linear)
    root = Settings(lr=1.0, lr_end=0.2, warmup=10, schedule="wsd", cooldown=0.2, cooldown_shape="sqrt")
    assert lr_at(root, step, 100) == pytest.approx(sqrt)


def test_wsd_with_a_cooldown_is_open_clips_const_cooldown() -> None:
    from open_clip_train.scheduler import const_lr_cooldown

    class Bare:
        param_groups = [{"lr": 0.0}]

    theirs = const_lr_cooldown(Bare(), 3e-4, 7, STEPS, 22, cooldown_power=1.0, cooldown_end_lr=1e-5)
    cfg = Settings(lr=3e-4, warmup=7, schedule="wsd", cooldown=0.2, lr_end=1e-5)
    for step in range(STEPS):
        assert lr_at(cfg, step, STEPS) == pytest.approx(theirs(step))


def test_rsqrt_by_hand() -> None:
    cfg = Settings(lr=1.0, warmup=100, schedule="rsqrt", cooldown=0.1)
    assert [lr_at(cfg, step, 1000) for step in (49, 100, 400, 900)] == pytest.approx([0.5, 1.0, 0.5, 1 / 3])
    assert lr_at(cfg, 950, 1000) == pytest.approx(1 / 6) and lr_at(cfg, 1000, 1000) == 0.0
    whole = Settings(lr=1.0, warmup=0, schedule="rsqrt", cooldown=0.0)
    assert [lr_at(whole, step, 9) for step in (0, 3, 8)] == pytest.approx([1.0, 0.5, 1 / 3])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "rsqrt"])
@pytest.mark.parametrize("steps", [0, 1, 3, 10])
def test_a_run_shorter_than_its_warmup_or_without_one_has_a_rate(steps: int, schedule: str) -> None:
    assert lr_at(Settings(lr=1.0, warmup=10, schedule=schedule), 2, steps) == pytest.approx(0.3)  # type: ignore[arg-type]
    for warmup, step in ((0, 0), (10, 10)):
        assert lr_at(Settings(lr=1.0, warmup=warmup, schedule=schedule), step, steps) == 1.0  # type: ignore[arg-type]
