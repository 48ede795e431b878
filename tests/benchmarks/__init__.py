"""Benchmarks: synthetic stores of any size, peers to compare with, and a runner."""
