import hashlib
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from tests.simulator.hub.conftest import Client

DATA = hashlib.shake_256(b"model").digest(200_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
RESOLVE = "/acme/sd/resolve/main/"


@pytest.fixture(autouse=True)
def repository(client: Client) -> None:
    client.put("huggingface/acme/sd/sub/model.safetensors", DATA)
    client.put("huggingface/acme/sd/README.md", b"# Read me\n")


def test_a_large_file_is_described_and_redirected_before_its_first_byte(client: Client) -> None:
    head = client.session.head(client.url + RESOLVE + "sub/model.safetensors", timeout=30)

    assert head.status_code == 302
    assert head.headers["X-Linked-Etag"] == f'"{DIGEST}"'
    assert head.headers["X-Linked-Size"] == str(len(DATA))
    assert len(head.headers["X-Repo-Commit"]) == 40
    assert head.headers["Location"].startswith(client.site.links.base_url)
    assert client.get(RESOLVE + "sub/model.safetensors", hops=True).content == DATA


def test_a_small_file_is_served_at_once_under_its_git_digest(client: Client) -> None:
    answer = client.get(RESOLVE + "README.md")

    data = b"# Read me\n"
    digest = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["ETag"] == f'"{digest}"'


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/acme/sd/resolve/main/missing.safetensors", 404, "EntryNotFound"),
        ("/acme/sd/resolve/v9/README.md", 404, "RevisionNotFound"),
        ("/acme/none/resolve/main/README.md", 401, "RepoNotFound"),
        ("/acme/sd/resolve/main/.gated", 404, "EntryNotFound"),
    ],
)
def test_what_is_missing_is_named_in_the_error_code(
    path: str, status: int, code: str, client: Client
) -> None:
    answer = client.get(path)

    assert (answer.status_code, answer.headers["X-Error-Code"]) == (status, code)


def test_a_gated_repository_wants_a_token_that_is_let_in(client: Client) -> None:
    client.put("huggingface/acme/sd/.gated", b"hf_good\n")
    path = RESOLVE + "sub/model.safetensors"

    without = client.get(path)
    wrong = client.get(path, headers={"Authorization": "Bearer hf_other"})
    right = client.get(path, headers={"Authorization": "Bearer hf_good"})

    assert (without.status_code, without.headers["X-Error-Code"]) == (401, "GatedRepo")
    assert (wrong.status_code, wrong.headers["X-Error-Code"]) == (403, "GatedRepo")
    assert right.status_code == 302


def test_a_private_repository_looks_missing_to_strangers(client: Client) -> None:
    client.put("huggingface/acme/sd/.private", b"hf_good")

    without = client.get(RESOLVE + "README.md")
    wrong = client.get(RESOLVE + "README.md", headers={"Authorization": "Bearer hf_other"})

    assert (without.status_code, without.headers["X-Error-Code"]) == (401, "RepoNotFound")
    assert (wrong.status_code, wrong.headers["X-Error-Code"]) == (404, "RepoNotFound")


def test_another_revision_is_a_folder_beside_and_a_commit_names_main(client: Client) -> None:
    client.put("huggingface/acme/sd@v2/README.md", b"two")
    commit = client.get(RESOLVE + "README.md").headers["X-Repo-Commit"]

    assert client.get("/acme/sd/resolve/v2/README.md").content == b"two"
    assert client.get(f"/acme/sd/resolve/{commit}/README.md").content == b"# Read me\n"


def test_the_commit_changes_with_the_files(client: Client) -> None:
    before = client.get(RESOLVE + "README.md").headers["X-Repo-Commit"]
    client.put("huggingface/acme/sd/README.md", b"changed")

    assert client.get(RESOLVE + "README.md").headers["X-Repo-Commit"] != before


def test_the_real_client_downloads_from_it(
    client: Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("hf")

    path = huggingface_hub.hf_hub_download(
        "acme/sd", "sub/model.safetensors", endpoint=client.url, local_dir=folder, token=False
    )

    assert Path(path).read_bytes() == DATA


def test_the_real_client_reads_the_tree_and_understands_the_refusals(client: Client) -> None:
    api = huggingface_hub.HfApi(endpoint=client.url, token=False)

    info = api.model_info("acme/sd")
    tree = {entry.path: entry for entry in api.list_repo_tree("acme/sd")}
    client.put("huggingface/acme/sd/.gated", b"hf_good")
    with pytest.raises(errors.GatedRepoError):
        api.model_info("acme/sd")
    with pytest.raises(errors.RepositoryNotFoundError):
        list(api.list_repo_tree("acme/none"))

    assert [s.rfilename for s in info.siblings or []] == ["README.md", "sub/model.safetensors"]
    large = tree["sub/model.safetensors"]
    assert isinstance(large, huggingface_hub.hf_api.RepoFile)
    assert large.lfs is not None
    assert (large.lfs.sha256, large.size) == (DIGEST, len(DATA))


def test_the_real_client_follows_a_repository_to_its_new_name(
    client: Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    client.put("huggingface/acme/old/.renamed", b"acme/sd\n")

    path = huggingface_hub.hf_hub_download(
        "acme/old",
        "sub/model.safetensors",
        endpoint=client.url,
        local_dir=tmp_path_factory.mktemp("hf"),
        token=False,
    )

    assert Path(path).read_bytes() == DATA


def test_the_real_client_understands_that_a_repository_is_disabled(client: Client) -> None:
    client.put("huggingface/acme/sd/.disabled", b"")

    with pytest.raises(errors.DisabledRepoError):
        huggingface_hub.HfApi(endpoint=client.url, token=False).model_info("acme/sd")
