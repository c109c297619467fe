"""`varco inspect`: what a bundle holds and costs, without hashing its large files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varco_cli.arguments import BundleArgument, JsonOption, KvCacheOption, OpenVinoDeviceOption, PrecisionOption
from varco_cli.console import count_text, note, print_facts, print_table, size_text, write, write_document
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.errors import UsageError

if TYPE_CHECKING:
    from varco_runtime.bundle.manifest import Manifest
    from varco_runtime.bundle.opening import Bundle

_NON_COMMERCIAL = ("-nc", "noncommercial", "research")


def inspect(
    bundle: BundleArgument,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Show instead which kernel each node gets on this device.")
    ] = False,
    provider: Annotated[
        str, typer.Option(metavar="auto|openvino", help="Whose kernels --kernels shows; auto: ONNX Runtime's.")
    ] = "auto",
    openvino_device: OpenVinoDeviceOption = "auto",
    precision: PrecisionOption = "auto",
    kv_cache_precision: KvCacheOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle holds: licence, networks, precisions, memory, picture and prompt settings."""
    from varco_runtime.bundle.opening import Bundle

    if provider not in ("auto", "openvino"):
        raise UsageError(f"--provider {provider!r} is unknown here. Expected auto or openvino.")
    openvino = OpenVinoSettings(openvino_device, precision, kv_cache_precision)
    if (openvino != OpenVinoSettings() and provider != "openvino") or (provider == "openvino" and not kernels):
        raise UsageError("OpenVINO's kernels are shown by --kernels --provider openvino. Give both, or neither.")
    opened = Bundle.read(bundle)
    manifest = opened.manifest
    if kernels and provider == "openvino":
        _show_openvino_layers(opened, openvino, as_json)
        return
    if kernels:
        _show_kernels(opened, as_json)
        return
    end_tokens, tasks = _end_tokens(opened), _probe_tasks(opened)
    if as_json:
        write_document(json.dumps(document(manifest, end_tokens, tasks), indent=2, ensure_ascii=False))
    else:
        _print(bundle, manifest, end_tokens, tasks)


def _show_kernels(bundle: Bundle, as_json: bool) -> None:
    """Print each kind of node and its kernels. The graphs are checked before they are parsed."""
    from varco_runtime.backends.kernels import kernel_uses

    manifest = bundle.manifest
    bundle.check((part.file for part in manifest.components.values()), full=True)
    device, capability = _kernel_device(manifest)
    with bundle.unchanged():
        uses = kernel_uses(bundle.folder, manifest, capability)
    basis = (
        "the provider's documented conditions and its dispatch, not observed on a GPU"
        if capability
        else "what the provider has"
    )
    if as_json:
        rows = [dataclasses.asdict(use) for use in uses]
        write_document(json.dumps({"device": device, "basis": basis, "kernels": rows}, indent=2, ensure_ascii=False))
        return
    write(f"Kernels on {device}, by {basis}\n")
    for network in dict.fromkeys(use.network for use in uses):
        of_network = [use for use in uses if use.network == network]
        kernels: list[tuple[str, ...]] = [(use.one_row, use.many_rows) for use in of_network]
        header: tuple[str, ...] = ("one row", "many rows")
        if all(one == many for one, many in kernels):
            header, kernels = ("kernel",), [(one,) for one, _ in kernels]
        cells = [
            (use.operator, use.shape, str(use.nodes), *names) for use, names in zip(of_network, kernels, strict=True)
        ]
        print_table(f"\n{network}", ("operator", "shape", "nodes", *header), cells, right=(2,))


def _show_openvino_layers(bundle: Bundle, settings: OpenVinoSettings, as_json: bool) -> None:
    """Print what OpenVINO fused, in which types. The bundle is checked in full before it is compiled."""
    from varco_runtime.backends.openvino.backend import check_networks
    from varco_runtime.backends.openvino.runtime_model import runtime_layers
    from varco_runtime.system.processor import usable_cores

    check_networks(bundle)
    bundle.check((name for name in bundle.manifest.files), full=True)
    with bundle.unchanged():
        layers = runtime_layers(bundle, settings, usable_cores())
    device, basis = f"OpenVINO's {settings.chosen_device}", "what its plugin has compiled"
    if as_json:
        rows = [dataclasses.asdict(layer) for layer in layers]
        write_document(json.dumps({"device": device, "basis": basis, "kernels": rows}, indent=2, ensure_ascii=False))
        return
    write(f"Kernels on {device}, by {basis}\n")
    for network in dict.fromkeys(layer.network for layer in layers):
        cells = [
            (layer.operator, layer.kernel, layer.precision, str(layer.nodes))
            for layer in layers
            if layer.network == network
        ]
        print_table(f"\n{network}", ("operator", "kernel", "type", "nodes"), cells, right=(3,))


