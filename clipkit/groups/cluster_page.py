"""clusters.html: the largest clusters with their nearest pictures and captions, in one file that asks for nothing."""

from typing import Any

from clipkit import images
from clipkit.errors import StorageError
from clipkit.groups.rows import picture_of
from clipkit.page import document, jpeg, safe, tiles
from clipkit.vectors import Vectors

SHOWN = 40  # clusters
SIDE = 144
STYLE = "figure { width: 7.4rem; } .captions { color: var(--soft); margin: .2rem 0 .6rem; overflow-wrap: anywhere; }"


def page(source: Vectors, facts: dict[str, Any], told: list[dict[str, Any]]) -> str:
    """The page's HTML, by the facts of all clusters and what is told of each."""
    read, unread = picture_of(source), []
    parts = [
        "<h1>Clusters</h1>",
        tiles(
            [
                (f"{facts['of']:,}", "rows"),
                (f"{facts['clusters']:,}", "clusters"),
                (f"{facts['largest']:,}", "rows in the largest"),
                (f"{facts['smallest']:,}", "rows in the smallest"),
                (f"{facts['cosine']:.3f}", "mean cosine with the centre"),
            ]
        ),
    ]
    for one in told[:SHOWN]:
        shown = []
        for number, key in zip(one["numbers"], one["keys"], strict=True):
            try:
                address = jpeg(images.thumbnail(read(number), SIDE))
            except (StorageError, ValueError, OSError) as error:
                unread.append(str(error))
                continue
            shown.append(
                f'<figure><img alt="{safe(key)}" src="{address}"><figcaption>{safe(key)}</figcaption></figure>'
            )
        words = "".join(f"<div>{safe(caption)}</div>" for caption in one["captions"])
        parts.append(
            f"<h2>{one['cluster']}: {one['rows']:,} rows</h2><div class=captions>{words}</div>"
            f"<div class=row>{''.join(shown)}</div>"
        )
    if len(told) > SHOWN:
        parts.append(f"<p>{len(told) - SHOWN:,} smaller clusters are in clusters.json.</p>")
    if unread:
        parts.append(f"<p>Pictures that could not be read: {len(unread):,}; the first: {safe(unread[0])}</p>")
    return document("Clusters", "".join(parts), STYLE)
