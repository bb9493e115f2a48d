"""Two real vLLM servers, the gateway in front of them, and what only a real engine can prove.

usage: check.py DIR TIDEGATE. Prints a line a check and exits 1 if any failed.
"""

import asyncio
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import httpx
import openai

HOME, TIDEGATE = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
ENV = dict(
    os.environ,
    VLLM_TARGET_DEVICE="cpu",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_ENGINE_READY_TIMEOUT_S="600",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_HOST_IP="127.0.0.1",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    DO_NOT_TRACK="1",
    OMP_NUM_THREADS="1",
    CUDA_VISIBLE_DEVICES="",
    LD_PRELOAD=f"/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4:{HOME}/venv/lib/libiomp5.so",
)
# Requests that may wait at one engine; the next is refused.
QUEUE = 8
PROMPT = [{"role": "user", "content": "You may copy and distribute verbatim copies of this licence"}]
passed, failed = [], []


def check(what, good, detail=""):
    (passed if good else failed).append(what)
    print(f"{'ok  ' if good else 'FAIL'} {what}{f'   ({detail})' if detail else ''}", flush=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Engine:
    def __init__(self, log):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        words = f"serve {HOME}/model --served-model-name tiny --host 127.0.0.1 --port {self.port} --max-model-len 4096"
        words += " --dtype bfloat16 --enforce-eager --max-num-seqs 4 --num-gpu-blocks-override 96"
        words += f" --max-num-queued-reqs {QUEUE}"
        words += f" --enable-lora --max-loras 2 --lora-modules ad0={HOME}/lora/ad0 ad1={HOME}/lora/ad1"
        self.process = subprocess.Popen(
            [f"{HOME}/venv/bin/vllm", *words.split()], env=ENV, stdout=log, stderr=log, start_new_session=True
        )

    def metric(self, name):
        page = httpx.get(f"{self.url}/metrics", timeout=10).text
        return sum(float(value) for value in re.findall(rf"^vllm:{name}(?:{{[^}}]*}})? (\S+)$", page, re.M))

    def kill(self, how=signal.SIGKILL):
        try:
            os.killpg(self.process.pid, how)
        except ProcessLookupError:
            pass


def until(what, seconds, condition):
    """Asks again and again; the seconds it took, or None."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        try:
            if condition():
                return time.monotonic() - began
        except httpx.HTTPError:
            pass
        time.sleep(0.02)
    print(f"     gave up waiting: {what}", flush=True)
    return None


def answers(client, raw):
    whole = client.chat.completions.create(model="tiny", messages=PROMPT, max_tokens=16, temperature=0)
    check("a whole answer with usage", whole.usage.completion_tokens > 0, f"{whole.usage.completion_tokens} tokens")
    stream = client.chat.completions.create(
        model="tiny", messages=PROMPT, max_tokens=16, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    check("a stream says the same", text == whole.choices[0].message.content, f"{len(chunks)} chunks")
    check("its last chunk carries usage", chunks[-1].usage is not None)
    completion = client.completions.create(model="tiny", prompt="You may", max_tokens=4)
    check("a plain completion", completion.usage.completion_tokens > 0)
    models = {model.id: getattr(model, "parent", None) for model in client.models.list()}
    check("models list adapters with their base", models.get("ad0") == "tiny" and "tiny" in models, str(models))
    adapted = client.chat.completions.create(model="ad1", messages=PROMPT, max_tokens=4)
    check("an adapter answers under its name", adapted.model == "ad1")
    try:
        client.chat.completions.create(model="nobody", messages=PROMPT)
        check("an unknown model is a 404", False)
    except openai.NotFoundError as error:
        check("an unknown model is a 404", error.code == "model_not_found")
    tokens = raw.post("/tokenize", json={"model": "tiny", "prompt": "You may"}).json()
    check("tokenize passes", tokens.get("count", 0) > 0)


def warm_up(raw):
    """An engine's first step at a batch size takes a second, and aborts wait for it: let that be over."""

    async def go():
        async with httpx.AsyncClient(base_url=raw.base_url, timeout=60) as client:
            for width in (2, 4, 8):
                body = {"model": "tiny", "messages": PROMPT, "max_tokens": 50, "ignore_eos": True}
                await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(width)))

    asyncio.run(go())


