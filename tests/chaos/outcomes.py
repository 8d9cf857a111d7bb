"""What may come of a host that does harm: right bytes or one clear error."""

from schemas.errors import WorkerError
from tests.chaos.conftest import SECRET, Model, World
from tests.chaos.soundness import private, require_right_bytes
from tests.model_cache.conftest import Shelf


def outcome(shelf: Shelf, url: str, name: str = "x", digest: str = "") -> WorkerError | None:
    """Return the error that an `ensure` ends in, None if it does not; any other is a failure."""
    try:
        shelf.ensure(name=name, url=url, hash=digest)
    except WorkerError as error:
        require_clear(error)
        return error
    return None


def require_clear(error: WorkerError) -> None:
    """It says what happened under its code, and shows nothing that is secret."""
    text = error.as_response()["error"]
    assert text.startswith(f"{error.code}: ")
    assert str(error).endswith(".")
    assert SECRET not in text
    assert "X-Signature" not in text


def require_no_harm(world: World, shelf: Shelf, model: Model, url: str = "") -> None:
    """What lies there is right, and once the host behaves the model can be had."""
    require_right_bytes(world.volume, world.hub.root)
    world.mend()
    done = shelf.ensure(name="x", url=url or model.url)
    assert done.model.sha256 == model.sha256
    shelf.cache.close()
    assert private(world.volume) == []
    world.require_sound()
