"""Serve a GGUF file with llama.cpp in this process: PORT is printed when it answers.

python llama_server.py BASE.gguf [ADAPTER.gguf]
"""

from __future__ import annotations

import sys
import time

import xllamacpp  # pyright: ignore[reportMissingImports]


def main() -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.n_ctx, parameters.n_parallel, parameters.port = 512, 1, 0
    parameters.cpuparams.n_threads = 1
    parameters.warmup = False
    if sys.argv[2:]:
        adapter = xllamacpp.CommonAdapterLoraInfo(sys.argv[2], 1.0)
        parameters.lora_adapters = [adapter]
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
