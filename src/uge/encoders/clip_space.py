"""CLIP's image and text encoders (Radford et al., *Learning transferable visual models*, 2021), by transformers."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from uge.encoders.base import prompt, unit_length
from uge.errors import UsageError
from uge.networks import weights_hash
from uge.networks.checkpoint import first_line, import_transformers, preprocessing, read_json, resized

logger = logging.getLogger(__name__)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TEXT_BATCH = 256
FILES = ["*.json", "merges.txt", "*.safetensors"]
REACH_SECONDS = 10.0
CONVERTER = "SFconvertbot"  # opens pull requests on the hub that add safetensors to older checkpoints
OTHERWISE = "give the path of a folder that holds the checkpoint, or use --encoder local, which needs no download"


class ClipSpace:
    """A frozen CLIP checkpoint as a ``FeatureSpace``; make it with ``ClipSpace.load``.

    Args:
        model: transformers' ``CLIPModel``.
        tokenizer: The checkpoint's tokenizer.
        checkpoint: What the manifest calls it; no path, because the manifest is published.
        mean: Per colour channel, in [0, 1] units.
        std: Per colour channel, in [0, 1] units.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        checkpoint: str,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        self.name = f"clip:{checkpoint}"
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._checkpoint = checkpoint
        self._normalisation = torch.tensor([list(mean), list(std)]).reshape(2, 1, 3, 1, 1)
        side = model.config.vision_config.image_size
        self._size: tuple[int, int] = (side, side) if isinstance(side, int) else tuple(side)

    @classmethod
    def load(cls, id_or_folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """Load a checkpoint from a folder, the local cache, or the Hugging Face hub, in this order.

        Weights are read from safetensors only. ``HF_HOME`` and ``HF_HUB_OFFLINE`` are honoured.

        Args:
            id_or_folder: A folder, or ``"owner/name"``, or ``"owner/name@revision"``.
            device: Where the features are computed.

        Raises:
            MissingExtraError: transformers is not installed.
            UsageError: The checkpoint cannot be found or reached, or is no complete CLIP model.
        """
        transformers = import_transformers("the CLIP encoder")
        folder = _find_folder(str(id_or_folder))
        config = read_json(folder / "config.json", OTHERWISE)
        if config.get("model_type") != "clip":
            raise UsageError(
                f"{id_or_folder} must be a CLIP checkpoint, its model type is '{config.get('model_type')}'"
            )
        try:
            model, report = transformers.CLIPModel.from_pretrained(
                str(folder), use_safetensors=True, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
            tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # many kinds, by file and by version of transformers
            what = first_line(error)
            raise UsageError(f"the CLIP checkpoint in {folder} cannot be read ({what}); {OTHERWISE}") from error
        missing = sorted(report["missing_keys"])
        if missing:
            raise UsageError(f"the CLIP checkpoint in {folder} lacks the tensor '{missing[0]}'; {OTHERWISE}")
        checkpoint = folder.resolve().name if Path(id_or_folder).is_dir() else str(id_or_folder)
        asked = preprocessing(folder, OTHERWISE)
        mean, std = asked.get("image_mean", CLIP_MEAN), asked.get("image_std", CLIP_STD)
        logger.info("CLIP checkpoint %s on %s", checkpoint, device)
        return cls(model, tokenizer, checkpoint=checkpoint, mean=mean, std=std).to(device)

    def image_features(self, x: Tensor) -> Tensor:
        """Features of images; see ``FeatureSpace``.

        Images are resized, with their whole content, to the square that the checkpoint was trained
        on: a crop would leave the margins without gradient.

        Args:
            x: (B, C, H, W) in [0, 1], C = 1 or 3.

        Returns:
            (B, D), fp32, each row of length 1.

        Raises:
            UsageError: The images are neither gray nor RGB.
        """
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise UsageError(f"CLIP takes images (B, 1 or 3, H, W), got shape {tuple(x.shape)}")
        output = self._model.get_image_features(pixel_values=self.preprocess(x))
        return unit_length(_pooled(output))

    @torch.no_grad()
    def text_features(self, classes: Sequence[str]) -> Tensor:
        """Features (K, D) of "A photo of a CLASS"; see ``FeatureSpace``."""
        prompts = [prompt(name) for name in classes]
        parts = []
        for start in range(0, len(prompts), TEXT_BATCH):
            tokens = self._tokenizer(
                prompts[start : start + TEXT_BATCH],
                padding=True,
                truncation=True,
                max_length=self._model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self._model.device)
            output = self._model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            parts.append(unit_length(_pooled(output)))
        return torch.cat(parts)

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device, in place; returns itself."""
        self._model.to(device)
        self._normalisation = self._normalisation.to(device)
        return self

    def identity(self) -> dict[str, Any]:
        """``kind``, ``checkpoint``, and the ``hash`` of the weights; see ``FeatureSpace``."""
        return {"kind": "clip", "checkpoint": self._checkpoint, "hash": self._hash}

    @functools.cached_property
    def _hash(self) -> str:
        return weights_hash(self._model)

    def preprocess(self, x: Tensor) -> Tensor:
        """Resized and normalised RGB images, differentiable.

        Args:
            x: (B, 1 or 3, H, W) in [0, 1].

        Returns:
            (B, 3, side, side), fp32.
        """
        with torch.autocast(x.device.type, enabled=False):  # bf16 has 8 bits: it would swallow single levels
            mean, std = self._normalisation
            normalised: Tensor = (resized(x.float(), self._size) - mean) / std  # broadcasts gray to three channels
        return normalised


def _pooled(output: Any) -> Tensor:
    """The projected features, which transformers 5 wraps in an output object."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def _find_folder(spec: str) -> Path:
    """The folder of a checkpoint: given, in the cache, or downloaded."""
    if spec and Path(spec).is_dir():
        if not _is_complete(Path(spec)):
            raise UsageError(
                f"the folder {spec} is no complete CLIP checkpoint: expected config.json, *.safetensors (no pickles), "
                "and tokenizer.json or vocab.json with merges.txt"
            )
        return Path(spec)
    hub, constants = (importlib.import_module(name) for name in ("huggingface_hub", "huggingface_hub.constants"))
    owner_name, _, revision = spec.partition("@")
    try:
        importlib.import_module("huggingface_hub.utils").validate_repo_id(owner_name)
    except ValueError as error:
        raise UsageError(f"CLIP checkpoint '{spec}' is neither a folder nor an 'owner/name' of the hub") from error
    for candidate in _cached_revisions(Path(constants.HF_HUB_CACHE), owner_name, revision):
        try:
            folder = Path(hub.snapshot_download(owner_name, revision=candidate, local_files_only=True))
        except Exception:
            continue
        if _is_complete(folder):
            return folder
    if constants.is_offline_mode():
        raise UsageError(f"CLIP checkpoint '{spec}' is not in the cache and HF_HUB_OFFLINE is set; {OTHERWISE}")
    return _download(hub, owner_name, revision or "main", spec)


def _cached_revisions(cache: Path, owner_name: str, revision: str) -> Iterator[str]:
    """The revision asked for, or main and then pull requests that were downloaded before."""
    yield revision or "main"
    if not revision:
        refs = cache / f"models--{owner_name.replace('/', '--')}" / "refs"
        yield from sorted(str(path.relative_to(refs)) for path in refs.glob("refs/pr/*"))


def _download(hub: Any, owner_name: str, revision: str, spec: str) -> Path:
    """Fetch a checkpoint's small files and its safetensors into the cache."""
    api = hub.HfApi()
    try:  # asked once and with a short limit: the library's own retries take half a minute without a network
        files = [
            file.rfilename for file in api.model_info(owner_name, revision=revision, timeout=REACH_SECONDS).siblings
        ]
        if not any(name.endswith(".safetensors") for name in files) and revision == "main":
            conversions = [
                pull for pull in api.get_repo_discussions(owner_name, author=CONVERTER) if pull.is_pull_request
            ]
            if not conversions:
                raise UsageError(
                    f"CLIP checkpoint '{spec}' has pickled weights only, which are not opened; {OTHERWISE}"
                )
            revision = f"refs/pr/{conversions[0].num}"
        folder = Path(hub.snapshot_download(owner_name, revision=revision, allow_patterns=FILES))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"CLIP checkpoint '{spec}' is not in the cache and could not be fetched from the hub "
            f"({first_line(error)}); {OTHERWISE}"
        ) from error
    if not _is_complete(folder):
        raise UsageError(f"CLIP checkpoint '{spec}' lacks config.json, *.safetensors or its tokenizer; {OTHERWISE}")
    return folder


def _is_complete(folder: Path) -> bool:
    tokenizer = (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file()
    return tokenizer and (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
