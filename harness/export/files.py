"""Networks as files for other runtimes: ONNX, torch.export and OpenVINO, each checked before it is there."""

import hashlib
import importlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

from harness.core.errors import UserError, describe_error, unknown_name
from harness.core.files import atomic_path, require_folder_place
from harness.export.documents import ParityRecord
from harness.export.parity import check_parity
from harness.export.program import export_program
from harness.models import SRNetwork
from harness.models.onnx_export import build_onnx, inline_functions

FileFormat = Literal["onnx", "pt2", "openvino"]
FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
_SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml"}


def check_format(name: str, path: Path) -> FileFormat:
    """Return the format if it is known and the file's name fits; else raise `UserError`."""
    for known in FORMATS:
        if known == name:
            if path.suffix != _SUFFIXES[name]:
                raise UserError(f"--out {path}: a file of --format {name} is called FILE{_SUFFIXES[name]}")
            return known
    raise unknown_name("format", name, FORMATS)


def export_file(
    network: SRNetwork,
    path: Path,
    file_format: FileFormat,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> ParityRecord:
    """Write a network, under its routing, to a file for another runtime; return how they compare on real images.

    `size` = (height, width) and `batch`: the only ones that the file is to take, None: any. `openvino` writes FILE.xml
    and FILE.bin. Nothing is written, and `UserError` raised, where a package is missing or the file is not what the
    network is.
    """
    require_folder_place("--out", path.parent)
    if file_format == "pt2":
        return export_program(network, path, size=size, batch=batch)
    model = build_onnx(network, size=size, batch=batch)
    if file_format == "onnx":
        content: bytes = model.SerializeToString()
        record = check_parity(network, content)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        return record
    record = check_parity(network, model, runtime="openvino")
    _write_openvino(model, path)
    return record.model_copy(
        update={
            "kind": "openvino",
            "opset": None,
            "nodes": None,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    )


def _write_openvino(model: Any, path: Path) -> None:
    """Write OpenVINO's own format, in float32: FILE.xml and, beside it, FILE.bin."""
    openvino = importlib.import_module("openvino")
    with (
        tempfile.TemporaryDirectory() as folder,
        atomic_path(path) as description,
        atomic_path(path.with_suffix(".bin")) as weights,
    ):
        source, made = Path(folder) / "model.onnx", Path(folder) / "model.xml"
        source.write_bytes(inline_functions(model).SerializeToString())
        try:
            openvino.save_model(openvino.convert_model(str(source)), str(made), compress_to_fp16=False)
        except Exception as error:  # OpenVINO's have no common base
            raise UserError(f"OpenVINO cannot convert the ONNX file: {describe_error(error)}") from None
        shutil.copyfile(made, description)
        shutil.copyfile(made.with_suffix(".bin"), weights)
