"""Pictures that models drew, against those of a folder and against those of the first model, by features alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from unifl.assembly.distances import Distances, feature_drift, set_distances
from unifl.assembly.picture_features import find_pictures, folder_features, picture_sizes
from unifl.disk import require_writable
from unifl.evaluation import ModelResult
from unifl.feedback.features import PictureFeatures


@dataclass(frozen=True)
class Reference:
    """Pictures of a folder, with which those of all models are compared.

    Attributes:
        name: Of the folder.
        extractor: Name of the features.
        features: One row per picture.
    """

    name: str
    extractor: str
    features: Float[np.ndarray, "m d"]


def open_reference(
    folder: Path,
    extractor: PictureFeatures,
    *,
    kept: Path,
    batch_size: int,
    device: torch.device | str,
    progress: Callable[[str, int, int], None] | None = None,
) -> Reference:
    """Features of a folder of pictures, of which all are looked at before the first is shown to a network.

    Args:
        folder: See `find_pictures`.
        extractor: On `device`.
        kept: Folder in which features are kept for a later call.
        batch_size: Pictures at once.
        device: Where pictures are shown.
        progress: Called with (folder, pictures done, pictures in all).

    Raises:
        UserError: No such folder, fewer than two pictures, a file that is none, or `kept` cannot be written to.
    """
    require_writable(kept / "features.npz")
    pictures = find_pictures(folder)

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(str(folder), done, total)

    sizes = picture_sizes(pictures)
    found = folder_features(
        pictures, sizes, extractor, kept, batch_size=batch_size, device=device, progress=tell
    )
    return Reference(folder.expanduser().resolve().name, extractor.name, found.features)


def model_distances(
    results: Mapping[str, ModelResult], reference: Reference, *, paired: Collection[str]
) -> dict[str, Distances]:
    """Distances of each model's pictures, by model.

    Numbers are called after what they compare: `kid_coco_on_dinov2` is to the folder coco, `vendi_on_dinov2` of the
    model itself, `vendi_coco_on_dinov2` of the folder, `drift_features_from_base@20_on_dinov2` to the first model.

    Args:
        results: Of models with their features, the first of which is the base.
        reference: What they are compared with.
        paired: Models whose pictures start from the same noise, of which there is a drift.

    Raises:
        UserError: See `set_distances`.
    """
    (base, start), *_ = results.items()
    on = f"_on_{reference.extractor}"
    names = {"vendi": f"vendi{on}", "vendi_reference": f"vendi_{reference.name}{on}"}
    found = {}
    for model, result in results.items():
        rows, units = _rows(result)
        numbers, left_out = set_distances(rows, reference.features, units=units)
        numbers = {names.get(key, f"{key}_{reference.name}{on}"): one for key, one in numbers.items()}
        if model != base and {model, base} <= {*paired}:
            drift, without = feature_drift(rows, _rows(start)[0], units=units)
            numbers |= {f"{key}_from_{base}{on}": one for key, one in drift.items()}
            left_out |= without
        found[model] = Distances(reference.extractor, (len(rows), len(reference.features)), numbers, left_out)
    return found


def _rows(result: ModelResult) -> tuple[Float[np.ndarray, "n d"], np.ndarray]:
    """Features picture by picture, and which prompt each belongs to."""
    assert result.features is not None  # `evaluate_models` keeps them where there is a reference
    prompts, seeds, width = result.features.shape
    units = np.unique(result.scores.prompts, return_inverse=True)[1]
    return result.features.reshape(prompts * seeds, width).astype(float), np.repeat(units, seeds)
