"""The names of a workspace, each spelled once."""

from pathlib import Path

from allmrec.core.storage import open_storage
from allmrec.core.workspace import Folder, Workspace


def test_a_name_on_the_class_is_a_folder_on_an_instance(tmp_path: Path) -> None:
    workspace = Workspace(open_storage(str(tmp_path)))
    assert Workspace.item_text_embeddings == "item_text_embeddings"
    assert Workspace.standin_llm == "models/llm"
    assert workspace.items.uri == str(tmp_path / "items") == workspace.at(Workspace.items).uri
    assert workspace.standin_llm.uri == str(tmp_path / "models/llm")


def test_a_folder_can_be_elsewhere(tmp_path: Path) -> None:
    published = open_storage(str(tmp_path / "published"))
    workspace = Workspace(open_storage(str(tmp_path / "shop")), {Workspace.recommendations: published})
    assert workspace.recommendations is published is workspace.at("recommendations")
    assert workspace.teacher.uri == str(tmp_path / "shop/teacher")


def test_no_two_folders_share_a_name() -> None:
    names = [folder.name for folder in vars(Workspace).values() if isinstance(folder, Folder)]
    assert len(names) == len({*names}) > 20
