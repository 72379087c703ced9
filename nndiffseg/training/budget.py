"""The budget of a training in epochs or minutes, and the matching learning rate."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass
class Budget:
    """Progress through the training, from 0 to 1.

    Attributes:
        epochs: number of epochs; ``None`` with ``minutes`` alone.
        iterations_per_epoch: length of an epoch.
        minutes: wall-clock bound on the training proper; ``None`` for none. With both, the first to end counts.
        spent: seconds that earlier sessions of a resumed training used.
    """

    epochs: int | None
    iterations_per_epoch: int
    minutes: float | None = None
    spent: float = 0.0
    _started: float | None = field(default=None, repr=False)

    def start(self) -> None:
        """Starts the clock of this session."""
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, earlier sessions included."""
        return self.spent + (time.monotonic() - self._started if self._started is not None else 0.0)

    def progress(self, iteration: int) -> float:
        """Fraction done after ``iteration`` iterations in all, in [0, 1]."""
        done = 0.0
        if self.epochs is not None:
            done = iteration / max(1, self.epochs * self.iterations_per_epoch)
        if self.minutes is not None:
            done = max(done, self.seconds / (60 * self.minutes) if self.minutes > 0 else 1.0)
        return min(1.0, done)


def learning_rate(peak: float, progress: float, iteration: int, warmup: int = 50) -> float:
    """Linear warm-up over iterations, then a half cosine over the progress (Loshchilov & Hutter 2017, eq. 5)."""
    return peak * min(1.0, (iteration + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))
