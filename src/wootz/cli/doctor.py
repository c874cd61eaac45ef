"""`wootz doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import typer

from wootz.cli.common import AsJson, load, print_json, stdout

MARKS = {"ok": "[green]✓[/green]", "missing": "[yellow]○[/yellow]", "broken": "[red]✗[/red]"}


def doctor(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Look at this machine and this setup, and say what is missing and how to get it. Changes nothing.

    The exit code is 1 when something keeps the platform from working.
    """
    from dataclasses import asdict

    from rich.markup import escape

    from wootz.app.doctor import examine
    from wootz.core import WootzError

    try:
        loaded = load(ctx)
    except WootzError as error:
        loaded = error
    findings = []
    section = ""
    for finding in examine(loaded):
        findings.append(finding)
        if as_json:
            continue
        if finding.section != section:
            section = finding.section
            stdout().print(f"\n[bold]{section}[/bold]")
        stdout().print(f"  {MARKS[finding.state]} {escape(finding.name)}: {escape(finding.detail)}", soft_wrap=True)
        if finding.hint:
            stdout().print(f"      [dim]→ {escape(finding.hint)}[/dim]", soft_wrap=True)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
