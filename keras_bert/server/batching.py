"""Requests that arrive together run together: one pass of the graph over the rows of all of them.

Answers are those of single requests. Texts are tokenized in the graph, so their rows are just put one after another;
rows of token ids are padded with zeros to the longest, and outputs cut back (only where `Signature.padded` allows
it: otherwise rows of one shape run together). When a batch fails, its requests run again one by one, so a bad row
is answered with an error to its own request alone.

A request of more rows than a batch is cut into pieces, texts of like length together. Only a few of them wait in the
queue at a time, so requests that come later are not kept waiting for all of it. What nobody waits for any more is not
run.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_bert.server.counters import Metrics
from keras_bert.server.servable import Arrays, Signature
from keras_bert.server.settings import ServerConfig


@dataclass
class _Task:
    """A request in the queue, or a piece of one; those of the same `group` may run together."""

    signature: Signature
    inputs: Arrays
    rows: int
    group: Any
    patience: float
    arrived: float = field(default_factory=time.monotonic)
    answer: Future = field(default_factory=Future)


class Batcher:
    """Runs signatures on `config.num_batch_threads` threads, several requests at a time.

    A thread that becomes free takes the oldest requests that may run together, up to `config.max_batch_size` rows; it
    waits for more of them until the first has waited for `config.batch_timeout_micros`.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self._max_rows, self._patience = config.max_batch_size, config.batch_timeout_micros / 1e6
        self._threads, self._metrics = config.num_batch_threads, metrics
        self._waiting: dict[Any, list[_Task]] = {}
        self._changed = threading.Condition()
        self.running = 0  # batches that are computed now
        for i in range(config.num_batch_threads):
            threading.Thread(target=self._work, name=f"batch-{i}", daemon=True).start()

    async def __call__(self, signature: Signature, inputs: Arrays) -> Arrays:
        """The outputs of `signature` for these inputs, alone or in company.

        When this is cancelled, rows that are not computed yet never are.

        Raises:
            RequestError: an operation in the graph failed on these inputs.
        """
        if _group(signature, inputs) is None or rows_of(inputs) <= self._max_rows:
            return await self._one(signature, inputs)
        order = _by_length(inputs)
        rows = [order[start : start + self._max_rows] for start in range(0, len(order), self._max_rows)]
        pieces = [{name: array[some] for name, array in inputs.items()} for some in rows]
        answers: list[Arrays] = [{}] * len(pieces)
        places = iter(range(len(pieces)))

        async def in_turn(places: Iterator[int]) -> None:
            for place in places:
                answers[place] = await self._one(signature, pieces[place])

        workers = [asyncio.ensure_future(in_turn(places)) for _ in range(self._threads)]  # they share `places`
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        joined = {name: await self._put_together(signature, name, pieces, answers) for name in signature.outputs}
        back = np.argsort(order)
        return {name: array[back] for name, array in joined.items()}

    async def _one(self, signature: Signature, inputs: Arrays) -> Arrays:
        group, rows = _group(signature, inputs), rows_of(inputs)
        alone = group is None or not 0 < rows < self._max_rows
        task = _Task(signature, inputs, rows, object() if alone else group, 0.0 if alone else self._patience)
        with self._changed:
            self._waiting.setdefault(task.group, []).append(task)
            self._changed.notify_all()
        return await asyncio.wrap_future(task.answer)

    async def _put_together(
        self, signature: Signature, name: str, pieces: list[Arrays], answers: list[Arrays]
    ) -> np.ndarray:
        """One output of all pieces. Where the model fills rows up to the longest, they get one length here.

        What it fills them with is seen when a row of the narrowest piece runs beside those of the widest.
        """
        parts = [answer[name] for answer in answers]
        shapes = [part.shape[1:] for part in parts]
        if len(set(shapes)) == 1:
            return np.concatenate(parts)
        sizes = [int(np.prod(shape)) for shape in shapes]
        narrow, wide = (pieces[sizes.index(size)] for size in (min(sizes), max(sizes)))
        found = await self._one(signature, {k: np.concatenate([narrow[k][:1], v]) for k, v in wide.items()})
        full = (sum(map(len, parts)), *np.max(shapes, axis=0))
        joined, row = np.full(full, found[name][0].flat[-1], parts[0].dtype), 0
        for part in parts:
            joined[(slice(row, row + len(part)), *map(slice, part.shape[1:]))] = part
            row += len(part)
        return joined

    def _work(self) -> None:
        while True:
            tasks = [task for task in self._take() if task.answer.set_running_or_notify_cancel()]
            now = time.monotonic()
            for task in tasks:
                self._metrics.observe("batching_session:queuing_latency", (now - task.arrived) * 1e6, "batch_threads")
            if tasks:
                self._run(tasks)
            with self._changed:
                self.running -= 1

    def _take(self) -> list[_Task]:
        """Waits for requests that are due, and takes them out of the queue."""
        with self._changed:
            while True:
                now, due = time.monotonic(), []
                for group, tasks in self._waiting.items():
                    wait = tasks[0].arrived + tasks[0].patience - now
                    if wait <= 0 or sum(task.rows for task in tasks) >= self._max_rows:
                        self.running += 1
                        return self._cut(group)
                    due.append(wait)
                self._changed.wait(min(due, default=None))

    def _cut(self, group: Any) -> list[_Task]:
        tasks = self._waiting.pop(group)
        count, rows = 1, tasks[0].rows
        while count < len(tasks) and rows + tasks[count].rows <= self._max_rows:
            rows += tasks[count].rows
            count += 1
        if tasks[count:]:
            self._waiting[group] = tasks[count:]  # behind the other groups, so none of them starves
        return tasks[:count]

    def _run(self, tasks: list[_Task]) -> None:
        try:
            signature = tasks[0].signature
            inputs, width = _join(tasks)
            start = time.monotonic()
            outputs = signature(inputs)
            self._metrics.count("batching_session:wrapped_run_count")
            elapsed = (time.monotonic() - start) * 1e6
            self._metrics.observe("runtime_latency", elapsed, signature.model, "Predict", "TF2")
            answers = [outputs] if len(tasks) == 1 else _split(tasks, outputs, width)
        except Exception as error:
            if len(tasks) == 1:
                tasks[0].answer.set_exception(error)
            else:
                for task in tasks:
                    self._run([task])
            return
        for task, answer in zip(tasks, answers, strict=True):
            task.answer.set_result(answer)


