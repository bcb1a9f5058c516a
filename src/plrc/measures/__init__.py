"""Measures of features and predictions: tensors or arrays in, numbers out."""
