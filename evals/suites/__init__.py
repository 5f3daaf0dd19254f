"""Synthetic suites that tell mechanisms apart: one file a task, one trainer, one picture module."""
