"""Numbers as people read them: thousands separated, few digits, one style everywhere."""

from __future__ import annotations

import math

__all__ = [
    "amount",
    "count",
    "percent",
    "ratio",
    "seconds",
    "significant",
    "value",
    "with_error",
]


def count(n: int) -> str:
    """A whole number with thousands separated.

    >>> count(1204874)
    '1,204,874'
    """
    return f"{n:,}"


def amount(x: float) -> str:
    """A whole number in full, any other to four figures.

    >>> amount(84934476.0), amount(428.9774)
    ('84,934,476', '429')
    """
    return f"{x:,.0f}" if x == int(x) else f"{x:,.4g}"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction of one as a percentage.

    >>> percent(0.9675)
    '96.8 %'
    """
    return f"{100 * fraction:.{digits}f} %"


def ratio(large: float, small: float) -> str:
    """How many times `small` goes into `large`.

    >>> ratio(903168, 200)
    '4,516×'
    >>> ratio(3, 2)
    '1.5×'
    """
    if small == 0:
        return "–"
    found = large / small
    return f"{found:,.0f}×" if found >= 20 else f"{found:.3g}×"


def seconds(duration: float) -> str:
    """A duration, in the unit that suits it.

    >>> seconds(0.0042), seconds(3.21), seconds(203.4)
    ('4.2 ms', '3.2 s', '3 min 23 s')
    """
    if duration < 1:
        return f"{1000 * duration:.2g} ms" if duration < 0.1 else f"{1000 * duration:.0f} ms"
    if duration < 100:
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest} s"


def significant(x: float, digits: int = 3) -> str:
    """A real number at `digits` significant digits, with a true minus sign and exponent.

    >>> significant(0.12345), significant(-3.2e-17), significant(0.0)
    ('0.123', '−3.20 × 10⁻¹⁷', '0')
    """
    if not math.isfinite(x):
        return {math.inf: "∞", -math.inf: "−∞"}.get(x, "not a number")
    if x == 0:
        return "0"
    sign = "−" if x < 0 else ""
    size = abs(x)
    exponent = math.floor(math.log10(size))
    if -4 < exponent < 6:
        decimals = max(0, digits - 1 - exponent)
        return f"{sign}{size:,.{decimals}f}"
    mantissa, power = f"{size:.{digits - 1}e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{sign}{mantissa} × 10{raised}"


def with_error(x: float, error: float) -> str:
    """A value with its standard error in units of its last digits, as crystallographers write.

    >>> with_error(8.47843, 0.00032), with_error(1234.5, 210.0), with_error(2.0, 0.0)
    ('8.47843(32)', '1,230(210)', '2')
    """
    if not (math.isfinite(error) and error > 0 and math.isfinite(x)):
        return f"{x:.9g}".replace("-", "−") if error == 0 else f"{significant(x)}(?)"
    place = math.floor(math.log10(error)) - 1
    digits = round(error / 10.0**place)
    if digits >= 100:
        place, digits = place + 1, 10
    if place >= 0:
        shown = round(x / 10.0**place) * 10**place
        return f"{shown:,}({digits * 10**place})".replace("-", "−")
    if place < -12 or abs(x) >= 1e9:
        return f"{significant(x, 6)}({significant(error, 2)})"
    return f"{x:,.{-place}f}({digits})".replace("-", "−")


def value(x: object) -> str:
    """Any JSON value in words: how a claim's expected and measured values are shown.

    >>> value({"shared": 10, "unshared": 9000}), value(True), value([1, 2.5])
    ('shared: 10 · unshared: 9,000', 'yes', '1, 2.50')
    """
    match x:
        case bool():
            return "yes" if x else "no"
        case int():
            return count(x)
        case float():
            return significant(x)
        case None:
            return "–"
        case dict():
            return " · ".join(f"{str(k).replace('_', ' ')}: {value(v)}" for k, v in x.items())
        case list() | tuple():
            return ", ".join(value(v) for v in x)
        case _:
            return str(x)
