"""A workspace: the folder `<root>/<name>` of one config, and the name of everything in it.

Each name is spelled once, here: `Workspace.items` is the name, for what a step declares, and `workspace.items` is the
storage. Knows no content; artifacts are read and written by `artifacts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import overload

from allmrec.core.storage import S3Config, Storage, open_storage


class Folder:
    """A folder of the workspace: its name on the class, its storage on an instance."""

    def __init__(self, name: str | None = None):
        self.name = name or ""

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.name = self.name or attribute

    @overload
    def __get__(self, workspace: None, owner: type) -> str: ...
    @overload
    def __get__(self, workspace: "Workspace", owner: type) -> Storage: ...
    def __get__(self, workspace: "Workspace | None", owner: type) -> str | Storage:
        return self.name if workspace is None else workspace.at(self.name)


@dataclass(frozen=True)
class Workspace:
    """The folders below `storage`, except those that are `elsewhere`, by name."""

    storage: Storage
    elsewhere: Mapping[str, Storage] = field(default_factory=dict)

    # Artifacts.
    histories = Folder()
    sequences = Folder()
    items = Folder()
    rejected = Folder()
    evaluation_cases = Folder()
    item_text_embeddings = Folder()
    teacher = Folder()
    alignment = Folder()
    fine_tuned = Folder()
    fine_tuned_text_embeddings = Folder()
    projectors = Folder()
    llm_srec = Folder("systems/llm-srec")
    tallrec = Folder("systems/tallrec")
    morec = Folder("systems/morec")
    ctrl = Folder("systems/ctrl")
    recformer = Folder("systems/recformer")
    bundle = Folder()  # names the bundle that was built last
    blend = Folder()
    external_candidates = Folder("candidates")
    nightly_users = Folder()
    suppressed_users = Folder()
    evaluation = Folder()
    evaluation_results = Folder()
    explanations = Folder()
    standin_encoder = Folder("models/encoder")
    standin_llm = Folder("models/llm")

    # Folders that hold more than one artifact, or none.
    bundles = Folder()
    checkpoints = Folder()
    encoders = Folder()  # see `allmrec.alignment.tuned_encoder`
    shuffle = Folder("drafts/exchange")
    item_drafts = Folder("drafts/items")
    count_drafts = Folder("drafts/counts")
    text_drafts = Folder("drafts/texts")
    recommendations = Folder()
    text_cache = Folder()

    # In a bundle alone: see `allmrec.bundle.items` and `allmrec.bundle.index`.
    new_texts = Folder()
    index = Folder()

    def at(self, name: str) -> Storage:
        """The folder of a name, for names that are data: a step's inputs, a bundle's parts."""
        return self.elsewhere[name] if name in self.elsewhere else self.storage.at(name)


def open_workspace(uri: str, s3: S3Config | None = None) -> Workspace:
    """The workspace in a local folder or an S3 prefix. Raises ValueError as `open_storage` does."""
    return Workspace(open_storage(uri, s3))
