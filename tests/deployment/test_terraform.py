"""The Terraform code: its text by rules; its plans by Terraform and the real provider, where a machine has both.

Nothing is applied and nobody is asked: the plans are made offline, with credentials that are none.
"""

from __future__ import annotations

import copy
import glob
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hcl2
import pytest

from wootz.core import Config
from wootz.store.secrets.scan import scan_paths

TERRAFORM = Path(__file__).parents[2] / "deploy" / "terraform"
MODULES, ENVIRONMENTS = ("gateway", "live", "bootstrap"), ("dev", "staging", "prod")
MIRRORS = ("~/.terraform.d/plugins", "/usr/local/share/terraform/plugins", "/usr/share/terraform/plugins", "/opt/*")
SECRET_ARGUMENT = re.compile(
    r"(?:master_|auth_|_)?(?:password|auth_token|secret_string|secret_key|access_key|private_key)"
)

Tree = dict[str, Any]


# --- the text -------------------------------------------------------------------------------------------------------


@cache
def shipped() -> dict[str, list[Tree]]:
    return {
        name: [plain(hcl2.loads(file.read_text())) for file in sorted((TERRAFORM / name).glob("*.tf"))]
        for name in MODULES
    }


def plain(tree: Any) -> Any:
    """Without the quotes and marks that the parser leaves on names and texts."""
    if isinstance(tree, dict):
        return {key.strip('"'): plain(value) for key, value in tree.items() if not key.startswith("__")}
    if isinstance(tree, list):
        return [plain(part) for part in tree]
    return tree[1:-1] if isinstance(tree, str) and tree[:1] == tree[-1:] == '"' else tree


def blocks(files: list[Tree], kind: str) -> Iterator[tuple[str, Tree]]:
    """Each with its address: a resource's type and name, or one label."""
    for file in files:
        for block in file.get(kind, []):
            for label, body in block.items():
                if kind in ("resource", "data"):
                    yield from ((f"{label}.{name}", one) for name, one in body.items())
                else:
                    yield label, body


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{path}.{key}")
    else:
        yield path, tree


def breaches(modules: dict[str, list[Tree]]) -> list[str]:
    said = []
    for files in modules.values():
        for address, body in blocks(files, "resource"):
            kind = address.partition(".")[0]
            if re.search(r"secret_version|random_password|tls_private_key|aws_iam_access_key|ssm_parameter", kind):
                said.append(f"{address} would have a secret's value in the state")
            for path, value in leaves(body):
                last = path.rpartition(".")[2]
                if SECRET_ARGUMENT.fullmatch(last):
                    said.append(f"{address}{path} would have a secret's value in the state")
                if last in ("cidr_ipv4", "cidr_blocks") and value == "0.0.0.0/0" and "ingress" in kind:
                    said.append(f"{address} lets everybody in")
                if (
                    last in ("publicly_accessible", "assign_public_ip", "map_public_ip_on_launch")
                    and value is not False
                ):
                    said.append(f"{address} has a public address")
                if (last == "ignore_changes" or ".ignore_changes." in path) and "desired_count" not in str(value):
                    said.append(f"{address} hides drift")
            if kind in ("aws_eip", "aws_internet_gateway") or (kind == "aws_lb" and body.get("internal") is not True):
                said.append(f"{address} has a public address")
            encrypted = {
                "aws_db_instance": "storage_encrypted",
                "aws_elasticache_replication_group": "at_rest_encryption_enabled",
            }
            if kind in encrypted and body.get(encrypted[kind]) is not True:
                said.append(f"{address} is not encrypted")
            if kind == "aws_lb_listener" and body.get("protocol") != "HTTPS":
                said.append(f"{address} is not encrypted on the way")
        for address, body in blocks(files, "data"):
            if re.search(r"secretsmanager_secret_version|ssm_parameter|secretsmanager_random_password", address):
                said.append(f"{address} would have a secret's value in the state")
            for statement in body.get("statement", []):
                actions, allows = statement.get("actions", []), statement.get("effect", "Allow") == "Allow"
                reads = any(one in ("secretsmanager:GetSecretValue", "kms:Decrypt") for one in actions)
                if allows and reads and "*" in str(statement.get("resources")):
                    said.append(f"{address} opens all secrets to whoever breaks in")
        for address, body in blocks(files, "module"):
            if not str(body["source"]).startswith("../") and not re.search(r"\?ref=v?\d|^\d", str(body)):
                said.append(f"module {address} is not pinned")
        for address, _ in blocks(files, "variable"):
            if re.search(r"password|token|api_key|secret_value", address):
                said.append(f"variable {address} takes a secret's value")
    settings = [block for file in modules["live"] for block in file.get("terraform", [])]
    backend = next((block["backend"][0]["s3"] for block in settings if "backend" in block), {})
    if backend.get("encrypt") is not True or backend.get("use_lockfile") is not True:
        said.append("the state is not encrypted, or not locked")
    for name, files in modules.items():
        required = [block["required_providers"][0]["aws"] for f in files for block in f.get("terraform", [])]
        if not required or not required[0]["version"].startswith("~>"):
            said.append(f"{name}: any version of the provider")
    return said


