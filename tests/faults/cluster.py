"""A Ray cluster of two nodes on this machine, and what of it can be killed."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from random import Random

from ray._private.node import Node
from ray.cluster_utils import Cluster

from benchmarks.memory import tree


class TwoNodes:
    """A head that stays and a second node that comes back when it is killed, each with room for one worker."""

    def __init__(self) -> None:
        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=node)
        self.node = node
        self.second = self._added()
        self.address: str = self.cluster.address

    def kill_worker(self, words: str, dice: Random) -> bool:
        """Kill one of the worker processes of Ray whose titles have these words; False when there is none.

        A node's agents are no workers: without one of them a node ends, the head as well.
        """
        titles = {pid: title(pid) for raylet in self._raylets() for pid in tree(raylet)}
        pids = [pid for pid, text in titles.items() if words in text and "Agent" not in text]
        return bool(pids) and kill(dice.choice(pids))

    def kill_second(self) -> bool:
        """Kill the second node's raylet, and with it the node; another one takes its place."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = self._added()
        return True

    def stop(self) -> None:
        self.cluster.shutdown()

    def _added(self) -> Node:
        """One more node, once the cluster knows it: Ray itself waits for half a minute only."""
        node = self.cluster.add_node(wait=False, **self.node)
        self.cluster.wait_for_nodes(timeout=600)
        return node

    def _raylets(self) -> list[int]:
        nodes = (self.cluster.head_node, self.second)
        return [process.process.pid for node in nodes for process in node.all_processes["raylet"]]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False
