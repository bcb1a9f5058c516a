"""Labelled images: one file for each layout, and the splits and items that are made from them."""
