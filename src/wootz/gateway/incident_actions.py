"""What the gateway can do about an incident: leave a caller little, ask a failing deployment no more for a while, take
a migration back.

Both are kept where every process reads them: a limit with its key or user, a deployment that is out with its incident.
So `HoldDeployments.apply`, in each process, makes the routes what the incidents say, also after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import select

from wootz.core import BadRequestError, LanguageModel, NotFoundError
from wootz.gateway.accounts import AccountKind
from wootz.gateway.keys import KeyStore
from wootz.gateway.limits import Limits, Subject
from wootz.gateway.migration.controller import Controller
from wootz.gateway.routing import Deployment, Route
from wootz.store import Database
from wootz.telemetry.alerts.actions import Plan
from wootz.telemetry.alerts.incidents import IncidentRow

MOST_OF_IT = 0.5
"""Whose part of what went wrong is smaller is not the one to limit."""


class LimitCaller:
    """Few requests a minute for the user whose account it is, else for the key, as long as the incident lasts."""

    def __init__(self, keys: KeyStore, requests_per_minute: int) -> None:
        self.keys, self.requests_per_minute = keys, requests_per_minute

    async def plan(self, incident: IncidentRow) -> Plan:
        culprit = incident.detail.get("culprit") or {}
        share = culprit.get("share", 0)
        if not culprit.get("key_id"):
            return Plan("limit nobody: the requests came without accounts")
        if share < MOST_OF_IT:
            return Plan(f"limit nobody: the first of them has {share:.0%} of it, so it is not one caller's doing")
        account = await self._account(culprit)
        if account.kind == "key" and (user := culprit.get("user")) and incident.subject == user:
            # The name is what the client says. A key that serves many people is not to be closed for one of them.
            others = f'"{user}" has no account; its {account} may serve others, so limit it by hand'
            return Plan(f"limit nobody: {others}")
        before, after = account.limits.requests_per_minute, self.requests_per_minute
        for steps in await self._held(account.kind, account.id):
            if steps["after"] == before:
                before = steps["before"]  # What it has is not its own.
        if before is not None and before <= after:
            return Plan(f"leave {account} at its {before} requests a minute")
        steps = {"kind": account.kind, "subject": account.id, "before": before, "after": after}
        return Plan(f"limit {account} to {after} requests a minute", steps)

    async def do(self, steps: Mapping[str, Any]) -> None:
        await self._set(steps, steps["after"])

    async def undo(self, steps: Mapping[str, Any]) -> None:
        """What it had before, or what other incidents that go on leave it; what somebody set meanwhile stays."""
        others = [other["after"] for other in await self._held(steps["kind"], steps["subject"])]
        if (await self._limits(steps["kind"], steps["subject"])).requests_per_minute == steps["after"]:
            await self._set(steps, min(others, default=steps["before"]))

    async def _held(self, kind: str, id: str) -> list[Mapping[str, Any]]:
        """What incidents that are not over have done to this account."""
        done = await _done(self.keys.database, "limit_caller")
        return [steps for steps in done if (steps["kind"], steps["subject"]) == (kind, id)]

    async def _account(self, culprit: Mapping[str, Any]) -> Subject:
        key = await self.keys.get(culprit["key_id"])
        return key.user.subject if key.user is not None else Subject("key", key.id, key.name, key.limits)

    async def _limits(self, kind: str, id: str) -> Limits:
        if kind == "key":
            return (await self.keys.get(id)).limits
        accounts = {account.id: account for account in await self.keys.list_accounts("user")}
        if id not in accounts:
            raise NotFoundError(f'there is no user "{id}" any more')
        return accounts[id].limits

    async def _set(self, steps: Mapping[str, Any], requests_per_minute: int | None) -> None:
        kind: AccountKind | str = steps["kind"]
        limits = (await self._limits(kind, steps["subject"])).plain | {"requests_per_minute": requests_per_minute}
        if kind == "key":
            await self.keys.update(steps["subject"], **limits)
        else:
            await self.keys.limit_account("user", steps["subject"], **limits)


class FailOver:
    """The routes ask a deployment no more. It is planned only where each of its routes has another that is asked."""

    def __init__(self, models: Mapping[str, LanguageModel]) -> None:
        self.models = models

    async def plan(self, incident: IncidentRow) -> Plan:
        name = incident.subject
        routes = [route for route in _routes(self.models) if any(one.name == name for one in route.deployments)]
        if not routes:
            return Plan(f'fail over from "{name}" to nobody: no route has it')
        for route in routes:
            if not any(one.name != name and one.available for one in route.deployments):
                return Plan(f'fail over from "{name}" to nobody: route "{route.name}" has no other that works')
        return Plan(f'ask "{name}" no more in {", ".join(route.name for route in routes)}', {"deployment": name})

    async def do(self, steps: Mapping[str, Any]) -> None:
        """That it stands in the incident is all that is needed; see `hold_deployments`."""

    async def undo(self, steps: Mapping[str, Any]) -> None:
        """The same: the incident is over."""


class RollBack:
    """The migration to a model that does badly goes back. It is not begun again by itself when the incident is over."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller

    async def plan(self, incident: IncidentRow) -> Plan:
        for migration in await self.controller.store.deciding():
            if migration.is_open and incident.subject in (migration.alias, migration.new):
                what = f'take "{migration.alias}" back from "{migration.new}" to "{migration.old}"'
                return Plan(what, {"migration": migration.id, "why": f"alert {incident.rule}"})
        return Plan(f'roll nothing back: no migration that concerns "{incident.subject}" is under way')

    async def do(self, steps: Mapping[str, Any]) -> None:
        with suppress(BadRequestError):  # It ended already: by its own gates, or by the process before this one.
            await self.controller.roll_back(steps["migration"], actor="alerts", why=steps["why"])

    async def undo(self, steps: Mapping[str, Any]) -> None:
        """The old model answers, and a person decides when to try again."""


async def hold_deployments(database: Database, models: Mapping[str, LanguageModel]) -> None:
    """Make this process's routes what the open incidents say."""
    hold(list(_routes(models)), {steps["deployment"] for steps in await _done(database, "fail_over")})


async def _done(database: Database, action: str) -> list[Mapping[str, Any]]:
    """The steps that were taken in incidents that are not over."""
    acted = IncidentRow.live.is_not(None), IncidentRow.action == action, IncidentRow.action_state == "done"
    async with database.session() as session:
        details = await session.scalars(select(IncidentRow.action_detail).where(*acted))
        return [detail["steps"] for detail in details]


def hold(routes: Sequence[Route], out: set[str]) -> None:
    """Those of ``out`` are held, but never the last one of a route: an answer that may fail is better than none."""
    for deployment in (one for route in routes for one in route.deployments):
        deployment.held = deployment.name in out
    for route in routes:
        if not any(deployment.available for deployment in route.deployments):
            _release(route.deployments)


def _release(deployments: Iterable[Deployment]) -> None:
    for deployment in deployments:
        deployment.held = False


def _routes(models: Mapping[str, LanguageModel]) -> list[Route]:
    return [model for model in models.values() if isinstance(model, Route)]
