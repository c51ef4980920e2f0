"""How many samples could not be read, why, and when that is too many."""

from collections import Counter, deque
from dataclasses import dataclass, field

from clipkit.data.settings import ONLY
from clipkit.errors import BadData
from clipkit.types import Batch


@dataclass
class Guard:
    """Counts replaced samples, and ends the run where they are more than `bound` of the last 10,000 that this
    process has read."""

    bound: float
    total: Counter[tuple[str, str]] = field(default_factory=Counter)
    recent: deque[tuple[int, int]] = field(default_factory=deque)
    last: str = ""

    def see(self, batch: Batch) -> None:
        """Count the replaced samples of a batch."""
        self.total.update((bad.source, bad.reason) for bad in batch.replaced)
        self.recent.append((len(batch), min(len(batch), len(batch.replaced))))
        while sum(rows for rows, _ in self.recent) - self.recent[0][0] >= 10_000:
            self.recent.popleft()
        if batch.replaced:
            self.last = batch.replaced[-1].sample

    def check(self) -> None:
        """Raises: BadData when more are unreadable than the bound allows."""
        if not self.recent:
            return
        rows, bad = (sum(column) for column in zip(*self.recent, strict=True))
        if bad >= 10 and bad > self.bound * rows:
            raise BadData(
                f"{bad} of the last {rows} samples are unreadable ({told(self.total)}), the last is {self.last}; "
                f"data.max_bad={self.bound} allows fewer; mend the shards, or raise data.max_bad"
            )


def told(total: Counter[tuple[str, str]]) -> str:
    """`reason: count` for each, with the source where it has a name of its own."""
    return ", ".join(f"{_said(*what)}: {count}" for what, count in sorted(total.items()))


def _said(source: str, reason: str) -> str:
    return reason if source == ONLY else f"{source}: {reason}"
