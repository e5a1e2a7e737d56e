"""IBKE trained on a pretrained model, beside the direct editors of `studies.real`."""
