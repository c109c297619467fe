"""`varco doctor`: what this machine offers, what is installed, what is missing. Imports onnxruntime and openvino."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass

from varco_cli.arguments import JsonOption
from varco_cli.console import one_line, print_facts, size_text, write, write_document
from varco_runtime import __version__
from varco_runtime.errors import BrokenExtraError, MissingExtraError, first_line
from varco_runtime.extras import install_command, reinstall_command, required_packages
from varco_runtime.system.libraries import import_onnxruntime
from varco_runtime.system.memory import machine_memory
from varco_runtime.system.processor import cpu_name, nvidia_devices, usable_cores

PACKAGES = (
    *("numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "onnx", "ml_dtypes", "huggingface_hub"),
    "openvino",
    *("tensorrt", "tensorrt-rtx-cu13-bindings", "cuda-bindings", "torch", "transformers", "av"),
    *("starlette", "uvicorn", "prometheus-client", "llguidance"),
)
EXTRAS = {
    "cpu": "running a bundle on a CPU",
    "export": "varco export",
    "cuda": "instead of cpu: running a bundle on an NVIDIA GPU through ONNX Runtime",
    "tensorrt": "building and running TensorRT engines on RTX GPUs",
    "openvino": "running a bundle for the CPU on OpenVINO: varco run --provider openvino",
    "quantize": "varco quantize",
    "video": "questions about video files",
    "serve": "varco serve",
}
_CUDA_PYTHON = "cuda-python"


@dataclass(frozen=True, slots=True)
class Report:
    """Everything `doctor` says. Sizes in bytes; a version is None where the package is not installed."""

    versions: dict[str, str | None]
    platform: str
    cpu: str
    num_cores: int
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    gpus: list[str]
    cuda: str
    tensorrt: list[str]
    openvino: list[str]
    providers: list[str]
    missing_extras: dict[str, str]
    cache_folder: str
    warnings: list[str]


def doctor(as_json: JsonOption = False) -> None:
    """Show versions, devices and memory, and what is missing."""
    report = examine()
    if as_json:
        write_document(json.dumps(asdict(report), indent=2, ensure_ascii=False))
    else:
        _print(report)


def examine() -> Report:
    """Look at this machine and installation."""
    from varco_runtime.system.cache_folder import cache_folder

    versions: dict[str, str | None] = {"python": platform.python_version(), "varco-edge": __version__}
    versions |= {name: _version(name) for name in PACKAGES}
    warnings: list[str] = []
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files. Uninstall both, then "
            f"install one, for a CPU with: {reinstall_command('cpu')}"
        )
    if (cache := _cache_warning()) is not None:
        warnings.append(cache)
    providers, fault = _providers()
    openvino, openvino_fault = _openvino()
    warnings += [text for text in (fault, openvino_fault) if text]
    total, available = machine_memory()
    return Report(
        versions=versions,
        platform=platform.platform(),
        cpu=cpu_name(),
        num_cores=usable_cores(),
        memory_total_bytes=total,
        memory_available_bytes=available,
        gpus=_gpus(),
        cuda=_cuda(providers),
        tensorrt=_tensorrt(),
        openvino=openvino,
        providers=providers,
        missing_extras=_missing_extras(versions),
        cache_folder=str(cache_folder()),
        warnings=warnings,
    )


def _cache_warning() -> str | None:
    """Return why nothing in the cache folder is used, or None if it is used."""
    from varco_runtime.system.cache_folder import cache_fault

    fault = cache_fault()
    return None if fault is None else f"{fault} Nothing in it is used, so that loading takes longer."


def _print(report: Report) -> None:
    print_facts("Versions", [(name, version) for name, version in report.versions.items() if version])
    memory = "unknown"
    if report.memory_total_bytes is not None:
        memory = size_text(report.memory_total_bytes)
        if report.memory_available_bytes is not None:
            memory += f", {size_text(report.memory_available_bytes)} available"
    print_facts(
        "\nMachine",
        [
            ("system", report.platform),
            ("processor", f"{report.cpu}, {report.num_cores} core{'s' if report.num_cores > 1 else ''} usable"),
            ("memory", memory),
            ("GPUs", "; ".join(report.gpus) or "none found"),
            ("bundles for CUDA", report.cuda),
            ("bundles for TensorRT", ", ".join(report.tensorrt) or "neither TensorRT nor cuda-python is installed"),
            ("OpenVINO runs on", ", ".join(report.openvino) or "nothing: openvino is not installed, or not usable"),
            ("onnxruntime runs on", ", ".join(report.providers) or "nothing: onnxruntime is not usable"),
            ("cache folder", report.cache_folder),
        ],
    )
    if report.missing_extras:
        write("\nNot installed\n")
        for extra, command in report.missing_extras.items():  # no table, so that a command can be copied whole
            write(f"{extra}, {EXTRAS[extra]}:\n    {command}\n")
    write("\n")
    for warning in report.warnings:
        write(f"WARNING: {one_line(warning)}\n")
    if not report.warnings:
        write(f"{_readiness(report)}\n")


def _readiness(report: Report) -> str:
    """Return what this environment can do with bundles, or how it learns to run them, as one sentence."""
    if report.providers:
        return "Ready to run bundles."
    if _CUDA_PYTHON in report.tensorrt and len(report.tensorrt) > 1:
        return f"Ready to run bundles for TensorRT. Those for a CPU need: {install_command('cpu')}"
    if report.tensorrt and report.tensorrt != [_CUDA_PYTHON]:
        return f"Ready to build engines. Running them needs cuda-python: {install_command('tensorrt')}"
    return f"Bundles need an extra above. To run them on a CPU: {install_command('cpu')}"


def _version(name: str) -> str | None:
    import importlib.metadata  # 13 ms, which every other command would wait for

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lacks(extra: str) -> bool:
    """Return whether a package that the extra names in this distribution's metadata is not installed."""
    names = [re.match(r"[\w.-]+", requirement) for requirement in required_packages(extra)]
    return any(name is not None and _version(name[0]) is None for name in names)