def test_what_is_shipped_keeps_the_rules() -> None:
    assert breaches(shipped()) == []


def add(module: str, text: str) -> Callable[[dict[str, list[Tree]]], None]:
    return lambda modules: modules[module].append(plain(hcl2.loads(text + "\n")))


def change(module: str, address: str, **values: Any) -> Callable[[dict[str, list[Tree]]], None]:
    return lambda modules: dict(blocks(modules[module], "resource"))[address].update(values)


VALUE = "would have a secret's value in the state"


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (add("gateway", 'resource "aws_secretsmanager_secret_version" "x" {\n secret_id = "x"\n}'), VALUE),
        (add("gateway", 'resource "random_password" "x" {\n length = 20\n}'), VALUE),
        (add("gateway", 'data "aws_secretsmanager_secret_version" "x" {\n secret_id = "x"\n}'), VALUE),
        (change("gateway", "aws_db_instance.this", password="${var.password}"), VALUE),
        (change("gateway", "aws_elasticache_replication_group.this", auth_token="x"), VALUE),
        (add("gateway", 'variable "api_key" {\n type = string\n}'), "takes a secret's value"),
        (change("gateway", "aws_db_instance.this", publicly_accessible=True), "public address"),
        (change("gateway", "aws_lb.this", internal=False), "public address"),
        (change("gateway", "aws_ecs_service.this", network=[{"assign_public_ip": True}]), "public address"),
        (add("gateway", 'resource "aws_eip" "x" {\n domain = "vpc"\n}'), "public address"),
        (change("gateway", "aws_vpc_security_group_ingress_rule.clients", cidr_ipv4="0.0.0.0/0"), "lets everybody in"),
        (change("gateway", "aws_db_instance.this", storage_encrypted=False), "is not encrypted"),
        (change("gateway", "aws_lb_listener.this", protocol="HTTP"), "on the way"),
        (change("gateway", "aws_db_instance.this", lifecycle=[{"ignore_changes": ["engine_version"]}]), "hides drift"),
        (add("live", 'module "x" {\n source = "git::https://example.org/x"\n}'), "is not pinned"),
        (
            add("gateway", 'data "aws_iam_policy_document" "x" {\n statement {\n'
                '  actions = ["secretsmanager:GetSecretValue"]\n  resources = ["*"]\n }\n}'),
            "opens all secrets",
        ),
        (lambda modules: modules["live"][0]["terraform"][0].pop("backend"), "the state is not encrypted"),
        (lambda modules: modules["gateway"].pop(-1), "any version"),
    ],
)  # fmt: skip
def test_each_rule_finds_its_breach(break_it: Callable[[dict[str, list[Tree]]], Any], said: str) -> None:
    modules = copy.deepcopy(shipped())
    break_it(modules)
    assert [one for one in breaches(modules) if said in one]


