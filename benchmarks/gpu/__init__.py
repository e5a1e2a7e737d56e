"""Everything that a GPU changes, in one run of a few minutes without network.

```
python -m benchmarks.gpu --device cuda --out DIR [--smollm2 FILE.gguf] [--only STEP …]
python -m benchmarks.gpu --device cpu --out DIR    # the same steps, small, without a GPU
```

Steps run in order of value. Each has an estimate of its seconds; one that no longer fits into
`--budget` is left out and says so. Every figure goes to `DIR/results.jsonl` as it is measured.
"""
