"""The command line: names to functions, which are imported when they are called."""

import gc
import os
from pathlib import Path
from typing import Annotated

import typer

from clipkit import __version__, errors
from clipkit.cli import ahead, data, embed, groups, index, reporting, score, search, serve
from clipkit.cli.show import Json, Model, lines, table

COLLECTED = gc.get_threshold()[0]
"""New objects after which Python looks for cycles among them."""

app = typer.Typer(
    help="Train, evaluate and search with image-text contrastive models.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.command()(ahead.plan)
app.command()(ahead.doctor)
app.command("eval")(score.score)
app.command()(reporting.report)
app.command()(embed.embed)
app.command()(index.index)
app.command()(search.search)
app.command()(serve.serve)
app.command()(groups.dedup)
app.command()(groups.cluster)


def main() -> None:
    """The `clipkit` program; raises SystemExit."""
    errors.guard(app)


def program() -> None:
    """The `clipkit` program, and the end of its process.

    The imports of a command make some 430,000 objects that stay; Python's collector would go through them again and
    again. Training, whose cycles may hold tensors, has the usual one.
    """
    gc.set_threshold(20_000)
    errors.program(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"clipkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=None)
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for all that it makes.")] = Path("quickstart"),
    steps: Annotated[int | None, typer.Option(help="Training steps; default is the recipe's.", min=1)] = None,
) -> None:
    """Real data, training, evaluation, index and search in minutes; ends with a report."""
    from clipkit.quickstart import run

    run(out, steps)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe: a YAML file, or a name in configs/.")] = "",
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ..., such as optim.lr=1e-3")] = None,
    settings: Annotated[bool, typer.Option("--settings", help="List every setting, with default and meaning.")] = False,
) -> None:
    """Train by a recipe; an existing run goes on from its newest checkpoint."""
    from clipkit import train as trainer

    if settings:
        from clipkit import config

        table(("setting", "type", "default", "meaning"), config.describe(trainer.Settings))
        return
    gc.set_threshold(COLLECTED)
    trainer.from_arguments([*([recipe] if recipe else []), *(overrides or [])])


@app.command()
def classify(
    model: Model,
    pictures: Annotated[list[str], typer.Argument(help="Pictures, or folders of pictures.")],
    classes: Annotated[str, typer.Option(help="Names, separated by commas, or a text file with one a line.")],
    template: Annotated[
        list[str] | None, typer.Option(help="Prompt with {c} for the class; may be given again.")
    ] = None,
    top: Annotated[int, typer.Option("-k", "--top", help="Classes to show for each picture.", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """Say which of your words fits each picture."""
    from clipkit.classifier import TEMPLATES
    from clipkit.classifier import classify as work

    names = Path(classes).read_text(encoding="utf-8").splitlines() if os.path.isfile(classes) else classes.split(",")
    rows = work(model, pictures, names, template or TEMPLATES, top)
    if as_json:
        lines(rows)
        return
    table(
        ("picture", "class", "probability"),
        [
            (row["image"] if i == 0 else "", name, f"{share:.3f}")
            for row in rows
            for i, (name, share) in enumerate(row["scores"].items())
        ],
    )


@app.command()
def consolidate(
    model: Annotated[Path, typer.Argument(help="Run or checkpoint folder.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default is weights-STEP.safetensors in the run.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The raw weights of a run that keeps averaged ones.")] = False,
) -> None:
    """Write a checkpoint's weights to one safetensors file, however many processes saved it."""
    from clipkit.checkpoint import consolidate as work
    from clipkit.log import say

    print(work(model, say, out, raw))
