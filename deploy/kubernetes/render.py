"""Renders the chart into this folder; run it after every change of the chart: `python deploy/kubernetes/render.py`.

The manifests here are for who uses `kubectl apply -k` and no Helm; a test holds them equal to the chart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHART = HERE.parent / "helm" / "wootz"
VARIANTS: dict[str, dict[str, Any]] = {
    "gateway": {},
    "gateway-and-engine": {"engine": {"enabled": True}, "autoscaling": {"kind": "keda"}, "vault": {"enabled": True}},
}


def render(values: dict[str, Any]) -> dict[str, str]:
    """The manifests by file name, as `helm template wootz deploy/helm/wootz --namespace wootz` prints them."""
    from helm_python import Chart

    rendered = Chart.load(CHART).render(values, name="wootz", namespace="wootz")
    texts = {Path(path).name: text.strip() + "\n" for path, text in rendered.items() if path.endswith(".yaml")}
    return {name: text for name, text in sorted(texts.items()) if text.strip()}


def main() -> None:
    for variant, values in VARIANTS.items():
        folder = HERE / variant
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.yaml"):
            old.unlink()
        texts = render(values)
        for name, text in texts.items():
            (folder / name).write_text(text)
        listed = "".join(f"  - {name}\n" for name in texts)
        head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: wootz\nresources:\n"
        (folder / "kustomization.yaml").write_text(head + listed)


if __name__ == "__main__":
    main()
