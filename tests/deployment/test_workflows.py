"""The change gates: by GitHub's schema of workflows, and by rules on which each was seen to fail."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import check_jsonschema
import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
SCHEMAS = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
ENVIRONMENTS = ["dev", "staging", "prod"]
GATES = [
    "terraform fmt -check",
    "terraform init",
    "terraform validate",
    "tflint --init",
    "checkov --directory",
    "terraform plan",
    "wootz secrets scan",
    "upload-artifact",
    "createComment",
]

REVIEWED = "the plan is of the reviewed pull request's own run"

Tree = dict[str, Any]


def shipped(name: str) -> Tree:
    tree = yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text())
    tree["on"] = tree.pop(True)  # YAML 1.1 reads "on" as a truth.
    return tree


def steps(tree: Tree) -> Iterator[tuple[str, Tree, str]]:
    for name, job in tree["jobs"].items():
        for step in job["steps"]:
            yield name, step, json.dumps(step)


def breaches_of_any(tree: Tree) -> list[str]:
    said, text = [], json.dumps(tree)
    if "pull_request_target" in tree["on"]:
        said.append("a stranger's code would run with this repository's rights")
    if tree.get("permissions") != {"contents": "read"}:
        said.append("jobs have more rights than they ask for")
    if re.search(r"\$\{\{\s*secrets\.", text) or re.search(r"(?i)aws_secret_access_key|access-key", text):
        said.append("a key that is kept, where an identity would do")
    for job, step, raw in steps(tree):
        if "uses" in step and not re.search(r"@(v\d+|[0-9a-f]{40})", step["uses"]):
            said.append(f"{job}: {step['uses']} is not pinned")
        run = step.get("run", "")
        if re.search(r"set -[a-z]*x|bash -x|TF_LOG(?!_CORE|_PATH)", raw):
            said.append(f"{job} writes what it does, keys included, into the log")
        if re.search(r"\$\{\{\s*(github\.event|github\.head_ref|inputs\.(run_id|commit))", run):
            said.append(f"{job}: what somebody typed becomes part of a script")
        if "checkout" in step.get("uses", "") and step.get("with", {}).get("persist-credentials") is not False:
            said.append(f"{job}: later steps get the token")
    for name, job in tree["jobs"].items():
        if "timeout-minutes" not in job:
            said.append(f"{name} may run for hours")
    return said


def breaches_of_plan(tree: Tree) -> list[str]:
    said, job = [], tree["jobs"]["plan"]
    if set(tree["on"]) != {"pull_request"}:
        said.append("not a check of pull requests")
    strategy = job["strategy"]
    if strategy["matrix"]["environment"] != ENVIRONMENTS or strategy.get("fail-fast") is not False:
        said.append("an environment is not seen")
    found = [
        next((i for i, (name, _, raw) in enumerate(steps(tree)) if name == "plan" and gate in raw), None)
        for gate in GATES
    ]
    if None in found:
        said.append(f"no {GATES[found.index(None)]}")
    elif found != sorted(place for place in found if place is not None):
        said.append("gates in another order")
    if re.search(r"terraform apply|APPLY_ROLE", json.dumps(tree)):
        said.append("who plans may write")
    if job["environment"] in ("${{ matrix.environment }}", *ENVIRONMENTS):
        said.append("a plan gets the identity that applies")
    if "60000" not in json.dumps(job):
        said.append("a comment that GitHub refuses")
    if "wootz secrets scan ." not in json.dumps(tree["jobs"].get("guard", {})):
        said.append("no repository guard")
    return said


def breaches_of_apply(tree: Tree) -> list[str]:
    said, (job,) = [], tree["jobs"].values()
    if set(tree["on"]) != {"workflow_dispatch"}:
        said.append("starts by itself")
    if job.get("if") != "github.ref == 'refs/heads/main'":
        said.append("from any branch")
    if job.get("environment") != "${{ inputs.environment }}":
        said.append("nobody reviews prod")
    text = json.dumps(job)
    if re.search(r"terraform plan|-auto-approve|-var-file", text) or not re.search(
        r"terraform apply [^\"]*\.tfplan", text
    ):
        said.append("applies something else than the plan that was reviewed")
    if "download-artifact" not in text or "inputs.run_id" not in text:
        said.append("no saved plan")
    names = [step.get("name") for step in job["steps"]]
    if REVIEWED not in names[:1]:
        said.append("the plan may be of anybody's run")
    if "PLAN_ROLE" in text or "APPLY_ROLE" not in text:
        said.append("one identity for both")
    if tree["concurrency"].get("cancel-in-progress") is not False:
        said.append("an apply may be broken off")
    if "diff --recursive" not in text:
        said.append("the plan may be of other code than main's")
    return said


RULES = {"infrastructure-plan": breaches_of_plan, "infrastructure-apply": breaches_of_apply, "secrets": lambda _: []}


@pytest.mark.parametrize("name", RULES)
def test_github_reads_it(name: str) -> None:
    jsonschema.validate(shipped(name), json.loads((SCHEMAS / "github-workflows.json").read_text()))


@pytest.mark.parametrize("name", RULES)
def test_what_is_shipped_keeps_the_rules(name: str) -> None:
    tree = shipped(name)
    assert breaches_of_any(tree) + RULES[name](tree) == []


def drop(name: str, wanted: str) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        job = tree["jobs"][name]
        job["steps"] = [step for step in job["steps"] if wanted not in json.dumps(step)]

    return change


def put(path: str, value: Any) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        *way, last = path.split(".")
        for part in way:
            tree = tree[int(part)] if isinstance(tree, list) else tree[part]
        tree[last] = value

    return change


def run(job: str, command: str) -> Callable[[Tree], None]:
    return lambda tree: tree["jobs"][job]["steps"].append({"run": command})


PLAN, APPLY = "infrastructure-plan", "infrastructure-apply"


@pytest.mark.parametrize(
    ("name", "break_it", "said"),
    [
        (PLAN, put("on.pull_request_target", {}), "a stranger's code"),
        (PLAN, put("permissions", {"contents": "write"}), "more rights"),
        (PLAN, put("env", {"KEY": "${{ secrets.AWS }}"}), "a key that is kept"),
        (PLAN, put("jobs.plan.steps.1.uses", "hashicorp/setup-terraform@main"), "is not pinned"),
        (PLAN, run("plan", "set -x; terraform show"), "into the log"),
        (PLAN, run("plan", "TF_LOG=DEBUG terraform plan"), "into the log"),
        (PLAN, run("plan", "echo ${{ github.event.pull_request.title }}"), "part of a script"),
        (PLAN, put("jobs.plan.steps.0.with", {}), "later steps get the token"),
        (PLAN, lambda tree: tree["jobs"]["plan"].pop("timeout-minutes"), "for hours"),
        (PLAN, put("on.push", {}), "not a check of pull requests"),
        (PLAN, put("jobs.plan.strategy.fail-fast", True), "not seen"),
        (PLAN, put("jobs.plan.strategy.matrix.environment", ["dev", "prod"]), "not seen"),
        *((PLAN, drop("plan", gate), f"no {gate}") for gate in GATES),
        (PLAN, lambda tree: tree["jobs"]["plan"]["steps"].reverse(), "another order"),
        (PLAN, run("plan", "terraform apply -auto-approve"), "may write"),
        (PLAN, put("jobs.plan.environment", "${{ matrix.environment }}"), "the identity that applies"),
        (PLAN, drop("guard", "secrets scan"), "no repository guard"),
        (APPLY, put("on.push", {"branches": ["main"]}), "starts by itself"),
        (APPLY, put("jobs.apply.if", "true"), "from any branch"),
        (APPLY, put("jobs.apply.environment", "dev"), "nobody reviews prod"),
        (APPLY, run("apply", "terraform plan -out=new.tfplan"), "something else"),
        (APPLY, drop("apply", "terraform apply"), "something else"),
        (APPLY, drop("apply", "download-artifact"), "no saved plan"),
        (APPLY, run("apply", "echo ${{ vars.PLAN_ROLE }}"), "one identity"),
        (APPLY, put("concurrency.cancel-in-progress", True), "broken off"),
        (APPLY, drop("apply", "diff --recursive"), "other code"),
        (APPLY, drop("apply", "gh api"), "anybody's run"),
        (APPLY, lambda tree: tree["jobs"]["apply"]["steps"].reverse(), "anybody's run"),
        (APPLY, run("apply", "echo ${{ inputs.commit }}"), "part of a script"),
    ],
)
def test_each_rule_finds_its_breach(name: str, break_it: Callable[[Tree], None], said: str) -> None:
    tree = copy.deepcopy(shipped(name))
    break_it(tree)
    assert [one for one in breaches_of_any(tree) + RULES[name](tree) if said in one]


# --- the check of the run, as its shell runs it --------------------------------------------------------------------

COMMIT, RUN = "c0ffee00" * 5, "4711"
GH = """#!/bin/sh
case "$2" in
  repos/own/wootz/actions/runs/4711) cat run.json ;;
  repos/own/wootz/commits/c0ffee00*/pulls) cat pulls.json ;;
  *) exit 1 ;;
