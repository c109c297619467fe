"""llama.cpp through llama-cpp-python's low-level API, with GGUF files written here.

Weights are Q4_0 by the `gguf` package (4 bits, an fp16 scale per 32). The embedding table is also the head, so its
format is that of the head: Q4_0 or Q8_0. Tensor names and metadata keys: gguf.constants, architecture `qwen2`.

It runs with flash attention and weights repacked for the processor's instructions. Some builds die of that (status -11,
in the buffers for AMX), so a process of its own tries it first, and whoever dies runs without.

    python -m benchmarks.peer.llama_cpp FILE THREADS REPACKED    what that process does; REPACKED is 0 or 1
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer.protocol import Array, Peer, serve

CHUNK = 512  # llama.cpp's own default micro-batch
HEADS = {"q4-head4": "Q4_0", "q4-head8": "Q8_0", "fp32": "F32"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class LlamaCpp(Peer):
    """Variants `q4-head4` and `q4-head8`; `fp32` to check the file against the reference."""

    packages = ("llama-cpp-python", "gguf")

    def prepare(self, material: Path, variant: str) -> None:
        path, head = _path(material, variant), HEADS[variant]
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            partial = path.with_suffix(".partial")
            write_gguf(material / "text", partial, "F32" if head == "F32" else "Q4_0", head)
            partial.rename(path)

    def load(self, material: Path, variant: str, max_context: int, threads: int) -> None:
        path = _path(material, variant)
        self.open(path, max_context, threads, is_repacked=runs_repacked(path, threads))

    def open(self, path: Path, max_context: int, threads: int, is_repacked: bool) -> None:
        """Load the file at `path`."""
        import llama_cpp

        self._lib: Any = llama_cpp
        self._file, self._is_repacked = path, is_repacked
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.use_extra_bufts = is_repacked
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {self._file.name}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = max_context, max_context, CHUNK
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._one = (llama_cpp.llama_token * 1)()

    @property
    def model_bytes(self) -> int:
        return self._file.stat().st_size

    def settings(self) -> dict[str, Any]:
        return {"flash_attn_type": "enabled", "use_extra_bufts": self._is_repacked}

    def prefill(self, ids: Array) -> Array:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)
        tokens = (self._lib.llama_token * len(ids))(*ids.tolist())
        return self._decode(tokens, len(ids))

    def step(self) -> int:
        token = int(self._logits.argmax())
        self._one[0] = token
        self._decode(self._one, 1)
        return token

    def _decode(self, tokens: Any, count: int) -> Array:
        # llama_batch_get_one asks for the last token's logits alone.
        status = self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(tokens, count))
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        pointer = self._lib.llama_get_logits_ith(self._context, -1)
        self._logits: Array = np.ctypeslib.as_array(pointer, shape=(self._vocab_size,))
        return self._logits


def runs_repacked(path: Path, threads: int, python: str = sys.executable) -> bool:
    """Whether a prefill and a step with repacked weights come through, in a process that may die of them."""
    command = [python, "-m", "benchmarks.peer.llama_cpp", str(path), str(threads), "1"]
    status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if status:
        print(f"llama.cpp with use_extra_bufts ended with status {status}: it runs without.", file=sys.stderr)
    return not status


def _try(path: Path, threads: int, is_repacked: bool) -> int:
    peer = LlamaCpp()
    peer.open(path, 2 * CHUNK, threads, is_repacked)
    peer.prefill(np.arange(CHUNK) % 256)
    peer.step()
    return 0


def _path(material: Path, variant: str) -> Path:
    return material / "llama_cpp" / f"{variant}.gguf"


def write_gguf(source: Path, target: Path, weights: str, head: str, has_text: bool = False) -> None:
    """Write the Qwen2 checkpoint `source` as GGUF: matrices in `weights`, the embedding in `head`, the rest fp32.

    Args:
        source: The checkpoint's folder.
        target: The file to write.
        weights: What llama.cpp calls the format of matrices.
        head: The same of the embedding, which is also the head.
        has_text: Whether the checkpoint's tokenizer goes along, for who asks in words and not in ids.
    """
    import gguf

    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type({"F32": gguf.LlamaFileType.ALL_F32}.get(weights, gguf.LlamaFileType.MOSTLY_Q4_0))
    if has_text:
        _add_tokenizer(writer, config["vocab_size"], json.loads((source / "tokenizer.json").read_text("utf-8")))
    else:
        _add_vocabulary(writer, config["vocab_size"])
    for name, values in _tensors(source / "model.safetensors"):
        kind = head if name == "token_embd.weight" else weights if values.ndim == 2 else "F32"
        quantisation = gguf.GGMLQuantizationType[kind]
        data = values if kind == "F32" else gguf.quants.quantize(values, quantisation)
        writer.add_tensor(name, data, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, size: int) -> None:
    """Placeholder tokens: the ids are given as numbers, but llama.cpp takes the vocabulary's size from this list."""
    import gguf

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"<{i}>" for i in range(size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(["< 0", "< 1"])
    writer.add_eos_token_id(size - 1)


def _add_tokenizer(writer: Any, size: int, tokenizer: dict[str, Any]) -> None:
    """The tokens and merges of a byte-level BPE; ids that it does not use become placeholders."""
    import gguf

    added = {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    names = {number: name for name, number in tokenizer["model"]["vocab"].items()} | added
    ids = {name: number for number, name in names.items()}
    kinds = [
        gguf.TokenType.CONTROL if i in added else gguf.TokenType.NORMAL if i in names else gguf.TokenType.UNUSED
        for i in range(size)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([names.get(i, f"[unused {i}]") for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_add_bos_token(False)


def _tensors(path: Path) -> Any:
    """GGUF names and fp32 values of a bf16 checkpoint's tensors."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    size = int(raw[:8].view(np.uint64)[0])
    header = json.loads(raw[8 : 8 + size].tobytes())
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        bits = np.frombuffer(raw[start:end].tobytes(), dtype=np.uint16).astype(np.uint32) << 16
        yield _gguf_name(name), bits.view(np.float32).reshape(entry["shape"])


def _gguf_name(name: str) -> str:
    stem, _, kind = name.removeprefix("model.").rpartition(".")
    if not stem.startswith("layers."):
        return {"embed_tokens": "token_embd", "norm": "output_norm"}[stem] + f".{kind}"
    _, layer, rest = stem.split(".", 2)
    return f"blk.{layer}.{LAYER_NAMES[rest]}.{kind}"


if __name__ == "__main__":
    if len(sys.argv) == 4:
        sys.exit(_try(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"))
    sys.exit(serve(LlamaCpp()))