def _kernel_device(manifest: Manifest) -> tuple[str, tuple[int, int] | None]:
    """Return what the bundle runs on here and its compute capability, which is None for the CPU."""
    from varco_runtime.backends.cuda.driver import find_gpu
    from varco_runtime.backends.cuda.library import check_capability
    from varco_runtime.errors import BackendError

    if manifest.device != "cuda":
        return "the CPU", None
    try:
        gpu = find_gpu()
    except BackendError:
        return "compute capability 9.0 (H100, H200), as no GPU was found", (9, 0)
    try:
        check_capability(gpu, manifest)
    except BackendError as error:
        note(f"It would not be loaded here. {error}")
    return f"{gpu.name} ({gpu.target})", gpu.capability


def document(manifest: Manifest, end_tokens: list[str], probe_tasks: list[str]) -> dict[str, Any]:
    """Return the manifest and what follows from it as a JSON document.

    Args:
        manifest: What bundle.json says.
        end_tokens: The texts of the tokens that end an answer.
        probe_tasks: The task of each acceptance probe.

    Returns:
        The manifest's fields and more: `bytes_per_token` is what one decode step reads, without the cache.
    """
    return {
        **dataclasses.asdict(manifest),
        "derived": {
            "bundle_bytes": _bundle_bytes(manifest),
            "bytes_per_token": manifest.decoder.weight_bytes,
            "kv_bytes_per_token": manifest.kv_bytes_per_token,
            "kv_bytes_max_context": manifest.kv_bytes_per_token * manifest.max_context,
            "end_tokens": end_tokens,
            "probe_tasks": probe_tasks,
            "large_files_hashed": False,
        },
    }


def _end_tokens(bundle: Bundle) -> list[str]:
    """Return the texts of the tokens that end an answer."""
    from varco_runtime.prompt.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_json(_checked_text(bundle, bundle.manifest.tokenizer))
    return [tokenizer.decode([token]) for token in bundle.manifest.generation.eos_token_ids]


def _probe_tasks(bundle: Bundle) -> list[str]:
    """Return the task of each acceptance probe; none where the bundle has no probes."""
    from varco_runtime.probes.replay import probe_tasks

    probes = bundle.manifest.probes
    return [] if probes is None else probe_tasks(_checked_text(bundle, probes))


def _checked_text(bundle: Bundle, name: str) -> str:
    """Return the text of a small file, which is hashed first."""
    bundle.check([name], full=True)
    return bundle.text(name)


def _print(bundle: Path, manifest: Manifest, end_tokens: list[str], probe_tasks: list[str]) -> None:
    print_facts(str(bundle), [*_overview(manifest), ("acceptance probes", _probes(manifest, probe_tasks))])
    print_table(
        "\nNetworks", ("", "weights", "computes in", "read per pass", "on disk"), _networks(manifest), right=(3, 4)
    )
    if manifest.engines:
        header = ("", "target", "built by", "weights", "takes", "on disk")
        print_table("\nEngines", header, _engines(manifest), right=(5,))
    print_facts("\nLanguage model", _language_model(manifest))
    print_facts("\nPictures", _pictures(manifest))
    print_facts("\nPrompts and answers", _answers(manifest, end_tokens))
    provenance = sorted(manifest.provenance.items())
    print_facts("\nProvenance", [(name, _provenance_text(value)) for name, value in provenance])
    checked = "manifest and tokenizer" if manifest.probes is None else "manifest, tokenizer and probes"
    write(f"\nChecked here: {checked}; varco verify hashes every file.\n")


def _overview(manifest: Manifest) -> list[tuple[str, str]]:
    model = manifest.model
    return [
        ("licence of the weights", license_text(manifest.license)),
        ("model", f"{model.name}, {count_text(model.num_parameters)} parameters"),
        ("size", f"{size_text(_bundle_bytes(manifest))} in {len(manifest.files) + 1} files"),
        ("for", f"{manifest.device} (bundle format {manifest.format_version})"),
    ]


def _probes(manifest: Manifest, tasks: list[str]) -> str:
    if manifest.probes is None:
        return "none; varco probe CHECKPOINT BUNDLE puts some in"
    size = size_text(manifest.files[manifest.probes].size)
    return f"{len(tasks)} ({', '.join(tasks)}), {size}; varco verify --numerics asks them"


def _networks(manifest: Manifest) -> list[tuple[str, ...]]:
    """Return one row per network; one token reads one row of the embedding table."""
    from varco_runtime.dtypes import ITEM_BYTES

    rows: list[tuple[str, ...]] = []
    for name, part in manifest.components.items():
        on_disk = size_text(_file_bytes(manifest, part.file, part.data))
        rows.append((name, part.precision, part.compute, size_text(part.weight_bytes), on_disk))
    table = manifest.embedding
    if table is None:
        return rows
    row_bytes = table.width * ITEM_BYTES[table.dtype]
    if table.head_rows is not None:
        row_bytes = sum(table.head_rows.row_bytes(table.width, ITEM_BYTES[manifest.decoder.compute]))
        return [*rows, ("embedding table", "int8, the decoder's output head", "", size_text(row_bytes), "")]
    on_disk = size_text(_file_bytes(manifest, table.file))
    return [*rows, ("embedding table", table.dtype, "", size_text(row_bytes), on_disk)]