esac
"""


def passes(folder: Path, said: Tree, run_id: str = RUN, commit: str = COMMIT) -> bool:
    """``said``, by dotted path, is what GitHub says otherwise: of the ``run``, or of the commit's ``pulls``."""
    here = {"full_name": "own/wootz"}
    # As https://docs.github.com/en/rest/actions/workflow-runs and …/rest/commits/commits have them.
    answers = {
        "run": {
            "path": ".github/workflows/infrastructure-plan.yml", "event": "pull_request", "head_sha": COMMIT,
            "repository": here, "head_repository": here, "status": "completed", "conclusion": "success",
        },
        "pulls": [{"base": {"ref": "main"}, "head": {"sha": COMMIT}, "merged_at": "2026-11-28T10:00:00Z"}],
    }  # fmt: skip
    for path, value in said.items():
        put(path, value)(answers)
    for name, answer in answers.items():
        (folder / f"{name}.json").write_text(json.dumps(answer))
    (folder / "gh").write_text(GH)
    (folder / "gh").chmod(0o700)
    (step,) = (step for step in shipped(APPLY)["jobs"]["apply"]["steps"] if step.get("name") == REVIEWED)
    path = f"{folder}:{os.environ['PATH']}"
    environ = {"PATH": path, "RUN_ID": run_id, "COMMIT": commit, "GITHUB_REPOSITORY": "own/wootz"}
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # As GitHub runs "shell: bash".
    return subprocess.run(shell, cwd=folder, env=environ, capture_output=True).returncode == 0


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.parametrize("said", [{}, {"run.path": ".github/workflows/infrastructure-plan.yml@main"}])
def test_the_run_of_a_merged_pull_request_passes(tmp_path: Path, said: Tree) -> None:
    assert passes(tmp_path, said)


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.parametrize(
    "said",
    [
        {"run.path": ".github/workflows/other.yml"},
        {"run.event": "workflow_dispatch"},
        {"run.head_sha": "0" * 40},
        {"run.repository": {"full_name": "fork/wootz"}},
        {"run.head_repository": {"full_name": "fork/wootz"}},
        {"run.head_repository": None},
        {"run.status": "in_progress", "run.conclusion": None},
        {"run.conclusion": "failure"},
        {"run": {}},
        {"pulls": []},
        {"pulls.0.base": {"ref": "release"}},
        {"pulls.0.head": {"sha": "0" * 40}},
        {"pulls.0.merged_at": None},
    ],
    ids=str,
)
def test_any_other_run_is_refused(tmp_path: Path, said: Tree) -> None:
    assert not passes(tmp_path, said)


