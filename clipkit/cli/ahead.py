"""`clipkit plan` and `clipkit doctor`: what a run will need, and whether this machine is fit for it."""

from typing import Annotated, Any

import typer

from clipkit.cli.show import Json, lines, table

NAMES = {
    "a_pair": "activations of one pair, MB",
    "at_context": "trained, texts as long as the context",
    "cost": "cost",
    "ema": "averaged weights",
    "first_loss": "loss at the start (random weights)",
    "image_forward": "image forward",
    "image_tower": "image tower",
    "loss": "loss and embeddings",
    "moments": "optimizer",
    "pairs_inside": "pairs whose activations are held",
    "plain": "trained, as open_clip computes it",
    "text_forward": "text forward",
    "text_tower": "text tower",
    "trained": "trained, texts as in the data (if looked at)",
    "weights_in_bf16": "weights in bf16",
}
SECTIONS = {
    "parameters": "parameters",
    "gflop_per_pair": "GFLOP a pair",
    "memory_gb": "GB on one device",
    "run": "run",
}


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe: a YAML file, or a name in configs/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ..., such as data.batch=4096")] = None,
    gpus: Annotated[int, typer.Option(help="GPUs, one process each.", min=1)] = 1,
    gpu: Annotated[str | None, typer.Option(help="Their kind: a100, h100, l40s, ...")] = None,
    mfu: Annotated[float, typer.Option(help="Share of their peak that training reaches.", min=0.001, max=1)] = 0.4,
    price: Annotated[float | None, typer.Option(help="Of one GPU for one hour.", min=0)] = None,
    samples: Annotated[int | None, typer.Option(help="Samples of the data; it is not looked at then.", min=1)] = None,
    sharded: Annotated[bool, typer.Option("--sharded", help="Spread weights over the GPUs (FSDP2).")] = False,
    as_json: Json = False,
) -> None:
    """What a recipe will need: weights, arithmetic, memory, steps, hours and money; nothing is trained."""
    from clipkit.plan import plan as work

    facts = work(recipe, overrides or [], ranks=gpus, gpu=gpu, mfu=mfu, price=price, samples=samples, sharded=sharded)
    if as_json:
        lines([facts])
        return
    rows = [
        (SECTIONS[section] if i == 0 else "", NAMES.get(name, name.replace("_", " ")), _shown(section, name, value))
        for section in SECTIONS
        for i, (name, value) in enumerate(facts[section].items())
    ]
    rows += [("check" if i == 0 else "", text, "") for i, text in enumerate(facts["checks"])]
    table(("part", "what", "value"), rows)


def _shown(section: str, name: str, value: Any) -> str:
    """A number as people read it; an unknown one says so."""
    if value is None:
        return "not known"
    if section == "parameters":
        return f"{value / 1e6:,.1f} M" if value >= 1e5 else str(value)
    if name == "a_pair":
        return f"{1000 * value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def doctor(as_json: Json = False) -> None:
    """Is this machine fit to train? Each check with what to type; exit code 1 where one has failed."""
    from clipkit.doctor import examine

    checks = examine()
    if as_json:
        lines([check._asdict() for check in checks])
    else:
        rows = [(check.state, check.name, check.found + (f" -> {check.fix}" if check.fix else "")) for check in checks]
        table(("state", "check", "found"), rows)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)
