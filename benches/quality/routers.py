"""The routers that are compared: how each is installed, started and asked for its version.

Other people's routers come from PyPI, each in a virtual environment of its own, outside of the repository. They run with
their own defaults and the policy that they recommend for shared prefixes. Versions are pinned so that a table can be made
again; `--latest` takes what is newest.
"""

import os
import pathlib
import subprocess
import sys

MODEL = "qwen2.5-7b"
SETTLE = 2  # seconds between the first answer and the first request that counts: by then each has read all pods


class Unavailable(Exception):
    """Why a router has no figures."""


def cache_folder():
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "tidegate-quality"


class Ours:
    """`tidegate serve` with one policy."""

    settle = SETTLE

    def __init__(self, policy, what, scorers=()):
        self.policy, self.what, self.scorers = policy, what, scorers

    def prepare(self, stage):
        told = run([stage.binary, "--version"]).removeprefix("tidegate").strip()
        try:
            commit = run(["git", "-C", str(stage.repository), "describe", "--always", "--dirty"])
        except Unavailable:
            return told
        return f"{told} ({commit})"

    def command(self, stage, play, pods, port, folder):
        scorers = "".join(f"\n    - {{ name: {name}, weight: {weight} }}" for name, weight in self.scorers)
        endpoints = "".join(f"\n      - {{ url: \"{pod}\" }}" for pod in pods)
        # The pods live slower than in life, so they are read more slowly too: as often in each of their own seconds.
        interval = f"{round(250 * play.slow)}ms"
        config = folder / "tidegate.yaml"
        config.write_text(
            f"listeners:\n  - {{ name: openai, address: 127.0.0.1:{port} }}\n"
            f"admin: {{ address: 127.0.0.1:{port + 1} }}\n"
            f"pools:\n  - name: pods\n    engine: vllm\n    metrics: {{ interval: {interval} }}\n    endpoints:{endpoints}\n"
            f"models:\n  - {{ modelName: {MODEL}, poolRef: pods }}\n"
            f"scheduler:\n  policy: {self.policy}\n" + (f"  scorers:{scorers}\n" if scorers else "")
        )
        return [stage.binary, "serve", "--config", str(config)]


class Theirs:
    """A router from PyPI."""

    def __init__(self, package, version, what, launch, settle=SETTLE):
        self.package, self.version, self.what, self.launch, self.settle = package, version, what, launch, settle

    def prepare(self, stage):
        wanted = self.package if stage.latest else f"{self.package}=={self.version}"
        home = cache_folder() / (self.package if stage.latest else wanted.replace("==", "-"))
        python = home / "bin" / "python"
        if not python.exists():
            run([sys.executable, "-m", "venv", str(home)])
        if stage.latest or not (home / "bin" / self.package).exists():
            run([str(python), "-m", "pip", "install", "--quiet", "--upgrade", wanted])
        ask = f"import importlib.metadata as it; print(it.version('{self.package}'))"
        self.home = home
        return run([str(python), "-c", ask])

    def command(self, stage, play, pods, port, folder):
        del stage, play, folder
        listen = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(port + 1)]
        program = [str(self.home / "bin" / self.package), *self.launch]
        return [*program, *listen, "--policy", "cache_aware", "--worker-urls", *pods]


def run(command):
    """What a command prints; why it failed if it did."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise Unavailable(f"`{pathlib.Path(command[0]).name}` failed: {lines[-1]}")
    return done.stdout.strip()


GIE = [("queue-scorer", 2), ("kv-cache-utilization-scorer", 2), ("prefix-cache-scorer", 3)]

ROUTERS = {
    "round-robin": Ours("round-robin", "Tidegate, in turn"),
    "weighted": Ours("weighted", "Tidegate, the Inference Extension's scorers: queue 2, KV cache 2, prefix 3", GIE),
    "least-cost": Ours("least-cost", "Tidegate's default"),
    "sglang-router": Theirs("sglang-router", "0.3.2", "SGLang's router, cache_aware", ["launch"]),
    "vllm-router": Theirs("vllm-router", "0.1.17", "vLLM's router, cache_aware", []),
    # For a minute it takes pods for cold ones that need requests of any kind (`--worker-warmup-secs`): let it pass.
    "smg": Theirs("smg", "1.13.0", "SMG, cache_aware", ["launch"], settle=60),
}
