"""The text around the tables: how they were made, on what, and what they do not show."""

import os
import pathlib
import platform
import shlex
import statistics
import sys

import figures
from routers import ROUTERS
from stage import PODS

# Above this the pods and the audience may be late because of the machine, and the figures say more of it than of routers.
BUSY = 0.6
LATE_MS = 50


def report(args, plays, versions, results):
    parts = [
        "# Routing quality over real sockets",
        f"`{command()}`, {args.rounds} round{'s' * (args.rounds > 1)} with a seed each, interleaved; on {machine()}.",
        f"{PODS} pods of `tidegate sim` behind one router at a time, everything started anew for each. The first tenth of the "
        "requests is not counted. Medians of the rounds, and the least and the most of them in brackets.",
        routers(args, versions),
    ]
    for play in plays:
        parts += of_play(play, results[play.name])
    parts.append(caveats(plays, args))
    return "\n\n".join(parts) + "\n"


def of_play(play, results):
    played = {name: rounds for name, rounds in results.items() if not isinstance(rounds, str)}
    parts = [
        f"## {play.name}: {play.what}",
        f"{play.rate:g} requests a second for {play.minutes:g} minutes, {play.profile}, promised: first token within "
        f"{play.slo[0]:g} s, then {1e3 * play.slo[1]:.0f} ms a token." + slowed(play) + made_up(play),
        figures.table(results),
    ]
    if played:
        parts += [shows(played), trust([it for rounds in played.values() for it in rounds])]
    return parts


def slowed(play):
    if play.slow == 1:
        return ""
    return f" All these times, and those below, are on the pods' clock: the wall's runs {play.slow:g} times as fast."


def made_up(play):
    return " The recorded trace was not there: the traffic is made up, with about its lengths and its sharing." if play.made_up else ""


def shows(played):
    """What the table shows, in a sentence that follows from the numbers."""

    def middle(name, figure):
        return statistics.median(it[figure] for it in played[name])

    ranked = sorted(played, key=lambda name: -middle(name, "attained"))
    listed = ", ".join(f"{name} {middle(name, 'attained'):.3f}" for name in ranked)
    soonest = min(played, key=lambda name: middle(name, "ttft p90"))
    text = f"Attained, best first: {listed}. The soonest p90 to the first token has {soonest}."
    if len(ranked) > 1:
        first, second = ([it["attained"] for it in played[name]] for name in ranked[:2])
        if len(first) > 1 and min(first) <= max(second):
            text += " The rounds of the first two overlap: call them equal."
    return text


def trust(rounds):
    busiest, ours = max(it["busy"] for it in rounds), max(it["ours"] for it in rounds)
    late = 1e3 * max(it["late"] for it in rounds)
    text = (
        f"At most {ours:.2f} cores were used by pods, router and audience together; the machine was busy to {busiest:.0%} at most; "
        f"99 % of requests left within {late:.0f} ms of when they were due."
    )
    if busiest > BUSY or late > LATE_MS:
        text += f" **That is too much** (bounds: {BUSY:.0%} and {LATE_MS} ms): repeat on an idle machine, or with a higher `--slow`."
    return text


def routers(args, versions):
    lines = [f"- {name}: {ROUTERS[name].what}; {versions.get(name, 'not installed')}" for name in args.routers]
    return "\n".join(lines)


def caveats(plays, args):
    lines = [
        "The pods are simulated: vLLM's scheduler and cache with step times fitted to measurements, no GPU. What a router sees "
        "of them is real: sockets, streams, metrics, refusals.",
        "A prompt is one user message of made-up words, four bytes a token. Answers do not come back in later turns.",
        "One router, eight pods, a few minutes: no failures, no second gateway, no restarts.",
        "Other routers run with their defaults and `cache_aware`; tuned by those who know them they may do better.",
        "A router's CPU has the log lines in it that it writes by default, to a file.",
    ]
    if "smg" in args.routers:
        lines.append(
            "smg takes pods for cold in their first minute and sends them requests for that alone, so that minute passes before "
            "the traffic begins. Caches are empty then for everybody."
        )
    if any(play.slow != 1 for play in plays):
        lines.append(
            "Where the pods' clock is slower than the wall's, Tidegate reads metrics that much more slowly to make up for it; other "
            "periods inside the routers (health checks, eviction, polls) are as their projects set them."
        )
    if any(play.workload == "w1" for play in plays):
        lines.append("All of w1's prompts begin with one system prompt, so a share of the hits is everybody's.")
    return "## What it does not show\n\n" + "\n".join(f"- {line}" for line in lines)


def machine():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()} {platform.release()}"


def command():
    """How it was called, without what names places on this machine."""
    places = ("--traces", "--logs", "--results", "--programs", "--no-build")
    kept, skip = [], False
    for word in sys.argv[1:]:
        named = word.split("=")[0]
        if not skip and named not in places:
            kept.append(shlex.quote(word))
        skip = not skip and named in places and "=" not in word and named != "--no-build"
    return " ".join(["benches/quality/run", *kept])
