"""Serve a GGUF file with llama.cpp in this process: PORT is printed when it answers.

python llama_server.py [--exact] BASE.gguf [ADAPTER.gguf]

--exact computes attention in float32, as `llama-server --cache-type-k f32 --cache-type-v f32
--flash-attn off` does; without it, keys and values are rounded to 16 bits.
"""

from __future__ import annotations

import sys
import time

import xllamacpp  # pyright: ignore[reportMissingImports]


def main() -> None:
    exact = sys.argv[1] == "--exact"
    base, *adapters = sys.argv[2 if exact else 1 :]
    parameters = xllamacpp.CommonParams()
    parameters.model.path = base
    parameters.n_ctx, parameters.n_parallel, parameters.port = 512, 1, 0
    parameters.cpuparams.n_threads = 1
    parameters.warmup = False
    if exact:
        float32 = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.cache_type_k = parameters.cache_type_v = float32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in adapters]
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
