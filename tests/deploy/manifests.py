"""Manifests against schemas: Kubernetes' own, as kubernetes-validate ships them, and what of the
compose file can be known without its tools. Prints one finding a line; no line is a pass."""

import pathlib
import sys

import kubernetes_validate
import yaml

DEPLOY = pathlib.Path(sys.argv[1])
# the oldest that has every field used, and one in use for years to come
VERSIONS = ["1.29", "1.34"]

# the operator's resource, whose schema is in no registry of schemas: the fields used here
POD_MONITOR = {
    "spec": {"jobLabel", "selector", "podMetricsEndpoints"},
    "endpoint": {"port", "path", "interval"},
}

COMPOSE_TOP = {"name", "services", "volumes"}
COMPOSE_SERVICE = {
    "image", "command", "environment", "volumes", "ports", "depends_on", "healthcheck", "profiles",
    "read_only", "cap_drop", "security_opt", "restart", "stop_grace_period",
}


def documents(path):
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def kubernetes():
    folder = DEPLOY / "kubernetes"
    customization = documents(folder / "kustomization.yaml")[0]
    listed = set(customization["resources"])
    there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    for name in listed ^ there:
        yield f"{name}: listed in kustomization.yaml, or there, but not both"
    for generator in customization["configMapGenerator"]:
        for file in generator["files"]:
            if not (folder / file).is_file():
                yield f"kustomization.yaml: {file} is missing"
    made = {generator["name"] for generator in customization["configMapGenerator"]}
    for path in sorted(folder.glob("*.yaml")):
        for document in documents(path):
            for finding in resource(document, made):
                yield f"{path.name}: {finding}"


def resource(document, made):
    kind = document["kind"]
    if kind == "Kustomization":
        return
    if kind == "PodMonitor":
        spec = document["spec"]
        fields = set(spec) - POD_MONITOR["spec"]
        for endpoint in spec["podMetricsEndpoints"]:
            fields |= set(endpoint) - POD_MONITOR["endpoint"]
        for field in fields:
            yield f"PodMonitor has no {field}"
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{version}: {error.message}"
    if kind == "StatefulSet":
        yield from stateful_set(document["spec"], made)


def stateful_set(spec, made):
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    security = container["securityContext"]
    if not (pod["securityContext"]["runAsNonRoot"] and security["readOnlyRootFilesystem"]):
        yield "must run without root, on a file system that it does not write"
    if security["allowPrivilegeEscalation"] or security["capabilities"]["drop"] != ["ALL"]:
        yield "must have no privileges"
    if spec["selector"]["matchLabels"].items() - spec["template"]["metadata"]["labels"].items():
        yield "selects other pods"
    ports = {port["name"] for port in container["ports"]}
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
        asked = container[probe]["httpGet"]
        if asked["port"] not in ports or not asked["path"].startswith("/healthz/"):
            yield f"{probe} asks {asked}"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        if mount["name"] not in volumes:
            yield f"mounts {mount['name']}, which is no volume"
    for volume in volumes.values():
        if "configMap" in volume and volume["configMap"]["name"] not in made:
            yield f"{volume['configMap']['name']} is made by no generator"


def compose():
    folder = DEPLOY / "compose"
    (document,) = documents(folder / "compose.yaml")
    yield from (f"compose has no {key}" for key in set(document) - COMPOSE_TOP)
    services = document["services"]
    for name, service in services.items():
        yield from (f"{name} has no {key}" for key in set(service) - COMPOSE_SERVICE)
        image = service["image"]
        if image != "flopwatch" and (":" not in image or image.endswith(":latest")):
            yield f"{name}: {image} is not pinned"
        for other in service.get("depends_on", {}):
            if other not in services:
                yield f"{name} depends on {other}"
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                if not (folder / source).exists():
                    yield f"{name} mounts {source}, which is not there"
            elif source not in document["volumes"]:
                yield f"{name} mounts the volume {source}"
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                yield f"{name} listens to everybody at {port}"


def grafana():
    for path in (DEPLOY / "grafana" / "provisioning").rglob("*.yaml"):
        (document,) = documents(path)
        if document["apiVersion"] != 1:
            yield f"{path.name}: apiVersion"


def planted():
    """A mistake in a copy of the StatefulSet must be found."""
    (document,) = documents(DEPLOY / "kubernetes" / "statefulset.yaml")
    document["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    made = {"flopwatch-config", "flopwatch-policies"}
    if not list(resource(document, made)):
        yield "a field that Kubernetes does not know passes"


for finding in [*kubernetes(), *compose(), *grafana(), *planted()]:
    print(finding)
