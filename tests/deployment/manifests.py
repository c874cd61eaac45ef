"""What is shipped for Kubernetes must keep, a rule a function: each yields what breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

Manifest = dict[str, Any]
Rule = Callable[[list[Manifest]], Iterator[str]]
SECRET_NAME = re.compile(r"key|token|secret|password|credential", re.IGNORECASE)


def of_kind(manifests: list[Manifest], *kinds: str) -> Iterator[Manifest]:
    return (manifest for manifest in manifests if manifest["kind"] in kinds)


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for manifest in of_kind(manifests, "Deployment", "StatefulSet", "DaemonSet", "Job"):
        yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for name, pod in pods(manifests):
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            yield name, container


def no_secret_in_the_clear(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in of_kind(manifests, "Secret"):
        yield f"Secret {manifest['metadata']['name']} holds values"
    for name, container in containers(manifests):
        for variable in container.get("env", []):
            if SECRET_NAME.search(variable["name"]) and "value" in variable:
                yield f"{name}: {variable['name']} has a value"


def images_are_pinned(manifests: list[Manifest]) -> Iterator[str]:
    for name, container in containers(manifests):
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in container["image"] and tag in ("", "latest"):
            yield f"{name}: {container['image']}"


def nobody_is_root(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod in pods(manifests):
        security = pod.get("securityContext", {})
        if not (security.get("runAsNonRoot") and security.get("runAsUser", 0) >= 10000):
            yield f"{name} may run as root"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name} has no seccomp profile"
        if pod.get("hostNetwork") or pod.get("hostPID") or pod.get("hostIPC"):
            yield f"{name} is in the host's namespaces"
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{name} has a token of the cluster"
    for name, container in containers(manifests):
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
            yield f"{name} may escalate"
        if security.get("readOnlyRootFilesystem") is not True:
            yield f"{name} may write its image"
        if security.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name} keeps capabilities"


def alive_is_not_ready(manifests: list[Manifest]) -> Iterator[str]:
    for name, container in containers(manifests):
        paths = {
            kind: container.get(kind, {}).get("httpGet", {}).get("path") for kind in ("livenessProbe", "readinessProbe")
        }
        if paths != {"livenessProbe": "/healthz", "readinessProbe": "/readyz"}:
            yield f"{name}: {paths}"
        if "startupProbe" not in container:
            yield f"{name} may be killed while it starts"


def answers_may_end(manifests: list[Manifest]) -> Iterator[str]:
    """The wait for balancers and the drain, 3 s for cut answers' records, 10 s for the engines' end."""
    for name, pod in pods(manifests):
        container = pod["containers"][0]
        drain = next((float(v["value"]) for v in container["env"] if v["name"] == "WOOTZ_SERVER__DRAIN_SECONDS"), None)
        wait = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])[1]
        if drain is None or float(wait) < 1:
            yield f"{name} is stopped while balancers still send to it"
        elif pod.get("terminationGracePeriodSeconds", 30) < float(wait) + drain + 13:
            yield f"{name} is killed while it drains"


def memory_is_bounded(manifests: list[Manifest]) -> Iterator[str]:
    for name, container in containers(manifests):
        resources = container.get("resources", {})
        if "memory" not in resources.get("limits", {}) or "cpu" not in resources.get("requests", {}):
            yield f"{name}: {resources}"


def one_zone_may_be_lost(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod in pods(manifests):
        zones = [
            s for s in pod.get("topologySpreadConstraints", []) if s["topologyKey"] == "topology.kubernetes.io/zone"
        ]
        if not zones or (
            name.endswith("-gateway")
            and (zones[0].get("minDomains", 1) < 2 or zones[0]["whenUnsatisfiable"] != "DoNotSchedule")
        ):
            yield f"{name} may be in one zone"
    for manifest in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject"):
        least = manifest["spec"].get("minReplicas", manifest["spec"].get("minReplicaCount", 1))
        if manifest["metadata"]["name"].endswith("-gateway") and least < 2:
            yield f"{manifest['metadata']['name']} may scale down to {least}"


def every_pod_has(kind: str, selector: Callable[[Manifest], Any]) -> Rule:
    def rule(manifests: list[Manifest]) -> Iterator[str]:
        selected = [selector(manifest) for manifest in of_kind(manifests, kind)]
        for manifest in of_kind(manifests, "Deployment"):
            labels = manifest["spec"]["template"]["metadata"]["labels"]
            if not any(chosen and chosen.items() <= labels.items() for chosen in selected):
                yield f"{manifest['metadata']['name']} has no {kind}"

    return rule


def nothing_is_public(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in of_kind(manifests, "Service"):
        if manifest["spec"].get("type", "ClusterIP") != "ClusterIP" or manifest["spec"].get("externalIPs"):
            yield f"Service {manifest['metadata']['name']} can be reached from outside"
    for manifest in of_kind(manifests, "Ingress"):
        yield f"Ingress {manifest['metadata']['name']}"
    for manifest in of_kind(manifests, "NetworkPolicy"):
        for rule in manifest["spec"].get("ingress", []):
            if not rule.get("from") or {} in rule["from"]:
                yield f"NetworkPolicy {manifest['metadata']['name']} lets everybody in"
        for rule in manifest["spec"].get("egress", []):
            for block in (peer["ipBlock"] for peer in rule.get("to", [{}]) if "ipBlock" in peer):
                everywhere = block["cidr"] == "0.0.0.0/0"
                if everywhere and not {"169.254.0.0/16", "10.0.0.0/8"} <= set(block.get("except", [])):
                    yield f"NetworkPolicy {manifest['metadata']['name']} leads to the metadata service"
        if set(manifest["spec"]["policyTypes"]) != {"Ingress", "Egress"}:
            yield f"NetworkPolicy {manifest['metadata']['name']} is one-sided"


def secrets_are_renewed(manifests: list[Manifest]) -> Iterator[str]:
    """Kubernetes renews a mounted folder; a single file or a variable stays as it was at start."""
    for name, container in containers(manifests):
        if any(mount.get("subPath") for mount in container["volumeMounts"]):
            yield f"{name} mounts a single file"
        if container.get("envFrom") or any("secretKeyRef" in v.get("valueFrom", {}) for v in container.get("env", [])):
            yield f"{name} has a secret in its environment"


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        no_secret_in_the_clear, images_are_pinned, nobody_is_root, alive_is_not_ready, answers_may_end,
        memory_is_bounded, one_zone_may_be_lost, nothing_is_public, secrets_are_renewed,
    )
} | {
    "disruptions_are_bounded": every_pod_has("PodDisruptionBudget", lambda m: m["spec"]["selector"]["matchLabels"]),
    "the_network_is_closed": every_pod_has("NetworkPolicy", lambda m: m["spec"]["podSelector"].get("matchLabels")),
}  # fmt: skip