def test_environments_differ_in_values_and_in_nothing_else() -> None:
    files = {file.stem: plain(hcl2.loads(file.read_text())) for file in (TERRAFORM / "live/environments").iterdir()}
    assert set(files) == set(ENVIRONMENTS)
    assert {file.stem for file in (TERRAFORM / "live/backends").iterdir()} == set(ENVIRONMENTS)
    declared = {name for name, _ in blocks(shipped()["live"], "variable")}
    for name, values in files.items():
        assert set(values) == declared
        assert values["environment"] == name
        assert values["settings"].keys() == files["prod"]["settings"].keys()
    assert files["prod"]["protected"] is True
    assert files["staging"]["protected"] is True


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_settings_are_ones_that_wootz_reads(name: str, tmp_path: Path) -> None:
    from wootz.core import load_config

    values = plain(hcl2.loads((TERRAFORM / "live/environments" / f"{name}.tfvars").read_text()))
    environ = {f"WOOTZ_{key}": value for key, value in values["settings"].items()} | {"WOOTZ_HOME": str(tmp_path)}
    config: Config = load_config(environ=environ, cwd=tmp_path).config
    assert config.server.master_key, "without one the first start would print an administrator's key into the log"
    references = set(re.findall(r"aws:[\w/-]+", json.dumps(values["settings"])))
    assert references == {f"aws:wootz-{name}/{secret}" for secret in values["secrets"]}


# --- the plans ------------------------------------------------------------------------------------------------------

OFFLINE = """
terraform {
  backend "local" {}
}

provider "aws" {
  region                      = var.region
  access_key                  = "offline"
  secret_key                  = "offline"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
}
"""


def mirror() -> str | None:
    """A folder with the provider's binary, as machine images and `terraform providers mirror` lay it out."""
    places = [path for pattern in MIRRORS for path in glob.glob(str(Path(pattern).expanduser()))]
    return next((p for p in places if glob.glob(f"{p}/registry.terraform.io/hashicorp/aws/*/*/*aws*")), None)


