"""The weights of a quantised GGUF file in float32, so that the server rounds nothing."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def unquantised(quantised: Path, out: Path) -> Path:
    """Write all tensors of a GGUF file in float32; everything that it says of the model stays.

    Args:
        quantised: The file.
        out: Where to write.
    """
    source = gguf.GGUFReader(quantised)
    said = dict(source.fields)
    architecture = said.pop("general.architecture").contents()
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in said.items():
        if name.startswith("GGUF.") or name == "general.file_type":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in source.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