def _engines(manifest: Manifest) -> list[tuple[str, ...]]:
    """Return one row per TensorRT engine: what built it, for which device, and how far it reaches."""
    reach = {
        "vision": "{0.max_tiles} tiles at a time",
        "projector": "{0.max_tiles} tiles at a time",
        "packing": "{0.max_tiles} tiles of a picture",
        "embedding": "{0.prefill_tokens:,} tokens at a time",
        "decoder": "{0.max_context:,} tokens, {0.prefill_tokens:,} at a time",
    }
    return [
        (
            engine.file,
            engine.target,
            f"{engine.builder} {engine.builder_version}",
            engine.precision,
            reach[engine.component].format(engine),
            size_text(manifest.files[engine.file].size),
        )
        for engine in manifest.engines
    ]


def _language_model(manifest: Manifest) -> list[tuple[str, str]]:
    model, per_token, context = manifest.model, manifest.kv_bytes_per_token, manifest.max_context
    heads = f"{model.num_attention_heads} over {model.num_key_value_heads} key/value heads of {model.head_dim}"
    full = size_text(per_token * context)
    return [
        ("layers", f"{model.num_layers} of width {model.hidden_size:,}, vocabulary {model.vocab_size:,}"),
        ("heads", heads),
        ("read per token", f"{size_text(manifest.decoder.weight_bytes)} of weights, and the cache so far"),
        ("key/value cache", f"{size_text(per_token)} per token, {full} at {context:,} tokens"),
        ("longest context", f"{context:,} tokens of prompt, picture and answer"),
    ]


def _pictures(manifest: Manifest) -> list[tuple[str, str]]:
    image, model = manifest.image, manifest.model
    sides = [(height // image.tile_px, width // image.tile_px) for height, width in image.grid_pinpoints]
    rows, columns = max(side[0] for side in sides), max(side[1] for side in sides)
    shrunk = "never shrunk" if image.max_grid_tiles is None else f"shrunk beyond {image.max_grid_tiles} tiles' worth"
    patches = f"{image.patches_per_side}x{image.patches_per_side} patches of {image.patch_px} px"
    facts = manifest.media_facts
    video = f"no: {facts.no_video}" if facts.video_token is None else f"{facts.video_token} (id {facts.video_token_id})"
    long_side = image.ocr_long_side_px
    scaled = [] if long_side is None else [("scaled up for OCR", f"to a long side of {long_side:,} px")]
    return [
        *scaled,
        ("tiles", f"{image.tile_px} px, {patches}"),
        ("grids", f"{len(sides)}, up to {rows} rows and {columns} columns of tiles; {shrunk}"),
        ("vision tower", f"{model.vision_layers} layers of width {model.vision_hidden_size:,}"),
        ("normalised with", f"mean {_numbers(image.mean)}, std {_numbers(image.std)}"),
        ("of a conversation", "as many as fit" if facts.max_images is None else f"{facts.max_images}"),
        ("videos", video),
    ]


def _answers(manifest: Manifest, end_tokens: list[str]) -> list[tuple[str, str]]:
    prompt, generation = manifest.prompt, manifest.generation
    ends = zip(end_tokens, generation.eos_token_ids, strict=True)
    counted = "prompt and answer" if generation.penalise_prompt else "the answer alone"
    penalty = "none" if generation.repetition_penalty == 1 else f"{generation.repetition_penalty:g}, over {counted}"
    suggested = ", ".join(f"{name} {value:g}" for name, value in generation.suggested)
    return [
        ("picture's place", f"{prompt.image_token} (id {prompt.image_token_id})"),
        ("markup tokens", " ".join(prompt.markup_tokens) or "none"),
        ("end tokens", ", ".join(f"{text} ({id_})" for text, id_ in ends)),
        ("repetition penalty", penalty),
        ("suggested sampling", f"{suggested} (not applied unless asked)" if suggested else "none"),
    ]


def _bundle_bytes(manifest: Manifest) -> int:
    return sum(facts.size for facts in manifest.files.values())


def _file_bytes(manifest: Manifest, *names: str) -> int:
    return sum(manifest.files[name].size for name in names)


def license_text(license_: str) -> str:
    """Return what the licence of the weights means for the bundle."""
    if license_ == "unknown":
        return "unknown: the checkpoint names none. Ask its publisher before you use or share the bundle."
    if any(word in license_.lower() for word in _NON_COMMERCIAL):
        return f"{license_}: non-commercial use only, of the bundle too"
    return f"{license_}, of the bundle too"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _provenance_text(value: object) -> str:
    if isinstance(value, str) or value is None:
        return value or "none"
    if isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
        sizes = [(str(item["name"]), item.get("size")) for item in value]
        return (
            ", ".join(f"{name} ({size_text(size)})" if isinstance(size, int) else name for name, size in sizes)
            or "none"
        )
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return json.dumps(value, ensure_ascii=False)
