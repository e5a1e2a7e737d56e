"""The page of `errata web`: edits in a browser, on this machine.

```
 browser ──events──> page.py     Gradio: fields and buttons, and nothing else
                       │
                     room.py     one bench per tab, by the key in its address
                       │
                     bench.py    one tab: history, undo, what is taken along
                       │   └───> work.py   what takes time: editing, asking, looking at an import
                     jobs.py     one piece of work in a thread: progress, time left, cancel
                       │
                     models.py   loaded models and the one lock: they do one thing at a time
                       │
                     errata.api, editors, inspection, patch: as on the command line
```

Everything but `page` and `server` is plain Python without Gradio. `views` turns results into HTML
and escapes all texts; `files` packs downloads and unpacks uploads, which are a stranger's.
"""