@pytest.mark.parametrize(
    ("run_id", "commit"),
    [("4712", COMMIT), ("4711/../4711", COMMIT), ("", COMMIT), (RUN, "main"), (RUN, f"{COMMIT}/x")],
)
def test_what_was_typed_is_a_run_and_a_commit(tmp_path: Path, run_id: str, commit: str) -> None:
    assert not passes(tmp_path, {}, run_id, commit)


def test_each_quarter_a_rotation_is_rehearsed() -> None:
    tree = shipped("secrets")
    quarterly = [when["cron"] for when in tree["on"]["schedule"] if when["cron"].endswith("1,4,7,10 *")]
    assert tree["jobs"]["drill"]["if"] == f"github.event.schedule == '{quarterly[0]}'"
    assert any(step.get("run") == "wootz secrets drill" for step in tree["jobs"]["drill"]["steps"])
    assert {"push", "pull_request"} <= set(tree["on"])


def test_atlantis_holds_one_lock_an_environment_and_pull_requests_do_not_set_its_rules() -> None:
    projects = yaml.safe_load((ROOT / "atlantis.yaml").read_text())
    server = yaml.safe_load((ROOT / "deploy" / "atlantis" / "repos.yaml").read_text())
    assert [(one["name"], one["workspace"], one["workflow"]) for one in projects["projects"]] == [
        (name, name, name) for name in ENVIRONMENTS
    ]
    assert {one["dir"] for one in projects["projects"]} == {"deploy/terraform/live"}, "one code path"
    assert (projects["parallel_apply"], projects["automerge"]) == (False, False)
    assert not {"apply_requirements", "workflows"} & {key for one in [projects, *projects["projects"]] for key in one}
    (repository,) = server["repos"]
    assert repository["allow_custom_workflows"] is False
    assert set(repository["apply_requirements"]) == {"approved", "mergeable", "undiverged"}
    assert set(server["workflows"]) == set(repository["allowed_workflows"]) == set(ENVIRONMENTS)
    for name, workflow in server["workflows"].items():
        text = json.dumps(workflow["plan"])
        assert f"environments/{name}.tfvars" in text
        assert "wootz secrets scan" in text
        assert text.index("fmt -check") < text.index("validate") < text.index("-var-file")
