"""LoRAs: the files, the names that mean them, and what of them is in the model's weights right now.

Layers get their weights changed when they are next used, and only if the list of names and weights
differs from the one they carry. So a file that was replaced is not applied again while the same tag
stays in the prompt, and a tag that is dropped by an error leaves the text encoder as it was.

Source: A1111 1.10.1, extensions-builtin/Lora/networks.py, network.py and extra_networks_lora.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.webui import folders, weights
from simulator.webui.failure import WebuiError
from simulator.webui.flags import Flags
from simulator.webui.hashes import DATA, FILES, HashCache
from simulator.webui.prompts import Tag

_EXTENSIONS = {".pt", ".ckpt", ".safetensors"}
_METADATA_ORDER = {
    "ss_sd_model_name": 1,
    "ss_resolution": 2,
    "ss_clip_skip": 3,
    "ss_num_train_images": 10,
    "ss_tag_frequency": 20,
}
_LAST = 999
_NEVER_ALIASES = ("none", "Addams")

# name, weight for the text encoder, weight for the UNet
Multiplied = tuple[str, float, float]
# A kind of layer whose shape tells base models apart, and the width of text that it takes: `te` and
# `te1`, `te2` (of SDXL) are text encoders, `attn2` is where the UNet reads the text, `unet` the rest.
Layer = tuple[str, int]
# fingerprint of a file's content -> the sum of the weights it is applied with
Signature = tuple[tuple[str, float], ...]


@dataclass
class OnDisk:
    """One LoRA file as the last scan saw it."""

    name: str
    path: Path
    metadata: dict[str, Any]
    hash: str

    @property
    def alias(self) -> str:
        """The name its trainer gave it, else the stem of the file."""
        return str(self.metadata.get("ss_output_name", self.name))

    @property
    def shorthash(self) -> str:
        """What infotexts carry: twelve digits of the hash."""
        return self.hash[:12]

    def listed(self) -> dict[str, Any]:
        """Return its entry in /loras."""
        return {
            "name": self.name,
            "alias": self.alias,
            "path": str(self.path),
            "metadata": self.metadata,
        }


@dataclass
class Loaded:
    """A LoRA in memory: its content at the time it was read, and how strongly it is wanted."""

    name: str
    on_disk: OnDisk
    mtime: float
    fingerprint: str
    layers: frozenset[Layer]
    te: float = 1.0
    unet: float = 1.0


@dataclass
class Applied:
    """What the layers of one part of the model carry."""

    wanted: tuple[Multiplied, ...] = ()
    signature: Signature = ()


class Networks:
    """The LoRAs and what is done with them."""

    def __init__(self, flags: Flags, hashes: HashCache) -> None:
        self._flags = flags
        self._hashes = hashes
        self.available: dict[str, OnDisk] = {}
        self._aliases: dict[str, OnDisk] = {}
        self._forbidden: set[str] = set()
        self.loaded: list[Loaded] = []
        self.text_encoder = Applied()
        self.unet = Applied()
        self.applications = 0
        self.refresh()

    def refresh(self) -> None:
        """Scan the folder again."""
        self.available = {}
        self._aliases = {}
        self._forbidden = set(_NEVER_ALIASES)
        self._scan(None)

    def _scan(self, names: set[str] | None) -> None:
        """Register the files, or those called one of `names`. An alias that is taken is nobody's."""
        for folder in self._flags.lora_dirs:
            for path in folders.walk(folder, _EXTENSIONS):
                name = path.name.removesuffix(path.suffix)
                if path.is_dir() or (names and name not in names) or not path.exists():
                    continue
                entry = self._on_disk(name, path)
                self.available[name] = entry
                if entry.alias in self._aliases:
                    self._forbidden.add(entry.alias.lower())
                self._aliases[name] = entry
                self._aliases[entry.alias] = entry

    def _on_disk(self, name: str, path: Path) -> OnDisk:
        metadata: dict[str, Any] = {}
        if path.suffix.lower() == ".safetensors":
            found = weights.listed_metadata(path)
            ordered = sorted(found, key=lambda key: _METADATA_ORDER.get(key, _LAST))
            metadata = {key: found[key] for key in ordered}
        noted = metadata.get("sshs_model_hash")
        known = noted or self._hashes.known(path, f"lora/{name}", _database(path)) or ""
        return OnDisk(name, path, metadata, str(known))

    def _find(self, name: str) -> OnDisk | None:
        if name.lower() in self._forbidden:
            return self.available.get(name)
        return self._aliases.get(name)

    def by_shorthash(self, shorthash: str) -> OnDisk | None:
        """Return the LoRA whose hash begins so, as infotexts name it."""
        for entry in self.available.values():
            if entry.hash and entry.shorthash == shorthash:
                return entry
        return None

    def activate(self, tags: list[Tag]) -> dict[str, str]:
        """Make the LoRAs of `tags` the wanted ones; return the short hashes by mentioned name.

        What cannot be found or read is left out in silence.

        Raises:
            WebuiError: ValueError for a weight that is no number, FileNotFoundError for a file that was
                deleted since the scan; the LoRAs that were wanted before are dropped first only by
                the latter.
        """
        wanted = [_multiplied(tag) for tag in tags]
        self._load(wanted)
        symbols = str.maketrans("", "", ":,")
        return {
            loaded.name.translate(symbols): loaded.on_disk.shorthash
            for loaded in self.loaded
            if loaded.on_disk.shorthash
        }

    def _load(self, wanted: list[Multiplied]) -> None:
        already = {loaded.name: loaded for loaded in self.loaded}
        self.loaded = []
        names = [name for name, _, _ in wanted]
        missing = {
            name
            for name in names
            if self._aliases.get(name) is None
            or (name.lower() in self._forbidden and self.available.get(name) is None)
        }
        if missing:
            self._scan(missing)
        if any(self._find(name) is None for name in names):
            self.refresh()
        # One tag given twice is one object: both get the weights that come last.
        for name, te, unet in wanted:
            on_disk = self._find(name)
            loaded = already.get(name)
            if on_disk is not None:
                loaded = self._read(name, on_disk, loaded)
                if loaded is None:
                    continue
                already[name] = loaded
            if loaded is not None:
                loaded.te, loaded.unet = te, unet
                self.loaded.append(loaded)

    def _read(self, name: str, on_disk: OnDisk, loaded: Loaded | None) -> Loaded | None:
        try:
            mtime = on_disk.path.stat().st_mtime
        except FileNotFoundError as error:
            raise weights.not_found(on_disk.path) from error
        if loaded is None or mtime > loaded.mtime:
            try:
                layers = _layers(on_disk.path)
            except WebuiError:
                return None
            loaded = Loaded(name, on_disk, mtime, weights.fingerprint(on_disk.path), layers)
        if not on_disk.hash:
            title, database = f"lora/{on_disk.name}", _database(on_disk.path)
            skip = weights.read_header(on_disk.path).data_start if database == DATA else 0
            on_disk.hash = self._hashes.of(on_disk.path, title, database, skip=skip) or ""
        return loaded

    def reset(self) -> None:
        """Forget what the layers carry: new weights were loaded into them."""
        self.text_encoder = Applied()
        self.unet = Applied()

    def apply_to_text_encoder(self, width: int) -> Signature:
        """Bring the text encoder up to date and return what it carries."""
        self.text_encoder = self._applied(self.text_encoder, width, unet=False)
        return self.text_encoder.signature

    def apply_to_unet(self, width: int) -> Signature:
        """Bring the UNet up to date and return what it carries."""
        self.unet = self._applied(self.unet, width, unet=True)
        return self.unet.signature

    def _applied(self, applied: Applied, width: int, *, unet: bool) -> Applied:
        wanted = tuple((loaded.name, loaded.te, loaded.unet) for loaded in self.loaded)
        if wanted == applied.wanted:
            return applied
        self.applications += 1
        sums: dict[str, float] = {}
        for loaded in self.loaded:
            if _fits(loaded.layers, width, unet=unet):
                strength = loaded.unet if unet else loaded.te
                sums[loaded.fingerprint] = sums.get(loaded.fingerprint, 0.0) + strength
        return Applied(wanted, tuple(sorted((key, value) for key, value in sums.items() if value)))


