"""Tests of the spool, one module per module of it, and its promises under fire."""
