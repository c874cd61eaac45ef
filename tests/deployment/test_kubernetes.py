"""The chart and what it renders to: by Helm's own engine, by Kubernetes' own schemas, by rules seen to fail."""

from __future__ import annotations

import copy
import importlib.util
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from deployment.manifests import RULES, Manifest, of_kind
from wootz.core import Config, load_config
from wootz.telemetry.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART, KUBERNETES = DEPLOY / "helm" / "wootz", DEPLOY / "kubernetes"
spec = importlib.util.spec_from_file_location("render", KUBERNETES / "render.py")
assert spec is not None
assert spec.loader is not None
rendering = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rendering)
VARIANTS: dict[str, dict[str, Any]] = rendering.VARIANTS


def shipped(variant: str) -> list[Manifest]:
    files = sorted((KUBERNETES / variant).glob("*.yaml"))
    documents = [one for file in files for one in yaml.safe_load_all(file.read_text()) if one]
    return [one for one in documents if one["kind"] != "Kustomization"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_manifests_are_what_the_chart_renders(variant: str) -> None:
    folder = KUBERNETES / variant
    there = {file.name: file.read_text() for file in folder.glob("*.yaml") if file.name != "kustomization.yaml"}
    assert there == rendering.render(VARIANTS[variant]), "run python deploy/kubernetes/render.py"
    assert yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"] == sorted(there)


@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_finds_nothing_to_say(variant: str) -> None:
    report = helm_python.lint(CHART, VARIANTS[variant], strict=True)
    assert [m for m in report["messages"] if m["severity"] > 1] == []
    assert not report["errors"]


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"tag": "latest"}},
        {"replicas": 1},
        {"replica": 3},
        {"autoscaling": {"min": 1}},
        {"networkPolicy": {"clients": []}},
        {"networkPolicy": {"stores": [{"cidr": "0.0.0.0/0", "ports": [5432]}]}},
        {"image": {"digest": "sha256:short"}},
        {"trustedProxies": ["*"]},
        {"trustedProxies": ["0.0.0.0/0"]},
    ],
)
def test_values_that_would_be_regretted_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError):
        helm_python.Chart.load(CHART).validate_schema(values)


def test_the_ingress_is_believed_where_it_is_named() -> None:
    text = rendering.render({"trustedProxies": ["10.4.0.0/16", "fd00::/8"]})["gateway.yaml"]
    (container,) = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
    environ = {one["name"]: one["value"] for one in container["env"]} | {"WOOTZ_HOME": "/nowhere"}
    config = load_config(environ=environ, cwd=Path("/nowhere")).config
    assert config.server.trusted_proxies == ["10.4.0.0/16", "fd00::/8"]


