"""Lints and renders the Helm chart in every flavour, holds every object of deploy/ against Kubernetes' own schemas, and
every configuration that comes out against `tidegate check`. Kinds that are defined by others (InferencePool,
ServiceMonitor) have no schema here and are counted as such."""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml
from helm_python import Chart, lint

DEPLOY = pathlib.Path("deploy")
CHART = DEPLOY / "helm" / "tidegate"
# The oldest and the newest Kubernetes that the schemas know and the chart allows.
VERSIONS = ["1.26", kubernetes_validate.latest_version().rsplit(".", 1)[0]]
FLAVOURS = {
    "as it is": {},
    "all namespaces": {"allNamespaces": True, "config": {"kubernetes": {"namespaces": ["*"]}}},
    "monitored": {"serviceMonitor": {"enabled": True}},
    "monitored by Azure": {"serviceMonitor": {"enabled": True, "apiVersion": "azmonitoring.coreos.com/v1"}},
    "autoscaled, with a secret": {"autoscaling": {"enabled": True}, "secretName": "tokens"},
    "a picker": {"flavour": "epp", "epp": {"poolName": "vllm", "flags": ["--secure-serving=false"]}},
    "a picker with certificates": {"flavour": "epp", "epp": {"poolName": "vllm"}, "secretName": "certificates"},
    "keys": {"keysSecretName": "keys"},
    "an edge that is forced open": {
        "flavour": "edge",
        "edge": {"annotations": {"a": "b"}, "allowAnonymous": True},
        "serviceMonitor": {"enabled": True},
    },
    "an edge": {
        "flavour": "edge",
        "edge": {"tlsSecret": "public-tls"},
        "keysSecretName": "keys",
        "secretName": "tokens",
        "networkPolicy": {"egress": [{"ports": [{"port": 6379, "protocol": "TCP"}]}]},
    },
    "an edge for tokens": {
        "flavour": "edge",
        "edge": {"tlsSecret": "public-tls"},
        "config": {
            "listeners": [{"name": "openai", "address": "0.0.0.0:8081"}],
            "identity": {"jwt": [{"issuer": "https://login.example.com", "audiences": ["tidegate"]}]},
        },
    },
    "bare": {"podDisruptionBudget": {"enabled": False}, "networkPolicy": {"enabled": False}},
}

passed, failed, without_schema = 0, 0, set()


def note(what, problem=None):
    global passed, failed
    if problem:
        failed += 1
        print(f"FAILED {what}: {problem}")
    else:
        passed += 1


def fits(where, document):
    what = f"{where}: {document.get('kind')}"
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
            note(f"{what} ({version})")
        except kubernetes_validate.SchemaNotFoundError:
            without_schema.add(document.get("kind"))
        except Exception as problem:  # whatever it says
            note(f"{what} ({version})", problem)


