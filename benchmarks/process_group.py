"""A process group of one, for trainings in this process: torch has one default group at a time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import distributed as dist


@contextmanager
def group_of_one(folder: str | Path) -> Iterator[None]:
    """Ends with the block. DeepSpeed keeps the groups that it was started in, so it has to let go of them itself."""
    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        deepspeed = sys.modules.get("deepspeed")
        if deepspeed and deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()
        else:
            dist.destroy_process_group()
