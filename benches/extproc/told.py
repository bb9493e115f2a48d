"""From what was measured to a table: medians of the rounds, what a picker adds, slopes, and the targets."""

import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "speed"))

from table import cell, medians, table


def quantile(values, share):
    """The smallest of `values` that at least this share of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def per(cpu, many):
    """Microseconds each."""
    return cpu / many * 1e6 if many else None


def slope(few, many, between):
    """What each of the `between` more events costs."""
    return (many - few) / between if few is not None and many is not None else None


def less(figures, other, name):
    """This figure, less the same of another row; nothing if either is missing."""
    if not isinstance(other, dict) or figures.get(name) is None or other.get(name) is None:
        return None
    return figures[name] - other[name]


# Title of a column, how it is read from a row's figures and those of Envoy alone, and how it is written.
LATENCY = [
    ("2 KB at {rate:g}/s p50", lambda it, _: it.get("calm p50"), "{:.0f}"),
    ("p99", lambda it, _: it.get("calm p99"), "{:.0f}"),
    ("added p50", lambda it, alone: less(it, alone, "calm p50"), "{:+.0f}"),
    ("p99", lambda it, alone: less(it, alone, "calm p99"), "{:+.0f}"),
    ("an event, added p50", lambda it, alone: less(it, alone, "long way p50"), "{:+.0f}"),
    ("p99", lambda it, alone: less(it, alone, "long way p99"), "{:+.0f}"),
    ("220 KB at 100/s p50", lambda it, _: it.get("large p50"), "{:.0f}"),
    ("p99", lambda it, _: it.get("large p99"), "{:.0f}"),
    ("added p50", lambda it, alone: less(it, alone, "large p50"), "{:+.0f}"),
    ("p99", lambda it, alone: less(it, alone, "large p99"), "{:+.0f}"),
]  # fmt: skip

CPU = [
    ("a request at {rate:g}/s", lambda it, _: it.get("calm cpu"), "{:.0f}"),
    ("flat out", lambda it, _: it.get("flat cpu"), "{:.0f}"),
    ("requests/s, flat out", lambda it, _: it.get("flat rate"), "{:,.0f}"),
    ("Envoy's own, flat out", lambda it, _: it.get("flat envoy cpu"), "{:.0f}"),
    ("an event at 1,000/s", lambda it, _: it.get("event cpu"), "{:.1f}"),
    ("flat out", lambda it, _: it.get("dense event cpu"), "{:.1f}"),
    ("Envoy's own", lambda it, _: it.get("dense event envoy cpu"), "{:.1f}"),
    ("a 220 KB request", lambda it, _: it.get("large cpu"), "{:.0f}"),
    ("without Envoy: a request", lambda it, _: it.get("direct request cpu"), "{:.1f}"),
    ("an event", lambda it, _: it.get("direct event cpu"), "{:.2f}"),
]  # fmt: skip


def targets(results, idle):
    """Each target, what was measured, and whether it is met."""
    ours = results.get("tidegate")
    ours = ours if isinstance(ours, dict) else {}
    over = less(ours, results.get("nothing"), "calm p50")
    rows = [
        ("2 KB p50 over a picker that does nothing, ms", over / 1e3 if over is not None else None, 0.15, "{:.3f}"),
        ("CPU a small request, flat out, us", ours.get("flat cpu"), 150, "{:.0f}"),
        ("CPU an event, flat out, us", ours.get("dense event cpu"), 5, "{:.1f}"),
        ("220 KB at 100/s, p99 of a decision, ms", ours.get("large decided p99"), 5, "{:.2f}"),
        ("100 idle pods, cores", idle, 0.05, "{:.3f}"),
    ]  # fmt: skip
    lines = ["| | target | measured | |", "|---|---:|---:|---|"]
    for what, measured, target, form in rows:
        met = "" if measured is None else "met" if measured <= target else "**missed**"
        lines.append(f"| {what} | <= {target:g} | {cell(measured, form)} | {met} |")
    return "\n".join(lines)
