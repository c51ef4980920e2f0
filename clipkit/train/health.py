"""Whether a run is well: which of its steps were skipped, and whether its losses stay what they were.

Pure book-keeping over numbers that all ranks share, kept in each checkpoint: a resumed run judges as the unbroken one.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Self

RECENT = 100  # losses that a new one is compared with
FEWEST = 20  # without that many there is nothing to compare with


@dataclass
class Health:
    """`skipped` steps of the run changed nothing, since their gradients were not finite, the last `streak` of them in
    a row; the run went back to a checkpoint `rollbacks` times; `good` is the step of the one it would go back to."""

    skipped: int = 0
    streak: int = 0
    rollbacks: int = 0
    good: int | None = None
    spike: str = ""
    recent: list[float] = field(default_factory=list)

    def see(self, step: int, loss: float, norm: float, bound: float | None = None) -> bool:
        """Take in a step; says whether it was skipped. A loss more than `bound` deviations above the mean of the recent
        ones is remembered as a spike, and is not one of them."""
        if not math.isfinite(norm):
            self.skipped += 1
            self.streak += 1
            return True
        self.streak = 0
        if bound is not None and len(self.recent) >= FEWEST:
            mean = math.fsum(self.recent) / len(self.recent)
            deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in self.recent) / len(self.recent))
            if loss > mean + bound * deviation:
                of = f"a mean of {mean:.4g} and a deviation of {deviation:.2g} before"
                self.spike = self.spike or f"a loss of {loss:.4g} at step {step}, after {of}"
                return False
        if math.isfinite(loss):
            self.recent = [*self.recent, loss][-RECENT:]
        return False

    def trouble(self, max_skipped: int) -> str:
        """Why the run should go back, or nothing. Skipped steps that have ended left no mark on the weights."""
        if self.streak >= max_skipped:
            return f"gradients that were not finite in the last {self.streak} steps"
        return self.spike

    def back(self, then: dict[str, Any]) -> None:
        """Judge by what was known `then`, as the weights are those of then; what the run has used up stays used."""
        kept = Health(**then)
        self.streak, self.spike, self.recent = kept.streak, "", kept.recent

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        """What `state` gave."""
        return cls(**state)
