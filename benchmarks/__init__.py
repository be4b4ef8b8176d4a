"""The project against its peers, in turns, on the same server and the same data.

``python -m benchmarks`` (or ``tox -e bench``) runs every case and writes the table of
``docs/benchmarks.md``. What counts is the ratio within one run; absolute figures only say
how fast the machine was.
"""
