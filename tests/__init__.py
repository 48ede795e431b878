"""Tests of cellgraph_dask."""
