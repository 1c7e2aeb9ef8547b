"""Lets the tests of every folder below import ``tiny_detector``: pytest finds modules beside a conftest."""
