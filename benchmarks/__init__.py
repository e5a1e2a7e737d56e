"""Speed and memory, each as a ratio against a named baseline measured in the same run.

```
python -m benchmarks              # all of them, small; writes benchmarks/results/*.json
python -m benchmarks.evaluation   # one of them, full size; --help lists the options
python -m benchmarks.report       # docs/benchmarks.md from benchmarks/results
```

The baselines are written out with plain transformers calls, the way published code works; they
serve as an independent check of the results as well.
"""
