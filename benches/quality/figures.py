"""From what each request felt to a line of the table. Plain arithmetic; times are in the workload's own seconds."""

import statistics

WARM_UP = 0.1  # the share of requests at the beginning that is not counted, as in the lab


def nearest_rank(values, share):
    """The smallest value that at least this share does not exceed; infinite values are the last."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    # Of a whole number of hundredths, so that no rounding of binary fractions moves the rank.
    rank = -(-round(share * 100) * len(ordered) // 100)
    return ordered[max(rank, 1) - 1]


def summary(performance, slow, slo):
    """The figures of one performance; `told` is in the order in which requests ended."""
    told = sorted(performance["told"], key=lambda it: it["due"])
    counted = told[int(len(told) * WARM_UP) :]
    # One that has no first token had waited this long when it was given up, and would have waited longer.
    answered = [it for it in counted if it["ttft"] is not None or "waited" in it]
    waits = [(it["ttft"] if it["ttft"] is not None else it["waited"]) / slow for it in answered]
    apart = [it["tpot"] / slow for it in counted if it.get("tpot") is not None]
    prompts = sum(it.get("prompt") or 0 for it in counted)
    cached = sum(it.get("cached") or 0 for it in counted)
    failures = [it["ended"] for it in counted if it["ended"] not in ("complete", "given up")]
    seconds = performance["seconds"]
    return {
        "attained": sum(meets(it, slow, slo) for it in counted) / len(counted),
        "ttft mean": statistics.fmean(waits) if waits else float("nan"),
        "ttft p50": nearest_rank(waits, 0.5),
        "ttft p90": nearest_rank(waits, 0.9),
        "ttft p99": nearest_rank(waits, 0.99),
        "tpot p99": nearest_rank(apart, 0.99),
        "errors": len(failures),
        "unfinished": sum(it["ended"] == "given up" for it in counted),
        "hits": cached / prompts if prompts else float("nan"),
        "router cpu": 1e3 * performance["router_cpu"] / len(told),
        "requests": len(counted),
        "uneven": max(performance["shares"]) / max(statistics.fmean(performance["shares"]), 1.0),
        # Of the stage, not of the router: what says whether the figures can be trusted.
        "late": nearest_rank([it["late"] for it in told], 0.99),
        "busy": performance["busy"],
        "ours": (performance["router_cpu"] + performance["pods_cpu"] + performance["player_cpu"]) / seconds,
        "failure": failures[-1] if failures else None,
    }


def meets(request, slow, slo):
    """Whether it was answered to the end within both promises."""
    if request["ended"] != "complete" or request["ttft"] is None:
        return False
    return request["ttft"] / slow <= slo[0] and (request.get("tpot") or 0.0) / slow <= slo[1]


COLUMNS = [
    ("attained", "{:.3f}"),
    ("ttft mean", "{:.2f}"),
    ("ttft p50", "{:.2f}"),
    ("ttft p90", "{:.2f}"),
    ("ttft p99", "{:.2f}"),
    ("tpot p99", "{:.0f}"),
    ("hits", "{:.3f}"),
    ("errors", "{:.0f}"),
    ("unfinished", "{:.0f}"),
    ("uneven", "{:.2f}"),
    ("router cpu", "{:.1f}"),
]
SPREAD = {"attained", "ttft mean", "ttft p90", "ttft p99"}
HEADS = {"ttft mean": "TTFT mean, s", "ttft p50": "p50", "ttft p90": "p90", "ttft p99": "p99", "tpot p99": "TPOT p99, ms",
         "uneven": "most/mean requests of a pod", "router cpu": "router's CPU, ms a request"}


def cell(rounds, name, form):
    scale = 1e3 if name == "tpot p99" else 1
    values = [scale * it[name] for it in rounds]
    middle = form.format(statistics.median(values))
    if name not in SPREAD or len(values) == 1:
        return middle
    return f"{middle} ({form.format(min(values))}–{form.format(max(values))})"


def table(results):
    """A table of `router -> list of summaries`, or a reason why there are none."""
    lines = ["| router | " + " | ".join(HEADS.get(name, name) for name, _ in COLUMNS) + " |"]
    lines.append("|---|" + "---:|" * len(COLUMNS))
    for router, rounds in results.items():
        if isinstance(rounds, str):
            lines.append(f"| {router} | " + rounds.replace("|", "/") + " |" + " |" * (len(COLUMNS) - 1))
        else:
            lines.append(f"| {router} | " + " | ".join(cell(rounds, *column) for column in COLUMNS) + " |")
    return "\n".join(lines)
