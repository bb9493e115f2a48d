"""Starts pods and a gateway, runs the checks of each client library against them, and adds up what they say.

Every pod and listener gets its port from the system: a pod is started on port 0 and says where it is; the gateway logs
where it listens. A check is a function; it passes if it returns and fails if it raises.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
MODEL = "llama2"

# The key that every library shows, but where it is to be refused; one that may ask twenty times at once and then every
# three seconds, and one that has a little to spend.
KEY = "sk-test"
LIMITED = {"sk-hasty": "requests_per_minute: 20", "sk-poor": "budget_per_month: 200"}

# Behind Envoy clients are Envoy's to know. A picker leaves a model that nobody named to the pods; and Envoy, whose one cluster here holds the pods of every pool,
# goes to any of them when those of the list are gone.
NOT_THROUGH_ENVOY = ["unknown_model_is_not_found", "no_pod_at_all_is_an_internal_server_error_with_a_pause",
                     "no_pod_at_all_is_an_error_in_its_own_shape",
                     "a_wrong_key_is_an_authentication_error_and_not_asked_again",
                     "a_wrong_key_is_an_authentication_error_in_its_own_shape",
                     "who_asks_too_often_is_asked_again_when_there_is_room",
                     "what_is_spent_is_spent_and_the_library_does_not_ask_again",
                     "no_pod_is_asked_for_again_after_the_pause"]


class Faulty:
    """A scripted pod: the answers it gives, in turn, then 200 for ever. `None` closes the connection unanswered."""

    def __init__(self, answers):
        import http.server
        import threading

        answers, asked = list(answers), self
        self.requests = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                page = b'vllm:num_requests_running{model_name="m"} 0\nvllm:num_requests_waiting{model_name="m"} 0\n'
                self.say(200 if self.path == "/metrics" else 404, page if self.path == "/metrics" else b"{}")

            def do_POST(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                asked.requests += 1
                status = answers.pop(0) if answers else 200
                if status is None:
                    self.close_connection = True
                    return
                if status == 200:
                    body = {
                        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
                        "choices": [{"index": 0, "finish_reason": "stop",
                                     "message": {"role": "assistant", "content": "at last"}}],
                        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
                    }
                else:
                    body = {"error": {"message": "busy", "type": "overloaded", "param": None, "code": status}}
                self.say(status, json.dumps(body).encode())

            def say(self, status, body):
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


class Run:
    """Everything that was started, and how to end it."""

    def __init__(self, tidegate):
        self.tidegate, self.children = tidegate, []

    def start(self, *args):
        child = subprocess.Popen([self.tidegate, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.children.append(child)
        return child

    def sim(self):
        child = self.start("sim", "--pods", "1", "--port", "0", "--model", MODEL, "--adapters", "lora-a",
                           "--time-scale", "0.1")
        line = child.stdout.readline()
        found = re.match(r"(http://[\d.:]+)", line)
        assert found, f"sim said: {line}{child.stderr.read()}"
        return found[1]

    def serve(self, folder, pods, envoy=None):
        """A gateway with a pool for each of `pods` (name -> urls); the model of pool `sim` is MODEL, others' their own.

        With `envoy`, a program, clients talk to that, and the gateway is its endpoint picker."""
        lines = ["listeners:", '  - { name: main, address: "127.0.0.1:0" }', "pools:"]
        if envoy:
            lines[1] = '  - { name: main, address: "127.0.0.1:0", protocol: ext-proc, ext_proc: { fallbacks: 1 } }'
        for name, urls in pods.items():
            lines += [f"  - name: {name}", "    engine: vllm", "    endpoints:"]
            lines += [f'      - {{ url: "{url}" }}' for url in urls]
        lines += ["models:"]
        for name in pods:
            target = MODEL if name == "sim" else name
            lines += [f"  - {{ modelName: {target}, poolRef: {name} }}"]
        # Of the 30 s that a request waits for a pod by default these libraries' own 30 s run out at the same moment.
        lines += ['admin: { address: "127.0.0.1:0" }', "log: { format: json }", "waiting: { timeout: 2s }"]
        if not envoy:
            keys = Path(folder) / "keys.yaml"
            records = {KEY: "", **{key: f", limits: {{ {limit} }}" for key, limit in LIMITED.items()}}
            keys.write_text("".join(f'- {{ id: {key[3:]}, hash: "{hashlib.sha256(key.encode()).hexdigest()}"{more} }}\n'
                                    for key, more in records.items()))
            lines += [f'identity: {{ keys: {{ file: "{keys}" }} }}', "quotas:", "  prices:",
                      f"    - {{ modelName: {MODEL}, input_per_million: 1000000, output_per_million: 1000000 }}"]
        file = Path(folder) / "tidegate.yaml"
        file.write_text("\n".join(lines) + "\n")
        child = self.start("serve", "--config", str(file))
        said = ""
        while True:
            line = child.stderr.readline()
            assert line, f"serve ended: {said}"
            said += line
            found = re.search(r'"(127\.0\.0\.1:\d+)"', line)
            if found:
                break
        # The log goes on; nobody reads it, so it must not fill its pipe.
        import threading

        threading.Thread(target=child.stderr.read, daemon=True).start()
        return self.envoy(envoy, folder, found[1], pods) if envoy else f"http://{found[1]}"

    def envoy(self, program, folder, picker, pods):
        """An Envoy as deploy/envoy recommends it, before these pods."""
        text = (HERE.parent.parent / "deploy/envoy/override-host.yaml").read_text()
        text = text.replace("address: 127.0.0.1, port_value: 19000", "address: 127.0.0.1, port_value: 0")
        text = text.replace("address: 0.0.0.0, port_value: 8080", "address: 127.0.0.1, port_value: 0")
        text = text.replace("port_value: 9002", f"port_value: {picker.rsplit(':', 1)[1]}")
        lines = []
        for line in text.splitlines():
            if "10.0.0.1" in line:
                ports = {url.rsplit(":", 1)[1] for urls in pods.values() for url in urls}
                lines += [line.replace("10.0.0.1, port_value: 8000", f"127.0.0.1, port_value: {port}") for port in ports]
            elif "10.0.0.2" not in line:
                lines.append(line)
        file, told = Path(folder) / "envoy.yaml", Path(folder) / "envoy-admin"
        file.write_text("\n".join(lines) + "\n")
        command = [program, "--use-dynamic-base-id", "-l", "warning", "-c", str(file), "--admin-address-path", str(told)]
        child = subprocess.Popen(command, stderr=open(Path(folder) / "envoy-log", "wb"))
        self.children.append(child)
        end = time.monotonic() + 30
        while time.monotonic() < end and child.poll() is None:
            time.sleep(0.05)
            try:
                admin = told.read_text().strip()
                with urllib.request.urlopen(f"http://{admin}/listeners", timeout=5) as page:
                    found = re.search(r"openai::(127\.0\.0\.1:\d+)", page.read().decode())
                urllib.request.urlopen(f"http://{admin}/ready", timeout=5).close()
                if found:
                    return f"http://{found[1]}"
            except (OSError, ValueError):
                pass
        raise AssertionError("envoy did not come up: " + (Path(folder) / "envoy-log").read_text())

    def end(self):
        for child in self.children:
            child.kill()
            child.wait()


def results(name, child):
    """Prints what a client library's checks say; every line is `ok WHAT` or `FAILED WHAT: WHY`."""
    passed = failed = 0
    for line in child.stdout:
        line = line.rstrip()
        passed += line.startswith("ok ")
        failed += line.startswith("FAILED ")
        print(f"{name:>18}  {line}", flush=True)
    if child.wait() != 0 and not failed:
        print(f"{name:>18}  FAILED to run, exit code {child.returncode}")
        failed += 1
    if not passed:
        failed += 1
    return passed, failed


