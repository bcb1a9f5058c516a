"""The value of pre-trained features for a task: fine-tuning (`finetune`) and frozen features (`dense`, `probe`).

Nothing is imported here, so that `protocols` (settings alone) is imported without PyTorch.
"""