def checked(where, text, likely=None):
    """Sound, and without a warning, but for one that has the word `likely`."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        told = subprocess.run([sys.argv[1], "check", file.name], capture_output=True, text=True)
    warnings = [line for line in (told.stdout + told.stderr).splitlines() if ": warning: " in line]
    clean = told.returncode == 0 and all(likely and likely in it for it in warnings)
    note(f"{where}: gateway.yaml", None if clean else told.stdout + told.stderr)


# What must not render, and a word of why.
REFUSED = {
    "a flavour that is none": ({"flavour": "egde"}, "none of proxy, epp, edge"),
    "an edge that nobody guards": ({"flavour": "edge", "edge": {"tlsSecret": "public-tls"}}, "lets in whoever shows nothing"),
    "an edge that asks for keys and lets in everybody": (
        {"flavour": "edge", "keysSecretName": "keys", "config": {"identity": {"keys": {"file": "/run/secrets/keys/keys.yaml"}}}},
        "lets in whoever shows nothing",
    ),
}


def guarded(where, objects):
    """A door on 443 where TLS is spoken and a key asked for, and whatever the configuration reads is mounted."""
    config = next(yaml.safe_load(it["data"]["gateway.yaml"]) for it in objects if it["kind"] == "ConfigMap")
    doors = config["listeners"]
    asked = all("tls" in it and not it.get("allow_anonymous") and it.get("identity") is not False for it in doors)
    note(f"{where}: every listener speaks TLS and asks who comes", None if asked and config.get("identity") else config)
    ports = {it["metadata"]["name"]: it["spec"]["ports"][0] for it in objects if it["kind"] == "Service"}
    outside = [it for name, it in ports.items() if name.endswith("-edge")]
    note(f"{where}: 443 to the world", None if [it["port"] for it in outside] == [443] else ports)
    spoken = {it["appProtocol"] for it in ports.values()}
    note(f"{where}: https at every Service", None if len(ports) == 2 and spoken == {"https"} else ports)
    pod = next(it["spec"]["template"]["spec"] for it in objects if it["kind"] == "Deployment")
    mounted = tuple(it["mountPath"] + "/" for it in pod["containers"][0]["volumeMounts"])
    wanted = [word for word in re.findall(r"/(?:run|etc|var)/[^\s'\"\]},]+", yaml.safe_dump(config))]
    lost = [it for it in wanted if not f"{it}/".startswith(mounted)]
    note(f"{where}: what it reads is mounted", lost or (None if wanted else "it reads nothing"))


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


report = lint(CHART, strict=True)
serious = [it for it in report["messages"] if it["severity"] > 1]
note("helm lint", serious or report["errors"] or None)

for flavour, values in FLAVOURS.items():
    rendered = Chart.load(CHART).render(values, name="gw", namespace="inference")
    notes = " ".join(text for name, text in rendered.items() if name.endswith("NOTES.txt"))
    note(f"helm, {flavour}: the notes say whom to ask", None if "gw-tidegate" in notes else notes)
    objects = [document for name, text in rendered.items() if not name.endswith("NOTES.txt") for document in documents(text)]
    names = [(it["kind"], it["metadata"]["name"]) for it in objects]
    note(f"helm, {flavour}: names are there once", None if len(set(names)) == len(names) else names)
    for document in objects:
        fits(f"helm, {flavour}", document)
        if document["kind"] == "ConfigMap":
            # Within a cluster, keys may travel in clear: whoever installs it so is told.
            likely = "travel in clear" if flavour == "keys" else None
            checked(f"helm, {flavour}", document["data"]["gateway.yaml"], likely)
    if flavour in ("an edge", "an edge for tokens"):
        guarded(f"helm, {flavour}", objects)
    if flavour == "keys":
        config = next(yaml.safe_load(it["data"]["gateway.yaml"]) for it in objects if it["kind"] == "ConfigMap")
        closed = "identity" in config and not any("allow_anonymous" in it for it in config["listeners"])
        note("helm, keys: nobody comes without one", None if closed else config)

for path in sorted(DEPLOY.rglob("*.yaml")):
    if "templates" in path.parts or path.name in ("Chart.yaml", "values.yaml", "kustomization.yaml", "compose.yaml"):
        continue
    text = path.read_text()
    for document in documents(text):
        if "kind" in document:
            # Kustomize fills selectors in; the schemas want them there.
            fits(path, document)
        elif path.name == "gateway.yaml":
            checked(path, text if path.parent.name != "laptop" else text.replace("resources", str(path.parent / "resources")))

roles = {}
for flavour in ("as it is", "all namespaces", "a picker"):
    for name, text in Chart.load(CHART).render(FLAVOURS[flavour], name="gw", namespace="inference").items():
        found = [] if name.endswith("NOTES.txt") else documents(text)
        roles.update({flavour: it["rules"] for it in found if it["kind"] in ("Role", "ClusterRole")})
for flavour, rules in roles.items():
    folder = "endpoint-picker" if flavour == "a picker" else "base"
    text = (DEPLOY / "kubernetes" / folder / "rbac.yaml").read_text()
    given = next(it["rules"] for it in documents(text) if it["kind"] == "Role")
    note(f"helm, {flavour}: the rights of {folder}", None if rules == given else rules)

for what, (values, word) in REFUSED.items():
    try:
        Chart.load(CHART).render(values, name="gw", namespace="inference")
        note(f"helm: {what} is refused", "it was not")
    except Exception as problem:
        note(f"helm: {what} is refused", None if word in str(problem) else problem)

for path in sorted(DEPLOY.rglob("keys.yaml")):
    told = subprocess.run([sys.argv[1], "keys", "list", "--file", path], capture_output=True, text=True)
    note(f"{path}: a key file of keys that let nobody in", None if told.stdout.count("disabled") == 1 else told)


def kustomized(what, folder):
    """What kubectl makes of a folder: valid, all in one namespace, every selector meeting the pods that are meant."""
    told = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    note(f"kubectl kustomize {what}", told.stderr if told.returncode else None)
    objects = documents(told.stdout)
    for document in objects:
        fits(f"kustomize, {what}", document)
        cluster_wide = document["kind"] in ("ClusterRole", "ClusterRoleBinding")
        place = document["metadata"].get("namespace")
        note(f"kustomize, {what}: {document['kind']} has its place", None if cluster_wide or place == "inference" else place)
    pods = [it["spec"]["template"]["metadata"]["labels"] for it in objects if it["kind"] == "Deployment"]
    for document in objects:
        if document["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
            spec = document["spec"]
            selector = spec.get("podSelector", spec.get("selector"))
            selector = selector.get("matchLabels", selector)
            meets = [labels for labels in pods if selector and selector.items() <= labels.items()]
            note(f"kustomize, {what}: {document['kind']} meets the pods", None if len(meets) == 1 else selector)
    return objects


def knows_components():
    try:
        told = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True)
        return int(json.loads(told.stdout)["clientVersion"]["minor"].rstrip("+")) >= 21
    except (OSError, ValueError, KeyError):
        return False


if knows_components():
    for folder in ("base", "endpoint-picker"):
        kustomized(folder, DEPLOY / "kubernetes" / folder)
    guarded("kustomize, edge", kustomized("edge", DEPLOY / "kubernetes" / "edge"))
    for example in ("ack", "kaito", "edge"):
        objects = kustomized(example, DEPLOY / "examples" / example)
        if example == "edge":
            guarded("kustomize, the example's edge", objects)
        maps = [it for it in objects if it["kind"] == "ConfigMap"]
        own = (DEPLOY / "examples" / example / "gateway.yaml").read_text()
        note(f"kustomize, {example}: its own configuration", None if [it["data"]["gateway.yaml"] for it in maps] == [own] else maps)
    with tempfile.TemporaryDirectory(dir=DEPLOY / "kubernetes") as overlay:
        # Another namespace, as one puts it into an overlay: whom the roles are bound to goes along.
        for folder in ("base", "endpoint-picker"):
            moved = {"namespace": "other", "resources": [f"../{folder}"]}
            (pathlib.Path(overlay) / "kustomization.yaml").write_text(yaml.safe_dump(moved))
            told = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True)
            bound = [it["namespace"] for document in documents(told.stdout) for it in document.get("subjects", [])]
            note(f"kustomize, {folder} in another namespace: whom the role is bound to", None if bound == ["other"] else bound)
        # A configuration of one's own, as the README says it: it counts, whatever the layer below brings.
        told = re.search(r"```yaml\n(.*?)```", (DEPLOY / "kubernetes" / "README.md").read_text(), re.DOTALL)[1]
        own = "# mine\nlisteners: [{ name: mine, address: 127.0.0.1:8081 }]\n"
        (pathlib.Path(overlay) / "gateway.yaml").write_text(own)
        for layer in ("base", "edge"):
            (pathlib.Path(overlay) / "kustomization.yaml").write_text(told.replace("../base", f"../{layer}"))
            maps = [it for it in kustomized(f"the README's layer above {layer}", overlay) if it["kind"] == "ConfigMap"]
            said = [it["data"]["gateway.yaml"] for it in maps]
            note(f"kustomize, above {layer}: the configuration of the layer above", None if said == [own] else said)
        components = sorted(it.name for it in (DEPLOY / "kubernetes" / "components").iterdir())
        # Both monitors are called the same: one at a time.
        for monitor in ("azure-monitor", "prometheus-operator"):
            names = [it for it in components if it == monitor or not it.startswith(("azure", "prometheus"))]
            whole = {"namespace": "inference", "resources": ["../base"], "components": [f"../components/{it}" for it in names]}
            (pathlib.Path(overlay) / "kustomization.yaml").write_text(yaml.safe_dump(whole))
            kustomized(f"base with {', '.join(names)}", overlay)
else:
    print("skipped: no kubectl here that knows kustomize's components (1.21 and later do)")

print(f"no schema here: {', '.join(sorted(without_schema))}")
print(f"{passed} passed, {failed} failed")
sys.exit(1 if failed or passed < 50 else 0)