def aborts(raw, engines, stream):
    kind = "streamed" if stream else "whole"
    running = lambda: sum(engine.metric("num_requests_running") for engine in engines)
    body = {"model": "tiny", "messages": PROMPT, "max_tokens": 3500, "ignore_eos": True, "stream": stream}

    async def leave():
        begun = 0
        async with httpx.AsyncClient(base_url=raw.base_url, timeout=60) as client:
            async def ask():
                nonlocal begun
                async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    begun += 1
                    async for _ in answer.aiter_bytes():
                        pass

            tasks = [asyncio.create_task(ask()) for _ in range(4)]
            # A stream shows its head at once; a whole answer shows nothing, so the engines are asked.
            while (begun if stream else await asyncio.to_thread(running)) < 4 and not all(t.done() for t in tasks):
                await asyncio.sleep(0.02)
            check(f"four {kind} answers are under way", not any(task.done() for task in tasks))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(leave())
    took = until("running to fall to 0", 5, lambda: running() == 0)
    check(f"four {kind} answers whose clients left: running back to 0", took is not None and took <= 0.5, f"{took} s")
    before = [engine.metric("generation_tokens_total") for engine in engines]
    time.sleep(0.5)
    after = [engine.metric("generation_tokens_total") for engine in engines]
    check(f"... and no token is generated any more ({kind})", before == after, f"{before} -> {after}")


def follows_gauges(raw, admin, engines):
    busy, idle = engines
    body = {"model": "tiny", "messages": PROMPT, "max_tokens": 3500, "ignore_eos": True}

    async def load():
        async with httpx.AsyncClient(timeout=120) as client:
            async def ask():
                # Whole answers: reading thousands of events would starve the questions asked beside them.
                await client.post(f"{busy.url}/v1/chat/completions", json=body)

            tasks = [asyncio.create_task(ask()) for _ in range(8)]
            reading = {}

            async def seen():
                fleet = (await client.get(f"{admin}/debug/fleet")).json()
                for pod in fleet["pools"][0]["pods"]:
                    reading[pod["url"]] = pod.get("reading") or {}
                there = reading.get(busy.url, {})
                return (there.get("running") or 0) + (there.get("waiting") or 0) >= 8

            deadline = time.monotonic() + 30
            while not await seen() and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            pods = []
            for turn in range(10):
                question = [{"role": "user", "content": f"Question number {turn}: what may I copy?"}]
                small = {"model": "tiny", "messages": question, "max_tokens": 2}
                answer = await client.post(raw.base_url.join("/v1/chat/completions"), json=small)
                pods.append(answer.headers.get("x-tidegate-pod"))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return reading, pods

    reading, pods = asyncio.run(load())
    there = reading[busy.url]
    seen = f"running {there.get('running')}, waiting {there.get('waiting')}, KV {there.get('kv_usage'):.3f}"
    check("load that others sent is read off the engine's gauges", (there.get("waiting") or 0) >= 1, seen)
    check("... and all ten requests go to the idle engine", set(pods) == {f"127.0.0.1:{idle.port}"}, str(set(pods)))
    until("the engines to be idle", 30, lambda: sum(engine.metric("num_requests_running") for engine in engines) == 0)


def full_queue(turns, admin, engines):
    """Taking turns looks at no gauge, so that requests are sent to an engine that refuses them."""
    full, _ = engines
    body = {"model": "tiny", "messages": PROMPT, "max_tokens": 3500, "ignore_eos": True}

    async def load():
        async with httpx.AsyncClient(timeout=120) as client:
            ask = lambda: client.post(f"{full.url}/v1/chat/completions", json=body)
            tasks = [asyncio.create_task(ask()) for _ in range(4 + QUEUE + 4)]
            # Those beyond the queue are refused, which shows that it is full.
            while sum(task.done() for task in tasks) < 4:
                await asyncio.sleep(0.02)
            refused = next(task.result() for task in tasks if task.done())
            small = {"model": "tiny", "messages": PROMPT, "max_tokens": 2}
            answers = [await client.post(f"{turns}/v1/chat/completions", json=small) for _ in range(10)]
            fleet = (await client.get(f"{admin}/debug/fleet")).json()["pools"][0]["pods"]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return refused, answers, fleet

    refused, answers, fleet = asyncio.run(load())
    check("an engine whose queue is full says 503", refused.status_code == 503, refused.text[:80])
    good = [answer.status_code for answer in answers].count(200)
    tries = [int(answer.headers.get("x-tidegate-attempts", 1)) for answer in answers]
    check("... clients are all answered, by the other where it refuses", good == 10 and max(tries) == 2, str(tries))
    conditions = {pod["url"]: pod["condition"] for pod in fleet}
    check("... and it is not ejected for that", conditions[full.url] == "ready", str(conditions))
    until("the engines to be idle", 30, lambda: sum(engine.metric("num_requests_running") for engine in engines) == 0)


