"""Waiting for results of Ray that may never come: they are taken by a thread, so that something can look meanwhile."""

from collections.abc import Callable, Iterator
from contextvars import copy_context
from queue import Empty, Queue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


def in_background(
    results: Iterator[T], wait_s: Callable[[], float | None], late: Callable[[], None], name: str
) -> Iterator[T]:
    """The results as they come; `late` is called each time that none has come for `wait_s()`, and may raise.

    What makes the results is left as it is then: its thread may wait inside Ray for ever.
    """
    arrived: Queue[tuple[str, Any]] = Queue(maxsize=1)

    def take() -> None:
        try:
            for result in results:
                arrived.put(("result", result))
            arrived.put(("end", None))
        except BaseException as error:  # whatever ends this thread ends the wait
            arrived.put(("error", error))

    Thread(target=copy_context().run, args=(take,), name=name, daemon=True).start()
    while True:
        try:
            kind, value = arrived.get(timeout=wait_s())
        except Empty:
            late()
            continue
        if kind == "error":
            try:
                raise value
            finally:
                del value  # the error knows this frame; a circle of the two would keep the workers alive
        if kind == "end":
            return
        yield value
