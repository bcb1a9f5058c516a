"""Layer 5: what pre-trained features are worth to a task. May import layers 0 to 4; no sibling package.

`finetune.transfer` and `compare.run_comparison` train detectors; `probe` holds the quick looks at frozen features.
Nothing is imported here, so that `protocols` (settings alone) comes without PyTorch.
"""