def rows_of(inputs: Arrays) -> int:
    """The common first dimension; 0 where there is none."""
    sizes = {len(array) if array.ndim else 0 for array in inputs.values()}
    return sizes.pop() if len(sizes) == 1 else 0


def _by_length(inputs: Arrays) -> np.ndarray:
    """The numbers of the rows, so that texts of like length stand together: these are computed faster."""
    sizes = np.zeros(rows_of(inputs), int)
    for array in inputs.values():
        if array.dtype == object:
            sizes += [sum(map(len, row)) for row in array.reshape(len(array), -1)]
    return np.argsort(sizes, kind="stable")


def _group(signature: Signature, inputs: Arrays) -> Any:
    """What a request must have in common with others to run with them; None: it runs alone."""
    if not signature.batched:
        return None
    shapes = tuple(array.shape[1:] for array in inputs.values())
    if signature.padded:
        return (signature, "padded") if len(set(shapes)) == 1 and len(shapes[0]) == 1 else None
    return signature, *shapes


def _width(task: _Task) -> int:
    return next(iter(task.inputs.values())).shape[1] if task.signature.padded else 0


def _join(tasks: list[_Task]) -> tuple[Arrays, int]:
    """The inputs of all tasks as one, and the width they were padded to."""
    if len(tasks) == 1:
        return tasks[0].inputs, 0
    width = max(map(_width, tasks))

    def padded(array: np.ndarray) -> np.ndarray:
        return np.pad(array, ((0, 0), (0, width - array.shape[1]))) if width else array

    return {name: np.concatenate([padded(task.inputs[name]) for task in tasks]) for name in tasks[0].inputs}, width


def _split(tasks: list[_Task], outputs: Arrays, width: int) -> list[Arrays]:
    """Each task's rows of the outputs, without the columns that only the padding made.

    Raises:
        ValueError: an output has not one row for each row of the inputs.
    """
    total, end, answers = sum(task.rows for task in tasks), 0, []
    if any(len(array) != total for array in outputs.values()):
        raise ValueError("the outputs do not follow the rows of the inputs")
    for task in tasks:
        start, end = end, end + task.rows
        own = {}
        for name, array in outputs.items():
            shape = task.signature.outputs[name] or ()
            grown = [width and size is None and array.shape[axis] == width for axis, size in enumerate(shape)]
            columns = (slice(_width(task) if grew else None) for grew in grown[1:])
            own[name] = array[(slice(start, end), *columns)]
        answers.append(own)
    return answers
