"""What is no layer: vision tower, projector, newline, embedding, last norm; and the index of all shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.quantize.layer import layer_name
from varco_export.quantize.run import Run
from varco_export.quantize.shard import Stored, read_sizes, write_shard
from varco_export.quantize.work import Work
from varco_export.reading.names import canonical_name, disk_name
from varco_export.reading.shards import read_shards
from varco_export.reading.tensor import SAFETENSORS_DTYPES, Tensor
from varco_export.writing.json_file import write_json

HEAD = "lm_head.weight"
_TOWER = ("vision_tower.", "multi_modal_projector.", "image_newline")


def copy_the_rest(run: Run, work: Work, head: Mapping[str, Stored] | None) -> None:
    """Copy vision tower, projector and newline to one shard; embedding, final norm and head to the last.

    Args:
        run: The run.
        work: Where to.
        head: The head's tensors by canonical name; None for the checkpoint's own.
    """
    layers = tuple(f"{layer_name(index)}." for index in range(run.num_layers))
    rest = [tensor for name, tensor in run.checkpoint.tensors.items() if not name.startswith(layers)]
    rest += _unused_tensors(run.checkpoint)
    tower = [tensor for tensor in rest if tensor.name.startswith(_TOWER)]
    text = [tensor for tensor in rest if not tensor.name.startswith(_TOWER) and not (head and tensor.name == HEAD)]
    with run.progress.stage("the rest", 2) as advance:
        for number, tensors in ((run.num_layers + 1, tower), (run.num_layers + 2, text)):
            if not work.shard(number).exists():
                named = {tensor.name: Stored.of_checkpoint(tensor) for tensor in tensors}
                named |= (head or {}) if tensors is text else {}
                write_shard(work.shard(number), {disk_name(name, "hf_old"): one for name, one in named.items()})
            advance()


def write_index(work: Work) -> int:
    """Write model.safetensors.index.json and return the bytes of all tensors."""
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number in range(1, work.num_shards + 1):
        sizes = read_sizes(work.shard(number))
        weight_map |= dict.fromkeys(sizes, work.shard(number).name)
        total_bytes += sum(sizes.values())
    write_json(
        work.checkpoint / "model.safetensors.index.json",
        {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))},
    )
    return total_bytes


def _unused_tensors(checkpoint: Checkpoint) -> Sequence[Tensor]:
    """Return tensors that nothing is computed from and that transformers looks for all the same.

    Buffers and a head that is tied are left out, and so is, coming from LLaVA-NeXT, what only its classes hold.
    """
    wanted = ("vision_tower.",) if checkpoint.config.family == "hf" else ("vision_tower.post_layernorm.",)
    found: list[Tensor] = []
    for entries in read_shards(checkpoint.folder).values():
        for entry in entries:
            name = canonical_name(entry.disk_name)
            if name in checkpoint.skipped and name.startswith(wanted) and not name.endswith("position_ids"):
                dtype = SAFETENSORS_DTYPES[entry.dtype]
                found.append(Tensor(name, dtype, entry.shape, entry.path, entry.offset))
    return found
