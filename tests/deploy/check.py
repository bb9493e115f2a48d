"""Lints and renders the Helm chart in every flavour, holds every object of deploy/ against Kubernetes' own schemas, and
every configuration that comes out against `tidegate check`. Kinds that are defined by others (InferencePool,
ServiceMonitor) have no schema here and are counted as such."""

import pathlib
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


def checked(where, text):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        told = subprocess.run([sys.argv[1], "check", file.name], capture_output=True, text=True)
    clean = told.returncode == 0 and "warning" not in told.stdout
    note(f"{where}: gateway.yaml", None if clean else told.stdout + told.stderr)


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


report = lint(CHART, strict=True)
serious = [it for it in report["messages"] if it["severity"] > 1]
note("helm lint", serious or report["errors"] or None)

for flavour, values in FLAVOURS.items():
    rendered = Chart.load(CHART).render(values, name="gw", namespace="inference")
    objects = [document for text in rendered.values() for document in documents(text)]
    names = [(it["kind"], it["metadata"]["name"]) for it in objects]
    note(f"helm, {flavour}: names are there once", None if len(set(names)) == len(names) else names)
    for document in objects:
        fits(f"helm, {flavour}", document)
        if document["kind"] == "ConfigMap":
            checked(f"helm, {flavour}", document["data"]["gateway.yaml"])

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
    for text in Chart.load(CHART).render(FLAVOURS[flavour], name="gw", namespace="inference").values():
        roles.update({flavour: it["rules"] for it in documents(text) if it["kind"] in ("Role", "ClusterRole")})
for flavour, rules in roles.items():
    folder = "endpoint-picker" if flavour == "a picker" else "base"
    text = (DEPLOY / "kubernetes" / folder / "rbac.yaml").read_text()
    given = next(it["rules"] for it in documents(text) if it["kind"] == "Role")
    note(f"helm, {flavour}: the rights of {folder}", None if rules == given else rules)

print(f"no schema here: {', '.join(sorted(without_schema))}")
print(f"{passed} passed, {failed} failed")
sys.exit(1 if failed or passed < 50 else 0)