def _missing_extras(versions: dict[str, str | None]) -> dict[str, str]:
    """Return each extra that lacks a package, and the command that installs it without breaking another."""
    missing = {extra: install_command(extra) for extra in EXTRAS if _lacks(extra)}
    if versions["onnxruntime-gpu"]:  # it runs bundles on a CPU too, and shares onnxruntime's folder
        missing.pop("cpu", None)
    elif versions["onnxruntime"] and "cuda" in missing:
        missing["cuda"] = reinstall_command("cuda")
    return missing


def _providers() -> tuple[list[str], str | None]:
    """Return what the installed onnxruntime runs on, and what is wrong with it or None."""
    try:
        onnxruntime = import_onnxruntime("Running a bundle")
    except BrokenExtraError as error:
        return [], str(error)
    except MissingExtraError:
        if _version("onnxruntime") or _version("onnxruntime-gpu"):
            return [], "onnxruntime is installed but cannot be imported (its files are gone). Install it again."
        return [], None
    names = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return [name for name in names if name != "Azure"], None  # Azure is a client of a remote service


def _openvino() -> tuple[list[str], str | None]:
    """Return the devices that the installed OpenVINO finds, and what is wrong with it or None."""
    from varco_runtime.backends.openvino.network import available_devices, import_openvino

    try:
        return available_devices(import_openvino("Running a bundle on OpenVINO")), None
    except BrokenExtraError as error:
        return [], str(error)
    except MissingExtraError:
        return [], None
    except RuntimeError as error:  # openvino's own, as of a plugin whose file is gone
        return [], f"OpenVINO is installed but cannot be used: {first_line(error)}. Install it again."


def _gpus() -> list[str]:
    """Return NVIDIA devices as nvidia-smi names them, or as the driver does."""
    if program := shutil.which("nvidia-smi"):
        query = "--query-gpu=name,memory.total,compute_cap,driver_version"
        try:
            done = subprocess.run(
                [program, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=True
            )
            return [_gpu_text(line) for line in done.stdout.splitlines() if line.strip()]
        except (OSError, subprocess.SubprocessError):
            pass
    return nvidia_devices()


def _cuda(providers: list[str]) -> str:
    """Return what a bundle for CUDA finds here (driver, GPU and onnxruntime), or the first of them that is missing."""
    from varco_runtime.backends.cuda.driver import find_gpu
    from varco_runtime.backends.cuda.library import check_gpu
    from varco_runtime.errors import BackendError

    try:
        gpu = find_gpu()
    except BackendError as error:
        return str(error)
    if "CUDA" not in providers:
        return f"{gpu.name} is there, onnxruntime-gpu is not: {reinstall_command('cuda')}"
    try:
        check_gpu(gpu)
    except BackendError as error:
        return str(error)
    free = f"{size_text(gpu.free_bytes)} of {size_text(gpu.total_bytes)} free"
    return f"{gpu.name}, {gpu.target}, {free}; libraries are tried when a bundle is loaded"


def _tensorrt() -> list[str]:
    """Return what running bundles of TensorRT engines needs, as far as it is installed; nothing of it is imported."""
    modules = {
        "TensorRT for RTX": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        "TensorRT": ("tensorrt",),
        _CUDA_PYTHON: ("cuda.bindings",),
    }
    return [name for name, ways in modules.items() if any(map(_is_there, ways))]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing, or is no ordinary module
        return False


def _gpu_text(line: str) -> str:
    name, memory, capability, driver = (field.strip() for field in (line + ",,,").split(",")[:4])
    return f"{name} ({memory}, compute capability {capability}, driver {driver})"
