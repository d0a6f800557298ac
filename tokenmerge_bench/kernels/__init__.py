"""Triton kernels, one file per job, imported only where `paths.path_for` says so. Each has a plain torch twin.

Shapes as everywhere: B batch, N tokens in, M tokens out, P prefix tokens, T = P + N, C width, H heads, D head width.
"""
