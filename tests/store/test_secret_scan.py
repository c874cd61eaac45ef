"""The scanner against canaries that are drawn anew each time, so that no rule can have been made for one of them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import string
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from wootz.store.secrets.scan import Finding, scan_history, scan_paths
from wootz.store.secrets.scan.guises import Known, Search

REPOSITORY = Path(__file__).parents[2]
ALPHANUMERIC = string.ascii_letters + string.digits


@pytest.fixture(scope="module")
def draw() -> Callable[..., str]:
    source = random.Random(7)
    return lambda length, prefix="", alphabet=ALPHANUMERIC: prefix + "".join(source.choices(alphabet, k=length))


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.test"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def the_kinds(draw: Callable[..., str]) -> list[str]:
    """One key in each maker's format."""
    upper = string.ascii_uppercase + string.digits
    return [
        draw(40, "sk-proj-"), draw(60, "sk-ant-api03-"), draw(32, "sk-", "0123456789abcdef"), draw(16, "AKIA", upper),
        draw(20, "LTAI"), draw(35, "AIza"), draw(36, "ghp_"), draw(20, "glpat-"), draw(24, "xoxb-"), draw(34, "hf_"),
        draw(36, "npm_"), draw(60, "pypi-"), draw(24, "hvs."), draw(24, "sk_live_"), draw(43, "sk-wootz-"),
    ]  # fmt: skip


def state(secrets: list[str]) -> str:
    """A Terraform state of version 4: a marked output, a marked attribute, a bare password, and what comes of it."""
    marked, attribute, bare = secrets
    instance = {
        "attributes": {"name": "db", "connection": attribute, "password": bare, "port": 5432},
        "sensitive_attributes": [[{"type": "get_attr", "value": "connection"}]],
    }
    outputs = {
        "marked": {"value": marked, "type": "string", "sensitive": True},
        "made_of_it": {"value": f"https://api.test/v1?k={quote(marked, safe='')}", "type": "string"},
    }
    resources = [{"mode": "managed", "type": "db", "name": "main", "instances": [instance]}]
    return json.dumps(
        {"version": 4, "terraform_version": "1.9.5", "outputs": outputs, "resources": resources}, indent=2
    )


def plan(secrets: list[str]) -> str:
    """What ``terraform show -json`` prints of a plan."""
    variable, after, planned = secrets
    change = {"after": {"value": after, "size": 3}, "after_sensitive": {"value": True}}
    resource = {"address": "kms.a", "values": {"data": planned}, "sensitive_values": {"data": True}}
    tree = {
        "format_version": "1.2", "terraform_version": "1.9.5",
        "variables": {"db": {"value": variable}, "region": {"value": "cn-beijing"}},
        "configuration": {"root_module": {"variables": {"db": {"sensitive": True}, "region": {}}}},
        "planned_values": {"root_module": {"resources": [resource]}},
        "resource_changes": [{"address": "kms.a", "change": change}],
    }  # fmt: skip
    return json.dumps(tree)