def dies(client, raw, engines):
    body = {"model": "tiny", "messages": PROMPT, "max_tokens": 3500, "ignore_eos": True, "stream": True}
    with raw.stream("POST", "/v1/chat/completions", json=body) as answer:
        victim = next(engine for engine in engines if f":{engine.port}" in answer.headers["x-tidegate-pod"])
        lines = answer.iter_lines()
        for _ in range(8):
            next(lines)
        victim.kill()
        try:
            rest = list(lines)
        except httpx.HTTPError as error:
            rest = [f"broken: {error}"]
    told = any('"error"' in line for line in rest)
    check("an engine killed in mid-stream: its client is told", told, (rest[-3:] or [""])[0][:100])
    good = 0
    for _ in range(20):
        good += client.chat.completions.create(model="tiny", messages=PROMPT, max_tokens=2).usage.completion_tokens > 0
    check("... and the next 20 requests are all answered by the other", good == 20, f"{good} of 20")


def main():
    log = open(pathlib.Path(tempfile.gettempdir()) / "tidegate-real-vllm.log", "w")
    engines = [Engine(log) for _ in range(2)]
    gateway = None
    try:
        for engine in engines:
            up = lambda: httpx.get(f"{engine.url}/health", timeout=5).status_code == 200
            if until(f"vLLM on {engine.port}", 600, up) is None:
                sys.exit(f"vLLM did not start; see {log.name}")
        print(f"     two vLLM servers are up on ports {', '.join(str(engine.port) for engine in engines)}", flush=True)
        port, turns_port, admin_port = free_port(), free_port(), free_port()
        config = f"""
listeners:
  - {{ name: openai, address: "127.0.0.1:{port}" }}
  - {{ name: turns, address: "127.0.0.1:{turns_port}", scheduler: {{ policy: round-robin }} }}
pools:
  - name: real
    endpoints: [ {{ url: "{engines[0].url}" }}, {{ url: "{engines[1].url}" }} ]
models:
  - {{ modelName: tiny, poolRef: real }}
admin: {{ address: "127.0.0.1:{admin_port}" }}
api: {{ decision_headers: true }}
"""
        file = pathlib.Path(tempfile.mkdtemp()) / "gateway.yaml"
        file.write_text(config)
        gateway = subprocess.Popen([TIDEGATE, "serve", "--config", file], stderr=log)
        admin = f"http://127.0.0.1:{admin_port}"
        until("readiness", 20, lambda: httpx.get(f"{admin}/readyz").status_code == 200)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
        raw = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
        until("the adapters to be known", 20, lambda: "ad0" in raw.get("/v1/models").text)
        answers(client, raw)
        warm_up(raw)
        aborts(raw, engines, stream=True)
        aborts(raw, engines, stream=False)
        follows_gauges(raw, admin, engines)
        full_queue(f"http://127.0.0.1:{turns_port}", admin, engines)
        dies(client, raw, engines)
        fleet = httpx.get(f"{admin}/debug/fleet").json()["pools"][0]["pods"]
        counts = [(pod["in_flight"], pod["prefill_tokens"], pod["kv_tokens"]) for pod in fleet]
        check("every counter is back at zero", all(count == (0, 0, 0) for count in counts), str(counts))
        gateway.send_signal(signal.SIGINT)
        check("the gateway stops with nothing cut", gateway.wait(20) == 0)
    finally:
        for engine in engines:
            engine.kill()
        if gateway:
            gateway.kill()
    print(f"{len(passed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


main()
