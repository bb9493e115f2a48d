"""One performance: simulated pods, one router before them, one audience; and what each cost in CPU time.

Everything is started anew for each performance, so that no router inherits another's caches, and only what was started
here is ended here.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from asking import answers
from routers import MODEL, Unavailable

PODS = 8
FIRST_PORT = 19_000  # below the ports that Linux hands out by itself (32768 and up)
READY_WITHIN = 60  # seconds; vllm-router and smg take one or two
TICKS = os.sysconf("SC_CLK_TCK")


class Program:
    """A process group of our own, and its log."""

    def __init__(self, command, log):
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    def cpu(self):
        """CPU seconds of all processes of the group so far."""
        ticks = 0
        for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # After the name, which may hold anything: state, parent, group, ...; the times are fields 14 to 17.
                fields = entry.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.process.pid:
                    ticks += sum(int(field) for field in fields[11:15])
        return ticks / TICKS

    def last_words(self):
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it said nothing"

    def ended(self):
        return self.process.poll() is not None

    def end(self):
        for kind in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5)
                if kind == signal.SIGKILL:
                    return
        self.process.wait(timeout=5)


def machine_cpu():
    """Busy and all CPU seconds of the machine since it started."""
    fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS, sum(fields) / TICKS


class Stage:
    def __init__(self, args, repository, logs):
        self.repository, self.logs = repository, logs
        self.latest = args.latest
        folder = pathlib.Path(args.programs or repository / "target" / "release")
        self.binary, self.player = str(folder / "tidegate"), str(folder / "examples" / "quality-play")

    def perform(self, router, play, label):
        """Plays through one router; what each request felt and what it took."""
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
            folder = pathlib.Path(folder)
            pods, urls = self.start_pods(play, label, ends)
            port = FIRST_PORT + 100
            command = router.command(self, play, urls, port, folder)
            program = self.start(command, f"{label}-router", ends)
            until_answers(program, f"http://127.0.0.1:{port}")
            time.sleep(router.settle)
            clocks = time.monotonic(), machine_cpu(), program.cpu(), pods.cpu()
            told, player_cpu = self.play(play, port, label)
            busy, whole = (after - then for after, then in zip(machine_cpu(), clocks[1], strict=True))
            return {
                "told": told,
                "seconds": time.monotonic() - clocks[0],
                "router_cpu": program.cpu() - clocks[2],
                "pods_cpu": pods.cpu() - clocks[3],
                "player_cpu": player_cpu,
                "busy": busy / whole,
                "shares": [served(url) for url in urls],
            }

    def start_pods(self, play, label, ends):
        first = FIRST_PORT + 1
        command = [self.binary, "sim", "--pods", str(PODS), "--port", str(first), "--model", MODEL]
        command += ["--profile", play.profile, "--time-scale", str(play.slow)]
        pods = self.start(command, f"{label}-pods", ends)
        urls = [f"http://127.0.0.1:{first + nth}" for nth in range(PODS)]
        for url in urls:
            until(pods, lambda url=url: answers(url + "/health"))
        return pods, urls

    def play(self, play, port, label):
        command = [self.player, "--to", f"127.0.0.1:{port}", "--model", MODEL, *play.flags()]
        said = self.logs / f"{label}-player"
        before = os.times()
        with said.open("wb") as out:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=out, check=False)
        after = os.times()
        if done.returncode:
            raise Unavailable(f"the player failed: {said.read_text().strip()[-200:]}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return [json.loads(line) for line in done.stdout.splitlines()], cpu

    def start(self, command, name, ends):
        try:
            program = Program(command, self.logs / name)
        except OSError as error:
            raise Unavailable(f"it does not start: {error}") from error
        ends.callback(program.end)
        return program


def until_answers(program, base):
    body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "ready?"}]}
    until(program, lambda: answers(base + "/v1/chat/completions", json.dumps(body).encode()))


def until(program, condition):
    end = time.monotonic() + READY_WITHIN
    while not condition():
        if program.ended():
            raise Unavailable(f"it ended at once: {program.last_words()}")
        if time.monotonic() > end:
            raise Unavailable(f"no answer within {READY_WITHIN} s: {program.last_words()}")
        time.sleep(0.1)


def served(url):
    """How many requests a pod has answered to their end."""
    with urllib.request.urlopen(url + "/sim/state", timeout=10) as response:
        return json.load(response)["served"]
