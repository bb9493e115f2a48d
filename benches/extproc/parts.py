"""What stands between the load and the pods: an Envoy as `deploy/envoy` recommends it, and the picker that it asks.

Envoy and picker share one core, load and pods the other, so that a hop's cost is not the waking of a core of its own.
"""

import contextlib
import pathlib
import re
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "speed"))
sys.path.insert(0, str(HERE.parent))

import json

from asking import answers
from measure import PORT, PROXY_CORE, SETTLE, Program, until
from proxies import MODEL, PROXIES
from routers import run as output

PICKER, ADMIN = PORT + 10, PORT + 11
ASKS = "                  - name: envoy.filters.http.ext_proc\n"
ROUTES = "                  - name: envoy.filters.http.router\n"
TLS_BEGINS = "      # The picker's certificate"
# Where no picker names a pod: always the first, as if a header of the client's had.
NAMES_ONE = """                  - name: envoy.filters.http.header_mutation
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
                      mutations:
                        request_mutations:
                          - append: {{ header: {{ key: x-gateway-destination-endpoint, value: "{pod}" }} }}
"""


def envoy_config(pod, asks, tls):
    """`deploy/envoy/original-dst.yaml` for this machine; without a picker, it goes to `pod`."""
    text = (REPOSITORY / "deploy/envoy/original-dst.yaml").read_text()
    for told, here in (("19000", PORT + 1), ("8080", PORT), ("9002", PICKER)):
        assert text.count(f"port_value: {told}") == 1, told
        text = text.replace(f"port_value: {told}", f"port_value: {here}")
    if not tls:
        text = text[: text.index(TLS_BEGINS)]
    if not asks:
        text = text[: text.index(ASKS)] + NAMES_ONE.format(pod=pod) + text[text.index(ROUTES) :]
    return text


class Nobody:
    what = "Envoy alone; the pod's address is in its configuration"
    asks = False


class Nothing:
    what = "a picker that names pods in turn and passes everything on"
    asks = True

    def command(self, stage, pods, folder, tls):
        del folder
        pods = ",".join(pod.removeprefix("http://") for pod in pods)
        return [stage.play, "nothing", "--port", str(PICKER), "--pods", pods, *([] if tls else ["--clear"])]


class Tidegate:
    what = "least-cost, log and metrics on, answers observed"
    asks = True

    def command(self, stage, pods, folder, tls):
        endpoints = "".join(f'\n      - {{ url: "{pod}" }}' for pod in pods)
        config = folder / "tidegate.yaml"
        config.write_text(
            f"listeners:\n  - {{ name: picker, address: 127.0.0.1:{PICKER}, protocol: ext-proc, ext_proc: {{ secure: {str(tls).lower()} }} }}\n"
            f"admin: {{ address: 127.0.0.1:{ADMIN} }}\n"
            f"pools:\n  - name: pods\n    engine: vllm\n    endpoints:{endpoints}\n"
            f"models:\n  - {{ modelName: {MODEL}, poolRef: pods }}\n"
        )
        return [stage.binary, "serve", "--config", str(config)]


PICKERS = {"envoy": Nobody(), "nothing": Nothing(), "tidegate": Tidegate()}


@contextlib.contextmanager
def picker(stage, name, pods, tls=True, label=None):
    """The picker's program, ready if it is one that tells; none where nobody is asked."""
    which = PICKERS[name]
    if not which.asks:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        program = Program(which.command(stage, pods, pathlib.Path(folder), tls), PROXY_CORE, stage.logs / (label or name))
        try:
            ready = lambda: "ready" in program.log.read_text(errors="replace")
            if isinstance(which, Tidegate):
                ready = lambda: answers(f"http://127.0.0.1:{ADMIN}/readyz")
            until(program, ready)
            yield program
        finally:
            program.end()


@contextlib.contextmanager
def envoy(stage, name, pods, tls=True):
    """An Envoy whose requests the picker answers."""
    config = stage.logs / f"{name}-envoy.yaml"
    config.write_text(envoy_config(pods[0].removeprefix("http://"), PICKERS[name].asks, tls))
    command = [PROXIES["envoy"].program, "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"]
    program = Program(command, PROXY_CORE, stage.logs / f"{name}-envoy")
    try:
        body = json.dumps({"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "ready?"}]}).encode()
        until(program, lambda: answers(f"http://127.0.0.1:{PORT}/v1/chat/completions", body))
        time.sleep(SETTLE)
        yield program
    finally:
        program.end()


def decisions(log, since, least):
    """Milliseconds that Tidegate says it added to each request with a body of at least so many bytes, from its log."""
    with log.open("rb") as file:
        file.seek(since)
        lines = file.read().decode(errors="replace").splitlines()
    found = []
    for line in lines:
        added, body = re.search(r"added_ms\W+([\d.]+)", line), re.search(r"body_bytes\W+(\d+)", line)
        if added and body and int(body[1]) >= least:
            found.append(float(added[1]))
    return found


def version(stage):
    return output([stage.binary, "--version"]).removeprefix("tidegate").strip()