def main():
    tidegate, cache = os.path.abspath(sys.argv[1]), sys.argv[2]
    envoy = sys.argv[3] if len(sys.argv) > 3 else None
    run = Run(tidegate)
    # Whoever is asked first says 503, and a retry must come; one closes the connection; one is not there at all.
    suites = {
        "openai-python": [sys.executable, str(HERE / "openai_checks.py")],
        "openai-node": ["node", str(HERE / "openai_checks.mjs")],
        "anthropic-python": [sys.executable, str(HERE / "anthropic_checks.py")],
    }
    passed = failed = 0
    try:
        sims = [run.sim(), run.sim()]
        for name, command in suites.items():
            busy, dying, fine = Faulty([503]), Faulty([None]), Faulty([])
            pods = {"sim": sims, "busy": [busy.url], "dying": [dying.url],
                    "half-gone": ["http://127.0.0.1:1", fine.url], "gone": ["http://127.0.0.1:1"]}
            with tempfile.TemporaryDirectory() as folder:
                url = run.serve(folder, pods, envoy)
                env = {**os.environ, "TIDEGATE_URL": url, "MODEL": MODEL, "NO_PROXY": "127.0.0.1",
                       "CLIENTS_CACHE": cache, "LEFT_OUT": " ".join(NOT_THROUGH_ENVOY) if envoy else ""}
                child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
                its = results(name, child)
            passed, failed = passed + its[0], failed + its[1]
    finally:
        run.end()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
