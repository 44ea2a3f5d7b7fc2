"""CLIP's image and text encoders (Radford et al., *Learning transferable visual models*, 2021), by transformers."""

import contextlib
import functools
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from uge.errors import UsageError
from uge.networks import weights_hash
from uge.networks.checkpoint import first_line, import_transformers, preprocessing, read_json, resized

logger = logging.getLogger(__name__)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TEXT_BATCH = 256
OTHERWISE = "give the path of a folder that holds the checkpoint, or use --encoder local, which needs no download"


class ClipSpace:
    """A frozen CLIP checkpoint as a ``FeatureSpace``; make it with ``ClipSpace.load``.

    Args:
        model: transformers' ``CLIPModel``.
        tokenizer: The checkpoint's tokenizer.
        checkpoint: Its name in the manifest; no path, because the manifest is published.
        mean: Mean of each colour channel, in [0, 1] units.
        std: Standard deviation of each colour channel, in [0, 1] units.
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

        Weights are read from safetensors only; ``HF_HOME`` and ``HF_HUB_OFFLINE`` apply.

        Args:
            id_or_folder: A folder, or ``"owner/name"``, or ``"owner/name@revision"``.
            device: Device of the model.

        Raises:
            MissingExtraError: transformers is not installed.
            UsageError: The checkpoint cannot be found or reached, or is no complete CLIP model.
        """
        transformers = import_transformers("the CLIP encoder")
        folder = _find_folder(str(id_or_folder))
        config = read_json(folder / "config.json", OTHERWISE)
        if config.get("model_type") != "clip":
            raise UsageError(
                f"{id_or_folder} must be a CLIP checkpoint, its model type is '{config.get('model_type')}'; {OTHERWISE}"
            )
        try:
            model, report = transformers.CLIPModel.from_pretrained(
                str(folder), use_safetensors=True, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
            tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # many kinds, by file and by version of transformers
            raise UsageError(
                f"the CLIP checkpoint in {folder} cannot be read ({first_line(error)}); {OTHERWISE}"
            ) from error
        if report["missing_keys"]:
            raise UsageError(
                f"the CLIP checkpoint in {folder} lacks the tensor '{min(report['missing_keys'])}'; {OTHERWISE}"
            )
        checkpoint = folder.resolve().name if Path(id_or_folder).is_dir() else str(id_or_folder)
        settings = preprocessing(folder, OTHERWISE)
        logger.info("CLIP checkpoint %s on %s", checkpoint, device)
        return cls(
            model,
            tokenizer,
            checkpoint=checkpoint,
            mean=settings.get("image_mean", CLIP_MEAN),
            std=settings.get("image_std", CLIP_STD),
        ).to(device)

    def image_features(self, x: Tensor) -> Tensor:
        """Features of images; see ``FeatureSpace``.

        Images are resized, with their whole content, to the square that the checkpoint was trained on: a crop would
        leave the margins without gradient.

        Args:
            x: (B, C, H, W) in [0, 1], C = 1 or 3.

        Returns:
            (B, D), fp32, each row of length 1.

        Raises:
            UsageError: The images are neither gray nor RGB.
        """
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise UsageError(f"CLIP takes images (B, 1 or 3, H, W), got shape {tuple(x.shape)}; convert them")
        return F.normalize(_pooled(self._model.get_image_features(pixel_values=self.preprocess(x))), dim=-1)

    @torch.no_grad()
    def text_features(self, classes: Sequence[str]) -> Tensor:
        """Features (K, D) of "A photo of a CLASS"; see ``FeatureSpace``."""
        parts = []
        for start in range(0, len(classes), TEXT_BATCH):
            tokens = self._tokenizer(
                [f"A photo of a {name.replace('_', ' ')}" for name in classes[start : start + TEXT_BATCH]],
                padding=True,
                truncation=True,
                max_length=self._model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self._model.device)
            parts.append(
                self._model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            )
        return F.normalize(torch.cat([_pooled(part) for part in parts]), dim=-1)

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
            # Gray is broadcast to three channels.
            return (resized(x.float(), self._size) - self._normalisation[0]) / self._normalisation[1]


def _pooled(output: Any) -> Tensor:
    features: Tensor = getattr(output, "pooler_output", output)  # transformers 5 wraps them in an output object.
    return features.float()


def _find_folder(spec: str) -> Path:
    if spec and Path(spec).is_dir():
        if not _is_complete(Path(spec)):
            raise UsageError(
                f"the folder {spec} is no complete CLIP checkpoint: expected config.json, *.safetensors (no pickles), "
                "and tokenizer.json or vocab.json with merges.txt"
            )
        return Path(spec)
    hub = importlib.import_module("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    name, _, revision = spec.partition("@")
    try:
        importlib.import_module("huggingface_hub.utils").validate_repo_id(name)
    except ValueError as error:
        raise UsageError(
            f"CLIP checkpoint '{spec}' is neither a folder nor an 'owner/name' of the hub; {OTHERWISE}"
        ) from error
    revisions = [revision or "main"]
    if not revision:  # pull requests that were downloaded before
        refs = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs"
        revisions += sorted(str(path.relative_to(refs)) for path in refs.glob("refs/pr/*"))
    for candidate in revisions:
        with contextlib.suppress(Exception):  # It is not in the cache.
            folder = Path(hub.snapshot_download(name, revision=candidate, local_files_only=True))
            if _is_complete(folder):
                return folder
    if constants.is_offline_mode():
        raise UsageError(f"CLIP checkpoint '{spec}' is not in the cache and HF_HUB_OFFLINE is set; {OTHERWISE}")
    return _download(hub, name, revision or "main", spec)


def _download(hub: Any, name: str, revision: str, spec: str) -> Path:
    api = hub.HfApi()
    try:  # asked once and with a short limit: the library's own retries take half a minute without a network
        files = api.model_info(name, revision=revision, timeout=10.0).siblings
        if revision == "main" and not any(file.rfilename.endswith(".safetensors") for file in files):
            # This author opens pull requests on the hub that add safetensors to older checkpoints.
            pulls = api.get_repo_discussions(name, author="SFconvertbot")
            revision = next((f"refs/pr/{pull.num}" for pull in pulls if pull.is_pull_request), "")
        if revision:
            patterns = ["*.json", "merges.txt", "*.safetensors"]
            folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise UsageError(
            f"CLIP checkpoint '{spec}' is not in the cache and could not be fetched from the hub "
            f"({first_line(error)}); {OTHERWISE}"
        ) from error
    if not revision:
        raise UsageError(f"CLIP checkpoint '{spec}' has pickled weights only, which are not opened; {OTHERWISE}")
    if not _is_complete(folder):
        raise UsageError(f"CLIP checkpoint '{spec}' lacks config.json, *.safetensors or its tokenizer; {OTHERWISE}")
    return folder


def _is_complete(folder: Path) -> bool:
    return (
        ((folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file())
        and (folder / "config.json").is_file()
        and any(folder.glob("*.safetensors"))
    )
