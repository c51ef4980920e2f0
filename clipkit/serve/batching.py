"""Questions of many clients that are answered together."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Full(Exception):
    """More questions are waiting than are allowed."""


class Batcher(Generic[Question, Answer]):
    """Calls `work` on a `thread` with up to `most` questions: those that came within `gather_s` of the first, or while
    the batch before was worked on. What it gives for a question, an error or an answer, goes to the one who asked.

    At most `waiting` questions wait. One whose asker was cancelled is not worked on.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
        thread: Executor,
        most: int = 64,
        waiting: int = 64,
        gather_s: float = 0.002,
    ) -> None:
        self.work, self.thread, self.most, self.waiting, self.gather_s = work, thread, most, waiting, gather_s
        self._queue: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._running: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._queue)

    async def ask(self, question: Question) -> Answer:
        """The answer, when its batch is done.

        Raises: Full; what `work` gave or raised.
        """
        if len(self._queue) >= self.waiting:
            raise Full
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((question, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(self.gather_s)
            while batch := self._taken():
                questions = [question for question, _ in batch]
                try:
                    answers = await loop.run_in_executor(self.thread, self.work, questions)
                except Exception as error:  # noqa: BLE001 (each asker gets it)
                    answers = [error] * len(batch)
                for (_, future), answer in zip(batch, answers, strict=True):
                    if future.done():
                        continue
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        finally:
            self._running = None

    def _taken(self) -> list[tuple[Question, asyncio.Future[Answer]]]:
        """The next batch, without those whose askers are gone."""
        batch = []
        while self._queue and len(batch) < self.most:
            question, future = self._queue.popleft()
            if not future.done():
                batch.append((question, future))
        return batch
