"""Tests of the benchmarks: a checker that can't fail is worth nothing."""