@pytest.mark.parametrize("version", ["1.29.0", "1.32.0", "1.36.0"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_knows_every_field(variant: str, version: str) -> None:
    for manifest in shipped(variant):
        if manifest["kind"] != "ScaledObject":
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rule", RULES)
def test_what_is_shipped_keeps_the_rules(variant: str, rule: str) -> None:
    assert list(RULES[rule](shipped(variant))) == []


def gateway(manifests: list[Manifest]) -> Manifest:
    return next(m for m in of_kind(manifests, "Deployment") if m["metadata"]["name"] == "wootz-gateway")


def pod(manifests: list[Manifest]) -> Manifest:
    return gateway(manifests)["spec"]["template"]["spec"]


def first(manifests: list[Manifest]) -> Manifest:
    return pod(manifests)["containers"][0]


def without(kind: str) -> Callable[[list[Manifest]], None]:
    def remove(manifests: list[Manifest]) -> None:
        manifests[:] = [m for m in manifests if m["kind"] != kind]

    return remove


def put(find: Callable[[list[Manifest]], Manifest], key: str, value: Any) -> Callable[[list[Manifest]], None]:
    def change(manifests: list[Manifest]) -> None:
        find(manifests)[key] = value

    return change


def one(kind: str) -> Callable[[list[Manifest]], Manifest]:
    return lambda manifests: next(of_kind(manifests, kind))


A_SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"openai-key": "eA=="}}
BROKEN: list[tuple[str, Callable[[list[Manifest]], None]]] = [
    ("no_secret_in_the_clear", lambda m: m.append(A_SECRET)),
    ("no_secret_in_the_clear", lambda m: first(m)["env"].append({"name": "OPENAI_API_KEY", "value": "x"})),
    ("images_are_pinned", put(first, "image", "registry:5000/wootz-gateway:latest")),
    ("images_are_pinned", put(first, "image", "registry:5000/wootz-gateway")),
    ("nobody_is_root", lambda m: pod(m)["securityContext"].pop("runAsNonRoot")),
    ("nobody_is_root", put(pod, "hostNetwork", True)),
    ("nobody_is_root", put(pod, "automountServiceAccountToken", True)),
    ("nobody_is_root", lambda m: first(m)["securityContext"].update(readOnlyRootFilesystem=False)),
    ("nobody_is_root", lambda m: first(m)["securityContext"]["capabilities"].update(drop=["NET_RAW"])),
    ("alive_is_not_ready", lambda m: first(m)["livenessProbe"]["httpGet"].update(path="/readyz")),
    ("alive_is_not_ready", lambda m: first(m).pop("readinessProbe")),
    ("alive_is_not_ready", lambda m: first(m).pop("startupProbe")),
    ("answers_may_end", put(pod, "terminationGracePeriodSeconds", 40)),
    ("answers_may_end", lambda m: first(m).pop("lifecycle")),
    ("memory_is_bounded", lambda m: first(m)["resources"].pop("limits")),
    ("one_zone_may_be_lost", put(pod, "topologySpreadConstraints", [])),
    ("one_zone_may_be_lost", lambda m: pod(m)["topologySpreadConstraints"][0].pop("minDomains")),
    ("disruptions_are_bounded", without("PodDisruptionBudget")),
    ("the_network_is_closed", without("NetworkPolicy")),
    ("nothing_is_public", lambda m: one("Service")(m)["spec"].update(type="LoadBalancer")),
    ("nothing_is_public", lambda m: one("NetworkPolicy")(m)["spec"]["ingress"][0].pop("from")),
    ("nothing_is_public", lambda m: one("NetworkPolicy")(m)["spec"]["egress"][-1]["to"][0]["ipBlock"].pop("except")),
    ("nothing_is_public", lambda m: one("NetworkPolicy")(m)["spec"].update(policyTypes=["Ingress"])),
    ("secrets_are_renewed", lambda m: first(m)["volumeMounts"][1].update(subPath="openai-key")),
    ("secrets_are_renewed", put(first, "envFrom", [{"secretRef": {"name": "wootz"}}])),
]


@pytest.mark.parametrize(("rule", "break_it"), BROKEN, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(BROKEN)])
def test_each_rule_finds_its_breach_and_no_other_does(rule: str, break_it: Callable[[list[Manifest]], None]) -> None:
    manifests = copy.deepcopy(shipped("gateway"))
    break_it(manifests)
    assert {name for name, one in RULES.items() if list(one(manifests))} == {rule}


def test_every_rule_was_broken() -> None:
    assert {rule for rule, _ in BROKEN} == set(RULES)


def test_it_scales_by_measures_that_the_gateway_exports() -> None:
    manifests = shipped("gateway") + shipped("gateway-and-engine")
    hpa = one("HorizontalPodAutoscaler")(manifests)["spec"]["metrics"]
    named = {measure["pods"]["metric"]["name"] for measure in hpa if measure["type"] == "Pods"}
    for scaled in of_kind(manifests, "ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            named |= set(re.findall(r"wootz_\w+", trigger["metadata"].get("query", "")))
    exported = set(re.findall(r"^# TYPE (\w+)", Metrics().text().decode(), re.MULTILINE))
    assert named
    assert named <= exported


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_configurations_are_ones_that_wootz_reads(variant: str) -> None:
    maps = [m["data"]["wootz.toml"] for m in of_kind(shipped(variant), "ConfigMap")]
    assert len(maps) == 1 + (variant == "gateway-and-engine")
    for text in maps:
        config = Config.model_validate(tomllib.loads(text))
        assert config.server.master_key, "without one the first start would print an administrator's key into the log"
    pods = {m["metadata"]["name"]: m["spec"]["template"]["spec"] for m in of_kind(shipped(variant), "Deployment")}
    for name, spec in pods.items():
        folders = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        text = next(
            m["data"]["wootz.toml"] for m in of_kind(shipped(variant), "ConfigMap") if m["metadata"]["name"] == name
        )
        for path in re.findall(r'"(?:file:)?(/[^"]+)"', text):
            assert any(path.startswith(folder + "/") for folder in folders), path
