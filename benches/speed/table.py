"""From what the steps told to a table: medians of the rounds, what a proxy adds to the direct way, and the targets."""

import statistics

NOTHING = "-"


def medians(rounds):
    """Round by round the same figures: the median of each, of those rounds that have it."""
    names = {name for told in rounds for name in told}
    values = {name: [told[name] for told in rounds if told.get(name) is not None] for name in names}
    return {name: statistics.median(found) for name, found in values.items() if found}


def figures(step, told):
    """The figures of one performance of one step, named after it. Microseconds and requests a second."""
    done, events = told["done"], told["events"]
    found = {
        "cpu": told["cpu"] / done * 1e6 if done else None,
        "p50": told["whole"]["p50"],
        "p99": told["whole"]["p99"],
        "late": told["late"]["p99"],
        "failed": told["failed"],
    }
    if step.events:
        found |= {
            "event cpu": told["cpu"] / events * 1e6 if events else None,
            "way p50": told["way"]["p50"],
            "way p99": told["way"]["p99"],
            "first p50": told["first"]["p50"],
            "first p99": told["first"]["p99"],
        }
    if not step.rate:
        found |= {"rate": done / told["seconds"], "used": told["cpu"] / told["wall"]}
    return {f"{step.name} {name}": value for name, value in found.items()}


def added(figure, direct, name):
    """What this proxy adds to the direct way."""
    if figure.get(name) is None or direct.get(name) is None:
        return None
    return figure[name] - direct[name]


# Title of the column, how it is read from a proxy's figures and the direct ones, and how it is written.
COLUMNS = [
    ("CPU us a request, 500/s", lambda it, _: it.get("1K500 cpu"), "{:.0f}"),
    ("2,000/s", lambda it, _: it.get("1K2000 cpu"), "{:.0f}"),
    ("5,000/s", lambda it, _: it.get("1K5000 cpu"), "{:.0f}"),
    ("flat out", lambda it, _: it.get("1Kmax cpu"), "{:.1f}"),
    ("requests/s of one core", lambda it, _: it.get("1Kmax rate"), "{:,.0f}"),
    ("core used", lambda it, _: it.get("1Kmax used"), "{:.0%}"),
    ("CPU us, 16 KB", lambda it, _: it.get("16K cpu"), "{:.0f}"),
    ("CPU us, 220 KB", lambda it, _: it.get("220K cpu"), "{:.0f}"),
    ("CPU us an event", lambda it, _: it.get("stream event cpu"), "{:.1f}"),
]  # fmt: skip

DELAYS = [
    ("500/s p50", lambda it, d: added(it, d, "1K500 p50"), "{:+.0f}"),
    ("p99", lambda it, d: added(it, d, "1K500 p99"), "{:+.0f}"),
    ("2,000/s p50", lambda it, d: added(it, d, "1K2000 p50"), "{:+.0f}"),
    ("p99", lambda it, d: added(it, d, "1K2000 p99"), "{:+.0f}"),
    ("5,000/s p50", lambda it, d: added(it, d, "1K5000 p50"), "{:+.0f}"),
    ("p99", lambda it, d: added(it, d, "1K5000 p99"), "{:+.0f}"),
    ("16 KB p50", lambda it, d: added(it, d, "16K p50"), "{:+.0f}"),
    ("p99", lambda it, d: added(it, d, "16K p99"), "{:+.0f}"),
    ("220 KB p50", lambda it, d: added(it, d, "220K p50"), "{:+.0f}"),
    ("p99", lambda it, d: added(it, d, "220K p99"), "{:+.0f}"),
    ("an event p50", lambda it, d: added(it, d, "stream way p50"), "{:+.0f}"),
    ("p99", lambda it, d: added(it, d, "stream way p99"), "{:+.0f}"),
    ("first event, alone, p50", lambda it, d: added(it, d, "alone first p50"), "{:+.0f}"),
    ("p99", lambda it, d: added(it, d, "alone first p99"), "{:+.0f}"),
]  # fmt: skip

MEMORY = [
    ("idle MiB", lambda it, _: it["idle"] / 2**20, "{:.1f}"),
    ("at 1,000 streams MiB", lambda it, _: it["few"] / 2**20, "{:.1f}"),
    ("KiB a stream", lambda it, _: per_stream(it, "few"), "{:.1f}"),
    ("at {most:,} streams MiB", lambda it, _: it["most"] / 2**20, "{:.1f}"),
    ("KiB a stream", lambda it, _: per_stream(it, "most"), "{:.1f}"),
]  # fmt: skip


def per_stream(it, which):
    streams = it[f"{which} open"]
    return (it[which] - it["idle"]) / streams / 1024 if streams else None


def table(columns, results, direct, **words):
    """One row a proxy; a proxy that could not be measured is a row that says why."""
    lines = ["| | " + " | ".join(title.format(**words) for title, _, _ in columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, found in results.items():
        if isinstance(found, str):
            cells = [found] + [""] * (len(columns) - 1)
        else:
            cells = [cell(read(found, direct), form) for _, read, form in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(value, form):
    return NOTHING if value is None else form.format(value)


def ratio(results, ours, theirs, name):
    """Our figure for each one of theirs; nothing if either is missing."""
    one, other = (results.get(who) for who in (ours, theirs))
    if not isinstance(one, dict) or not isinstance(other, dict) or not one.get(name) or not other.get(name):
        return None
    return one[name] / other[name]


def targets(results, direct, memory, scraped):
    """Each target, what was measured, and whether it is met."""
    ours = results.get("tidegate")
    ours = ours if isinstance(ours, dict) else {}
    kept = memory.get("tidegate")
    kept = kept if isinstance(kept, dict) else None
    against = lambda theirs, name: ratio(results, "tidegate", theirs, name)
    milliseconds = added(ours, direct, "220K p50")
    rows = [
        ("small whole request, CPU, flat out, of nginx's", against("nginx", "1Kmax cpu"), 1.5, "{:.2f}"),
        ("the same of Envoy's", against("envoy", "1Kmax cpu"), 0.4, "{:.2f}"),
        ("the same of vllm-router's", against("vllm-router", "1Kmax cpu"), 0.45, "{:.2f}"),
        ("an event, CPU, of nginx's", against("nginx", "stream event cpu"), 1.5, "{:.2f}"),
        ("the same of vllm-router's", against("vllm-router", "stream event cpu"), 0.65, "{:.2f}"),
        ("220 KB prompt adds, ms", milliseconds / 1e3 if milliseconds is not None else None, 2, "{:.2f}"),
        ("5,000/s adds at p99, us", added(ours, direct, "1K5000 p99"), 300, "{:.0f}"),
        ("first event, alone, adds at p99, ms (a delayed ACK is 40)", thousandth(added(ours, direct, "alone first p99")), 5, "{:.2f}"),
        ("idle, MiB", kept and kept["idle"] / 2**20, 25, "{:.1f}"),
        ("an open stream, KiB", kept and per_stream(kept, "most"), 20, "{:.1f}"),
        ("1,000 pods read each second, cores", scraped.get(1_000), 0.1, "{:.3f}"),
    ]  # fmt: skip
    lines = ["| | target | measured | |", "|---|---:|---:|---|"]
    for what, most, target, form in [(what, most, target, form) for what, most, target, form in rows]:
        met = "" if most is None else "met" if most <= target else "**missed**"
        lines.append(f"| {what} | <= {target:g} | {cell(most, form)} | {met} |")
    return "\n".join(lines)


def thousandth(value):
    return None if value is None else value / 1e3