def _multiplied(tag: Tag) -> Multiplied:
    if not tag.positional:
        raise WebuiError("IndexError", "list index out of range")
    numbers = tag.positional[1:]
    try:
        te = float(tag.named.get("te", numbers[0] if numbers else 1.0))
        unet = float(tag.named.get("unet", numbers[1] if len(numbers) > 1 else te))
        if len(numbers) > 2 or "dyn" in tag.named:
            int(tag.named.get("dyn", numbers[2] if len(numbers) > 2 else 0))
    except ValueError as error:
        raise WebuiError("ValueError", str(error)) from error
    return tag.positional[0], te, unet


def _layers(path: Path) -> frozenset[Layer]:
    """Return the layers of a LoRA file as far as they tell its base model.

    Raises:
        WebuiError: the file is damaged.
    """
    if path.suffix.lower() != ".safetensors":
        weights.read_pickled(path)
        return frozenset()
    header = weights.read_header(path)
    found: set[Layer] = set()
    for name in header.tensors:
        shape = header.shape(name)
        if name.startswith("lora_unet_"):
            found.add(("unet", 0))
        if len(shape) < 2 or not name.endswith(_INPUT_SIDE):
            continue
        for start in ("lora_te_", "lora_te1_", "lora_te2_"):
            if name.startswith(start):
                found.add((start.strip("_").removeprefix("lora_"), shape[1]))
        if "attn2_to_k" in name or "attn2_to_v" in name:
            found.add(("attn2", shape[1]))
    return frozenset(found)


# The half of a layer's weights that has its inputs as the second dimension: LoRA, LoHa, LoKr, PEFT.
_INPUT_SIDE = ("lora_down.weight", "hada_w1_b", "lokr_w2", "lokr_w2_b", "lora_A.weight")


def _fits(layers: frozenset[Layer], width: int, *, unet: bool) -> bool:
    """Return whether any layer of one part of the model takes the LoRA's weights.

    A1111 passes over a layer whose shape is another, with nothing but a line in the log. It does look
    for SDXL's first text encoder (`te1`) in the one of SD 1.x, which is the same network.

    Source: A1111 1.10.1, extensions-builtin/Lora/networks.py, load_network and network_apply_weights.
    """
    sdxl = width == _SDXL_WIDTH
    encoders = {("te1", 768), ("te2", 1280)} if sdxl else {("te", width), ("te1", width)}
    reads_text = {layer for layer in layers if layer[0] == "attn2"}
    has_encoders = {layer for layer in layers if layer[0].startswith("te")}
    if width == 0 or (not reads_text and not has_encoders):
        return True
    if not unet:
        return bool(encoders & layers)
    if reads_text:
        return ("attn2", width) in layers
    return ("unet", 0) in layers and bool(encoders & layers)


_SDXL_WIDTH = 2048


def _database(path: Path) -> str:
    """Return where its hash is kept, which of a safetensors file is of the data alone.

    Source: A1111 1.10.1, modules/hashes.py, addnet_hash_safetensors; recorded: lora_space.
    """
    return DATA if path.suffix.lower() == ".safetensors" else FILES
