"""One program at a time between the load and the pods: started, loaded, its CPU time and memory read from /proc.

The proxy has core 0 for itself; the load and the pods share core 1. Only what was started here is ended here.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from asking import answers
from proxies import MODEL, Direct, Unavailable

PODS = 4  # so that there is something to choose
FIRST_POD = 19_300  # below the ports that Linux hands out by itself (32768 and up)
PORT = 19_400
SCRAPED = 20_000  # and as many more as pods are scraped
READY_WITHIN = 60  # seconds; LiteLLM takes twenty, the others one or two
SETTLE = 2  # seconds until each has read its pods
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
FILES = 65_536
PROXY_CORE, LOAD_CORE = "0", "1"


@dataclasses.dataclass
class Step:
    """Some load."""

    name: str
    rate: float = 0.0  # requests a second, Poisson; 0: each of `connections` asks again when it has its answer
    bytes: int = 1_024
    events: int = 0
    pace: int = 0  # microseconds between events
    connections: int = 64
    seconds: float = 2.0

    def flags(self):
        fields = dataclasses.asdict(self)
        del fields["name"]
        return [word for name, value in fields.items() for word in (f"--{name}", str(value))]


class Program:
    """A process group of our own on one core, and its log."""

    def __init__(self, command, core, log):
        self.log = log
        with log.open("wb") as out:
            command = ["taskset", "-c", core, *command]
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    def members(self):
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                # After the name, which may hold anything: state, parent, group, ...
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.process.pid:
                    yield entry, fields

    def cpu(self):
        """CPU seconds of all threads so far: from the scheduler's nanoseconds, which forget threads that ended, or from
        the ticks of user and system time, which do not; whichever is more."""
        seconds = 0
        for entry, fields in self.members():
            nanoseconds = 0
            with contextlib.suppress(OSError):
                for thread in (entry / "task").iterdir():
                    with contextlib.suppress(OSError):
                        nanoseconds += int((thread / "schedstat").read_text().split()[0])
            seconds += max(nanoseconds / 1e9, (int(fields[11]) + int(fields[12])) / TICKS)
        return seconds

    def memory(self):
        """Resident bytes."""
        return sum(int(fields[21]) * PAGE for _, fields in self.members())

    def last_words(self):
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it said nothing"

    def end(self):
        for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=2)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Stage:
    latest = False  # routers in the versions that are pinned

    def __init__(self, programs, install, repository, logs):
        self.binary, self.player = str(programs / "tidegate"), str(programs / "examples" / "speed-play")
        self.install, self.logs = install, logs
        self.page = repository / "tests/fixtures/metrics/vllm-0.32.0-metrics-load0.txt"

    @contextlib.contextmanager
    def pods(self, first, ports, label):
        """Pods on so many ports, all in one process."""
        command = [self.player, "upstream", "--port", str(first), "--ports", str(ports), "--page", str(self.page)]
        program = Program(command, LOAD_CORE, self.logs / f"{label}-pods")
        try:
            until(program, lambda: answers(f"http://127.0.0.1:{first}/health"))
            yield program, [f"http://127.0.0.1:{first + nth}" for nth in range(ports)]
        finally:
            program.end()

    @contextlib.contextmanager
    def proxy(self, proxy, pods, label):
        """The proxy's program, ready, and where it listens. For the pods themselves there is no program."""
        if isinstance(proxy, Direct):
            yield None, pods[0].removeprefix("http://")
            return
        with tempfile.TemporaryDirectory() as folder:
            command = proxy.command(self, pods, PORT, pathlib.Path(folder))
            try:
                program = Program(command, PROXY_CORE, self.logs / label)
            except OSError as error:
                raise Unavailable(f"it does not start: {error}") from error
            try:
                body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "ready?"}]}
                url = f"http://127.0.0.1:{PORT}/v1/chat/completions"
                until(program, lambda: answers(url, json.dumps(body).encode()))
                time.sleep(SETTLE)
                yield program, f"127.0.0.1:{PORT}"
            finally:
                program.end()

    def load(self, step, address, program):
        """What one step felt and took."""
        command = ["taskset", "-c", LOAD_CORE, self.player, "load", "--to", address, *step.flags()]
        clock, cpu = time.monotonic(), program.cpu() if program else 0
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        cpu = (program.cpu() if program else 0) - cpu
        if done.returncode:
            raise Unavailable(f"the load failed: {done.stderr.strip()[-200:]}")
        return json.loads(done.stdout) | {"cpu": cpu, "wall": time.monotonic() - clock}

    def hold(self, streams, address, program):
        """Resident bytes while so many streams are open, and how many really are."""
        # Long enough that nothing is said meanwhile: only what is kept costs.
        flags = ["--hold", str(streams), "--events", "3", "--pace", "600000000"]
        command = ["taskset", "-c", LOAD_CORE, self.player, "load", "--to", address, *flags]
        load = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            told = json.loads(load.stdout.readline() or "{}")
            time.sleep(0.5)
            return {"open": told.get("open", 0), "failure": told.get("failure"), "bytes": program.memory()}
        finally:
            load.stdin.close()
            load.wait(timeout=20)


def allow_files():
    """As many open files as ten thousand streams need, or as many as we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, max(hard, FILES)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def until(program, condition):
    end = time.monotonic() + READY_WITHIN
    while not condition():
        if program.process.poll() is not None:
            raise Unavailable(f"it ended at once: {program.last_words()}")
        if time.monotonic() > end:
            raise Unavailable(f"no answer within {READY_WITHIN} s: {program.last_words()}")
        time.sleep(0.05)
