"""Exact mathematics: coupling coefficients, irreps, product plans and the code generated from them.

Nothing here needs more than the standard library, and nothing imports from outside this folder: the build
imports it as a top-level package before any part of clebsch is compiled.
"""