def test_every_canary_in_every_kind_of_place_is_found(tmp_path: Path, draw: Callable[..., str]) -> None:
    known = {f"known-{number}": draw(24, alphabet=ALPHANUMERIC + '/+"&=') for number in range(10)}
    loose = [draw(20, alphabet=string.ascii_lowercase) for _ in range(6)]  # Only Terraform says that they are secret.
    values, words = iter(known.values()), iter(loose)
    randoms = [draw(28) for _ in range(11)]
    planted: dict[str, list[tuple[str, str]]] = {}

    def plant(file: str, *lines: tuple[str, str]) -> None:
        planted[file] = list(lines)
        (tmp_path / file).write_text("# nothing here\n" + "\n".join(text for _, text in lines) + "\n")

    plant("1-settings.toml", *((one, f'note = "{one}"') for one in the_kinds(draw)))
    plant(
        "2-settings.env",
        *((one, f"export {name}={one}") for one, name in zip(randoms, ("A_TOKEN", "DB_PASSWORD"), strict=False)),
    )
    plant(
        "3-values.yaml",
        *((one, f"  {name}: {one}") for one, name in zip(randoms[2:], ("apiKey", "client_secret"), strict=False)),
    )
    plant("4-gateway.log", *((one, f"DEBUG headers: authorization: Bearer {one}") for one in randoms[4:6]),
          *((one, f'{{"message": "got {one} from upstream"}}') for one in the_kinds(draw)))  # fmt: skip
    plant("5-boot.log", (randoms[6], f"+ export DASHSCOPE_API_KEY={randoms[6]}"),
          (randoms[7], f"+ gateway --master-key {randoms[7]} --port 4000"),
          (randoms[8], f"++ curl -u admin:x http://root:{randoms[8]}@db.test/"))  # fmt: skip
    plant("6-code.py", (randoms[9], f'client = Client(api_key="{randoms[9]}")'),
          *((one, f"KEY = '{one}'") for one in the_kinds(draw)))  # fmt: skip
    guises: list[tuple[str, str]] = []
    for make in (
        lambda one: one, lambda one: base64.b64encode(one.encode()).decode(),
        lambda one: "Basic " + base64.b64encode(f"user:{one}".encode()).decode(),
        lambda one: base64.urlsafe_b64encode(f"xy{one}".encode()).decode(), lambda one: quote(one, safe=""),
        lambda one: one.encode().hex(), lambda one: json.dumps({"a": one}), lambda one: one[:9] + "…",
        lambda one: hashlib.sha256(one.encode()).hexdigest(),
    ):  # fmt: skip
        one = next(values)
        guises.append((one, make(one)))
    plant("7-derived.txt", *guises)
    for file, make in (("8-terraform.tfstate", state), ("9-plan.json", plan)):
        ours = [next(words) for _ in range(3)]
        (tmp_path / file).write_text(make(ours))
        planted[file] = [(one, "") for one in ours]
    saved = the_kinds(draw)
    with zipfile.ZipFile(tmp_path / "10-saved.tfplan", "w") as archive:
        archive.writestr("tfplan", "\x00\x01".join(saved))
    (tmp_path / "11-old.log.gz").write_bytes(gzip.compress(f"password={randoms[10]}".encode()))
    (tmp_path / "12-dump.db").write_bytes(b"SQLite format 3\0\xff\xfe\x80" + (last := next(values)).encode() + b"\xff")

    found = scan_paths([tmp_path], known)

    missed = []
    for file, canaries in planted.items():
        text = (tmp_path / file).read_text()
        lines = {finding.line for finding in found if finding.path.endswith(file)}
        if "terraform" in file or "plan" in file:
            places = [text.index(one) for one, _ in canaries]
            hits = {start for start, end, _ in Search([Known("c", one) for one, _ in canaries]).find(text)}
            columns = {(finding.line, finding.column) for finding in found if finding.path.endswith(file)}
            missed += [
                one
                for one, at in zip(canaries, places, strict=True)
                if at not in hits or _place(text, at) not in columns
            ]
        else:
            missed += [(file, text_) for number, (_, text_) in enumerate(canaries) if number + 2 not in lines]
    assert missed == []
    assert sum("10-saved" in finding.path for finding in found) == len(saved)
    assert {Path(finding.path).name for finding in found} >= {"11-old.log.gz", "12-dump.db"}
    assert sum(map(len, planted.values())) + len(saved) + 2 >= 60
    derived = next(number for number, line in enumerate((tmp_path / "8-terraform.tfstate").read_text().splitlines(), 1)
                   if "api.test" in line)  # fmt: skip
    assert any(finding.path.endswith("tfstate") and finding.line == derived for finding in found)
    report = "\n".join(map(str, found))
    assert not [one for one in [*known.values(), *loose, *randoms, last, *saved] if one in report]


def _place(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def test_a_prefix_that_all_keys_of_a_kind_share_gives_none_away(draw: Callable[..., str]) -> None:
    key = draw(30, "sk-ant-api03-")
    search = Search([Known("k", key)])
    assert list(search.find("keys begin with sk-ant-api03-")) == []
    assert [what for _, _, what in search.find(f"the key {key[:22]}…")] == ['"k", its first 22 characters']


def test_git_tracks_no_files_for_secrets_and_history_forgets_nothing(tmp_path: Path, draw: Callable[..., str]) -> None:
    key, old = draw(36, "ghp_"), draw(36, "ghp_")
    git(tmp_path, "init", "-q")
    (tmp_path / "secrets").mkdir()
    for name, text in (
        ("prod.auto.tfvars", "region = 1"),
        ("secrets/a", "b"),
        ("a.txt", key),
        ("old.txt", f"x\n{old}\n"),
    ):
        (tmp_path / name).write_text(text)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    (tmp_path / "old.txt").write_text("x\n")
    git(tmp_path, "commit", "-qam", "two")
    (tmp_path / "untracked.txt").write_text(draw(36, "ghp_"))

    found = scan_paths([tmp_path], {})
    assert [(Path(one.path).name, one.what) for one in found] == [
        ("prod.auto.tfvars", "git must not track it"), ("a", "git must not track it"), ("a.txt", "GitHub token"),
    ]  # fmt: skip
    assert sorted(one.path.split()[-1] for one in scan_history(tmp_path, {})) == ["a.txt", "old.txt"]


@pytest.mark.parametrize(
    "line",
    [
        'api_key = "env:DASHSCOPE_API_KEY"', 'api_key = "store:team/openai-2026-01"',
        "token = request.headers['x-token-12']",
        "password: ${DB_PASSWORD_1}", 'secret="<your-secret-123>"', "token_ids = [12345, 67890, 11111, 22222]",
        "model: qwen-max-2026-01-15", "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "api_key=settings.openai_key_v2_primary", "http://user:{password}@host/", "--token-budget 123456789012",
    ],
)  # fmt: skip
def test_references_placeholders_and_code_are_no_secrets(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.txt").write_text(line)
    assert scan_paths([tmp_path], {}) == []


def test_a_line_with_the_pragma_is_passed_over_but_not_for_what_is_known(
    tmp_path: Path, draw: Callable[..., str]
) -> None:
    key = draw(36, "ghp_")
    (tmp_path / "a.txt").write_text(f"{key}  # wootz: no secret\n")
    assert scan_paths([tmp_path], {}) == []
    assert scan_paths([tmp_path], {"k": key}) == [Finding(str(tmp_path / "a.txt"), 1, 1, '"k" in the clear')]


def test_this_repository_has_none() -> None:
    assert scan_paths([REPOSITORY], {}) == []