class Terraform:
    def __init__(self, folder: Path) -> None:
        self.live = (
            shutil.copytree(TERRAFORM, folder / "terraform", ignore=shutil.ignore_patterns(".terraform")) / "live"
        )
        (self.live / "offline_override.tf").write_text(OFFLINE)
        (self.live / ".terraform.lock.hcl").unlink()
        self.environ = {
            **os.environ,
            "TF_CLI_CONFIG_FILE": os.devnull,
            "TF_IN_AUTOMATION": "1",
            "CHECKPOINT_DISABLE": "1",
        }
        self.say("init", "-input=false", f"-plugin-dir={mirror()}")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["terraform", *words, *(["-no-color"] if words[0] != "fmt" else [])]
        return subprocess.run(command, cwd=self.live, env=self.environ, capture_output=True, text=True, timeout=170)

    def say(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def plan(self, name: str) -> Tree:
        self.say("plan", "-input=false", f"-var-file=environments/{name}.tfvars", f"-out={name}.tfplan")
        shown = self.say("show", "-json", f"{name}.tfplan")
        (self.live / f"{name}.json").write_text(shown)
        return json.loads(shown)


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    if shutil.which("terraform") is None or mirror() is None:
        pytest.skip("needs terraform and a mirror of its aws provider")
    return Terraform(tmp_path_factory.mktemp("terraform"))


def planned(plan: Tree) -> dict[str, Tree]:
    (module,) = plan["planned_values"]["root_module"]["child_modules"]
    return {one["address"].removeprefix("module.gateway."): one["values"] for one in module["resources"]}


def test_it_is_formatted(terraform: Terraform) -> None:
    assert terraform.say("fmt", "-check", "-recursive", str(TERRAFORM)) == ""


@pytest.mark.slow
def test_prod_is_two_private_replicas_in_two_zones_and_no_secret_is_in_its_plan(terraform: Terraform) -> None:
    resources = planned(terraform.plan("prod"))
    service, scaling = resources["aws_ecs_service.this"], resources["aws_appautoscaling_target.this"]
    assert (service["desired_count"], scaling["min_capacity"]) == (2, 2)
    assert len(service["network_configuration"][0]["subnets"]) == 2
    assert service["network_configuration"][0]["assign_public_ip"] is False
    assert resources["aws_lb.this"]["internal"] is True
    (container,) = json.loads(resources["aws_ecs_task_definition.this"]["container_definitions"])
    assert (container["user"], container["readonlyRootFilesystem"]) == ("10001:10001", True)
    assert "secrets" not in container, "a value in the environment could not be renewed"
    keys = {one["name"]: one["value"] for one in container["environment"] if one["name"].endswith("_KEY")}
    assert all(value.startswith("aws:") for value in keys.values())
    assert (
        container["stopTimeout"]
        >= int(next(one["value"] for one in container["environment"] if one["name"] == "WOOTZ_SERVER__DRAIN_SECONDS"))
        + 13
    )
    environ = {one["name"]: one["value"] for one in container["environment"]}
    assert json.loads(environ["WOOTZ_SERVER__TRUSTED_PROXIES"]) == ["10.3.0.0/20", "10.3.16.0/20"]
    database = resources["aws_db_instance.this"]
    assert (database["manage_master_user_password"], database.get("password"), database["multi_az"]) == (
        True,
        None,
        True,
    )
    secrets = [name for name in resources if name.startswith("aws_secretsmanager_secret.")]
    assert len(secrets) == 6
    assert not any("value" in key or "string" in key for name in secrets for key in resources[name])
    assert not scan_paths([terraform.live / "prod.tfplan", terraform.live / "prod.json"], {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dev", "staging"])
def test_the_same_code_plans_the_others(terraform: Terraform, name: str) -> None:
    resources = planned(terraform.plan(name))
    assert resources["aws_lb.this"]["enable_deletion_protection"] is (name != "dev")
    assert not scan_paths([terraform.live / f"{name}.tfplan", terraform.live / f"{name}.json"], {})


CANARY = "zQ8mV2xK4tR7wB1nY6pL"  # wootz: no secret
LEAK = f"""
variable "canary" {{
  type      = string
  sensitive = true
  default   = "{CANARY}"
}}

resource "terraform_data" "hook" {{
  input = "https://gateway.example/hook?k=${{var.canary}}"
}}
"""
MADE_OF_IT = 'output "hook" {\n  value = "https://gateway.example/hook?k=${var.canary}"\n}\n'
MADE_BY_A_RESOURCE = 'output "hook" {\n  value = terraform_data.hook.output\n}\n'


@pytest.mark.slow
def test_what_is_made_of_a_secret_is_found_also_where_terraform_no_longer_knows(terraform: Terraform) -> None:
    leak, values = terraform.live / "leak.tf", "-var-file=environments/dev.tfvars"
    try:
        leak.write_text(LEAK + MADE_OF_IT)
        refused = terraform.run("plan", "-input=false", values)
        assert "Output refers to sensitive values" in refused.stderr

        # Through a resource's computed attribute the mark is lost: Terraform lets it pass, the scan does not.
        leak.write_text(LEAK + MADE_BY_A_RESOURCE)
        terraform.plan("dev")
        assert CANARY not in terraform.say("show", "dev.tfplan"), "masked where people look"
        found = scan_paths([terraform.live / "dev.json", terraform.live / "dev.tfplan"], {})
        assert {"dev.json", "dev.tfplan"} <= {Path(finding.path.partition("!")[0]).name for finding in found}
        terraform.say("apply", "-input=false", "-auto-approve", "-target=terraform_data.hook", values)
        assert CANARY in terraform.say("output", "-raw", "hook")
        state = (terraform.live / "terraform.tfstate").read_text()
        output, *_ = (n for n, text in enumerate(state.splitlines(), 1) if '"value": "https://gateway.example' in text)
        assert output in {finding.line for finding in scan_paths([terraform.live / "terraform.tfstate"], {})}
    finally:
        leak.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (r"@sha256:[0]+", ":latest", "by its digest"),
        (r"(?m)^  eu-central-1b.*\n", "", "Two zones at least"),
        (r"10\.1\.0\.0/20", "0.0.0.0/0", "not everybody.s"),
        (r"min = 2", "min = 1", "Two replicas at least"),
        (r'"aws:wootz-dev/openai"', '"sk-a-plain-key"', "must be a reference"),
        (r"openai       =", '"*"          =', "a \\* would open all"),
    ],
)
def test_what_would_be_regretted_is_refused(terraform: Terraform, old: str, new: str, said: str) -> None:
    text, count = re.subn(old, new, (TERRAFORM / "live/environments/dev.tfvars").read_text(), count=1)
    assert count
    (terraform.live / "broken.tfvars").write_text(text)
    done = terraform.run("plan", "-input=false", "-var-file=broken.tfvars")
    assert done.returncode != 0
    assert re.search(said, " ".join(done.stderr.replace("│", " ").split()))
