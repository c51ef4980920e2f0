"""`clipkit serve` on the command line."""

from typing import Annotated

import typer

from clipkit.serve import PORT
from clipkit.serve.limits import Limits


def serve(
    index: Annotated[str, typer.Argument(help="A folder that `clipkit index` has written.")],
    model: Annotated[str | None, typer.Option(help="Model to use instead of the one the index names.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; one that others reach needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: any that is free.", min=0, max=65535)] = PORT,
    token: Annotated[
        str | None, typer.Option(envvar="CLIPKIT_TOKEN", help="What must be said to be answered; see --host.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name to show for the index; default is its folder's.")] = None,
    max_upload_mb: Annotated[float, typer.Option(help="The largest picture that may be sent.", min=0.1)] = 20.0,
    rate: Annotated[float, typer.Option(help="Requests a second of one client; 0: any number.", min=0)] = 200.0,
) -> None:
    """Serve a page to search and classify in, and an HTTP interface, until it is stopped."""
    from clipkit import serve as server

    server.serve(index, model, host, port, token, Limits(upload_mb=max_upload_mb, rate=rate), name)
