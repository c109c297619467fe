"""What a loaded model says about itself."""

from __future__ import annotations

from varco_runtime import Varco, __version__
from varco_runtime.bundle.opening import digest_of
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.picture.packing import largest_picture, num_image_tokens
from varco_serve.messages import Facts

_RESERVED_TOKENS, _RESERVED_SHARE = 256, 1 / 8
"""Of the context, for the question and a short answer, when it is said which picture fits: the fewer of both."""


def facts_of(varco: Varco) -> Facts:
    """Return the facts of a loaded model."""
    manifest = varco.bundle.manifest
    max_context = varco.backend.max_context
    _, largest = largest_picture(manifest.image)
    for_pictures = max_context - min(_RESERVED_TOKENS, int(max_context * _RESERVED_SHARE))
    components = {name: component.precision for name, component in manifest.components.items()}
    return Facts(
        max_context=max_context,
        slots=varco.slots,
        max_images=manifest.media_facts.max_images,
        largest_picture_tokens=largest,
        details={
            "model": manifest.model.name,
            "version": __version__,
            "bundle": {
                "device": manifest.device,
                "format_version": manifest.format_version,
                "digest": digest_of(manifest),
            },
            "precision": components,
            "provider": varco.provider,
            "slots": {"number": varco.slots, "why": varco.slots_line},
            "cache_bytes": varco.kv_bytes_per_token * max_context * varco.slots,
            "largest_picture_fits": largest <= for_pictures,
            "largest_fitting_picture": _fitting(manifest.image, for_pictures),
            "license": manifest.license,
            "load_s": round(varco.load_s, 3),
        },
    )


def _fitting(settings: ImageSettings, num_tokens: int) -> dict[str, int] | None:
    """Return the largest grid of tiles, in pixels, whose image tokens are at most `num_tokens`; None where none is."""
    sizes = [
        (num_image_tokens((height, width), settings), height * width, height, width)
        for height, width in settings.grid_pinpoints
    ]
    fitting = [size for size in sizes if size[0] <= num_tokens]
    if not fitting:
        return None
    tokens, _, height, width = max(fitting)
    return {"width": width, "height": height, "tokens": tokens}
