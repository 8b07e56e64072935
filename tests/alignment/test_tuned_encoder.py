"""Fine-tuned encoders: each is stored once, and found as long as it is there; older workspaces have one, elsewhere."""

from types import SimpleNamespace

import pytest

from allmrec.alignment import tuned_encoder
from allmrec.alignment.tuned_encoder import DIGEST, find_tuned_encoder, save_tuned_encoder
from allmrec.bundle.description import verify_encoder
from allmrec.core.artifacts import Manifest, commit, invalidate
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace

THIS = "this training"


@pytest.fixture
def workspace(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(tuned_encoder, "encoder_files", lambda encoder: {"modules.json": encoder.weights, "b": b"-"})
    return Workspace(storage)


def encoder(weights: bytes) -> SimpleNamespace:
    return SimpleNamespace(weights=weights)


def test_equal_encoders_are_stored_once_and_a_damaged_one_again(workspace: Workspace) -> None:
    one, other = (save_tuned_encoder(workspace, encoder(weights)) for weights in (b"1", b"2"))
    assert one != other and save_tuned_encoder(workspace, encoder(b"1")) == one
    assert len(list(workspace.encoders.list())) == 6
    alignment = {"stats": {"alignment": {DIGEST: one}}}
    verify_encoder(workspace.storage, alignment)
    workspace.encoders.write(f"{one}/encoder/modules.json", b"3")
    with pytest.raises(ValueError, match=r"modules.json is damaged"):
        verify_encoder(workspace.storage, alignment)
    save_tuned_encoder(workspace, encoder(b"1"))
    verify_encoder(workspace.storage, alignment)
    workspace.encoders.write(f"{one}/manifest.json", workspace.encoders.read(f"{other}/manifest.json"))
    with pytest.raises(ValueError, match=f"manifest.json is damaged: it is not of {one}"):
        verify_encoder(workspace.storage, alignment)
    verify_encoder(workspace.storage, {"stats": {"alignment": {}}})


def test_embeddings_by_a_former_encoder_are_apart_from_the_last_ones(workspace: Workspace) -> None:
    former, last = (save_tuned_encoder(workspace, encoder(weights)) for weights in (b"1", b"2"))
    commit(workspace.fine_tuned, "fine_tuned", THIS, {}, stats={DIGEST: last})
    named = {"another training": former, THIS: last}
    trained = [Manifest("alignment", name, {}, stats={DIGEST: digest}) for name, digest in named.items()]
    found = [find_tuned_encoder(workspace, manifest) for manifest in trained]
    assert [one and one.model for one in found] == [workspace.encoders.name(f"{one}/encoder") for one in (former, last)]
    assert [one and one.embeddings for one in found] == [
        f"encoders/{former}/text_embeddings",
        Workspace.fine_tuned_text_embeddings,
    ]
    invalidate(workspace.encoders.at(former))
    assert find_tuned_encoder(workspace, trained[0]) is None


def test_an_alignment_of_before_has_the_encoder_in_fine_tuned_until_another_is_trained(workspace: Workspace) -> None:
    """It names none by digest."""
    before = Manifest("alignment", THIS, {})
    commit(workspace.fine_tuned, "fine_tuned", THIS, {})
    found = find_tuned_encoder(workspace, before)
    assert found and found.model == workspace.fine_tuned.name("encoder")
    assert found.embeddings == Workspace.fine_tuned_text_embeddings
    commit(workspace.fine_tuned, "fine_tuned", "another", {}, stats={DIGEST: "0"})
    assert find_tuned_encoder(workspace, before) is None
    invalidate(workspace.fine_tuned)
    assert find_tuned_encoder(workspace, before) is None
