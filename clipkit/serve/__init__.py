"""`clipkit serve INDEX`: a page to search and classify in, and the same as an HTTP interface.

Safe unless told otherwise: it listens to this machine alone, asks for a token where others may reach it, fetches no
address, and shows no file but the pictures of its index.
"""

import importlib.util
import ipaddress
import re
import secrets
from pathlib import Path

from clipkit.errors import UserError
from clipkit.log import say
from clipkit.serve.limits import Limits

PORT = 8787
NEEDED = ("fastapi", "prometheus_client", "uvicorn")
TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,200}")


def serve(
    index: str | Path,
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    name: str | None = None,
) -> None:
    """Serve an index until SIGTERM or SIGINT, then end what is being answered; `port` 0 is any that is free.

    The address goes to stdout when it can be asked. Where others than this machine can reach it and no token is given,
    one is made, and is part of the address.
    Raises: UserError when a package is missing, the address cannot be had, the token is none, and as `open_index` and
    `Index.model` do.
    """
    if missing := [each for each in NEEDED if importlib.util.find_spec(each) is None]:
        raise UserError(f"serve: {', '.join(missing)} missing; type: pip install 'clipkit[serve]'")
    if token is not None and not TOKEN.fullmatch(token):
        raise UserError("--token: 16 to 200 letters, digits or any of . _ ~ - are needed")
    from clipkit.search import open_index
    from clipkit.serve import process
    from clipkit.serve.service import Service

    with process.bound(host, port) as listener:
        if token is None and not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
            token = secrets.token_urlsafe(24)
        opened = open_index(index, model)
        service = Service(opened, limits, name or Path(index).resolve().name)
        say(f"{index}: {len(opened)} rows; loading {service.model_name}")
        service.warm_up()
        process.run(service, listener, token)
