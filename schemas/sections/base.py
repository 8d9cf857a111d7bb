"""What all sections of the settings are, and the types that several have fields of."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


def _split_at_commas(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"https", "http"} or not parts.hostname or parts.query:
        raise ValueError("must be the URL of a host")
    if parts.username or parts.password:
        raise ValueError("must hold no name and no password")
    return url.rstrip("/")


# Links are made of these, and a link to a relative path leads nowhere.
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
CommaList = BeforeValidator(_split_at_commas)


class Section(BaseModel):
    """Base of every settings group: immutable, a misspelt field is an error, and numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
