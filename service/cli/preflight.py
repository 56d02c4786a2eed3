"""`serinus preflight`: the gates before any traffic, asked by hand; none needs a running service."""

from __future__ import annotations

import typer

from service.cli.preflight_golden import golden
from service.cli.preflight_image import image
from service.cli.preflight_model import model, runtime
from service.cli.preflight_security import security

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help=(
        "Look at a candidate before it gets any traffic.\n\n"
        "Exit 0 passed, 1 failed, 2 wrong arguments, 3 could not look."
    ),
)

app.command()(golden)
app.command()(image)
app.command()(model)
app.command()(runtime)
app.command()(security)
