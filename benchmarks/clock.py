"""Time in a model, on whatever device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


def now() -> float:
    """Seconds: on a GPU once it has done what it was given, else of this process's own CPU time.

    What else runs on a machine without GPU does not count, then.
    """
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Stopwatch:
    """Passes through an LLM, with its head or without, and seconds in them."""

    llm: Any
    passes: int = 0
    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        inside, started = 0, 0.0  # the head's forward may call the base model's

        def start(*_: Any) -> None:
            nonlocal inside, started
            inside += 1
            if inside == 1:
                started = now()

        def stop(*_: Any) -> None:
            nonlocal inside
            inside -= 1
            if inside == 0:
                self.seconds += now() - started
                self.passes += 1

        self.passes, self.seconds = 0, 0.0
        modules = (self.llm, self.llm.base_model)
        handles = [module.register_forward_pre_hook(start) for module in modules]
        handles += [module.register_forward_hook(stop) for module in modules]
        yield
        for handle in handles:
            handle.remove()
